"""The documentation says what the code does: generated pages are current, links lead somewhere."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def generated() -> dict[str, str]:
    """Made in a process of its own: click keeps what another test asked a command for first."""
    code = "import json, runpy; print(json.dumps(runpy.run_path('docs/generate.py')['pages']()))"
    made = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return json.loads(made.stdout)


def test_generated_pages_are_those_of_the_code() -> None:
    for name, content in generated().items():
        assert (ROOT / "docs" / name).read_text("utf-8") == content, "run `make docs`"


def pages() -> list[Path]:
    return [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text("utf-8"))
    missing = [link for link in links if not (page.parent / link).exists()]
    assert missing == []


def test_the_readmes_tree_names_every_tracked_folder_and_root_file() -> None:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    readme = (ROOT / "README.md").read_text("utf-8")
    tree = re.search(r"## Where things are\n\n```text\n(.*?)```", readme, re.DOTALL)
    assert tree is not None
    names = {line.split()[0].rstrip("/") for line in tree[1].splitlines() if line.strip()}
    tops = {name.split("/")[0] for name in listed}
    quiet = {".gitignore", "LICENSE"}
    assert tops - quiet - {part for name in names for part in name.split("/")[:1]} == set()
