"""The command line as a person meets it: help, one clear line for each error, right exit codes."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from pocketune import main


def pocketune(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pocketune", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=300)


def commands(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            yield from commands(child, (*path, name))
    else:
        yield path


@pytest.mark.parametrize("path", list(commands(main)), ids=" ".join)
def test_every_command_has_help_with_an_example(path: tuple[str, ...]) -> None:
    result = CliRunner().invoke(main, [*path, "--help"])
    assert result.exit_code == 0
    assert f"pocketune {' '.join(path)}" in result.output.split("Example", 1)[1]


def one_line(result: subprocess.CompletedProcess[str], code: int, *says: str) -> None:
    assert result.returncode == code, result.stderr
    lines = result.stderr.strip().splitlines()
    errors = [line for line in lines if line.startswith("Error:")]
    assert len(errors) == 1, result.stderr
    assert "Traceback" not in result.stderr
    for text in says:
        assert text in result.stderr


def test_a_package_that_is_not_installed_is_named_with_what_installs_it() -> None:
    code = "import sys; sys.modules['sqlalchemy'] = None; import pocketune; pocketune.main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "doctor"], capture_output=True, text=True, timeout=300
    )
    one_line(done, 1, "sqlalchemy is not installed", ".[cloud,export]")


def test_errors_are_one_line_that_says_what_and_where(tmp_path: Path) -> None:
    items = tmp_path / "items.jsonl"
    items.write_text('{"input": "a", "output": "b"}\n{"input": "c"}\n')
    out = tmp_path / "out"
    one_line(pocketune("profile", "import", items, "--out", out), 2, "line 2", "'output'")
    one_line(pocketune("augment", "--profile", out, "--out", out), 2, "no such artifact")
    one_line(pocketune("no-such-command"), 2, "no-such-command")
    one_line(pocketune("train", "--rank", "many"), 2, "--rank")
    assert not out.exists()


def test_refusals_have_their_own_exit_codes(tmp_path: Path, tiny_base: Path) -> None:
    items = tmp_path / "items.jsonl"
    items.write_text('{"input": "a b", "output": "c"}\n{"input": "d e", "output": "f"}\n')
    profile = tmp_path / "profile"
    made = pocketune("profile", "import", items, "--out", profile, "--json")
    assert json.loads(made.stdout)["items"] == 2
    dataset = tmp_path / "dataset"
    augment = ("augment", "--profile", profile, "--out", dataset)
    one_line(
        pocketune(*augment, "--teacher", "gpt"), 2, "expected pocket, pocket-reader, hf:", "openai:"
    )
    one_line(pocketune(*augment, "--teacher", "openai:nonsense"), 2, "openai:<base-url>#<model>")
    far = "openai:https://example.com/v1#m"
    one_line(pocketune(*augment, "--teacher", far), 2, "consent does not allow")
    assert not dataset.exists()
    (profile / "items.jsonl").write_text("")
    one_line(pocketune(*augment), 3, "items.jsonl has 0 bytes")
    recipe = ("export", "base", "--base", tiny_base, "--out", tmp_path / "b", "--recipe", "toast")
    one_line(pocketune(*recipe), 2, "toast", "executorch-xnnpack-fp32")


def test_a_config_file_gives_defaults_and_unknown_settings_are_errors(tmp_path: Path) -> None:
    items = tmp_path / "items.jsonl"
    items.write_text('{"input": "a b", "output": "c"}\n{"input": "d e", "output": "f"}\n')
    config = tmp_path / "config.toml"
    config.write_text('[profile.import]\nuser = "ada"\nlanguage = "en"\n')
    arguments = ("--config", config, "profile", "import", items, "--out", tmp_path / "p")
    assert pocketune(*arguments).returncode == 0
    assert json.loads((tmp_path / "p/manifest.json").read_text())["config"]["user"] == "ada"
    over = pocketune(*arguments, "--user", "eve")
    assert over.returncode == 0
    assert json.loads((tmp_path / "p/manifest.json").read_text())["config"]["user"] == "eve"
    config.write_text("[train]\nrnak = 3\n[bake]\n")
    one_line(pocketune(*arguments), 2, "train.rnak is no option", "[bake] is no command")
    config.write_text("[train")
    one_line(pocketune(*arguments), 2, str(config))


def test_a_read_only_or_missing_place_is_one_line(tmp_path: Path) -> None:
    items = tmp_path / "items.jsonl"
    items.write_text('{"input": "a b", "output": "c"}\n{"input": "d e", "output": "f"}\n')
    blocker = tmp_path / "file"
    blocker.write_text("")
    one_line(pocketune("profile", "import", items, "--out", blocker / "p"), 1, "file")
