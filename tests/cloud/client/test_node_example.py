"""The Node.js example does what its page says: personalize a user, and download over a break."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
from pathlib import Path

import pytest

import cloud.pocket
from cloud.client import Client
from protos.artifacts import open_artifact

EXAMPLE = Path(__file__).parents[3] / "examples" / "node"
QUESTIONS = Path(cloud.pocket.__file__).parent / "users" / "LaMP_4" / "dev_questions.json"


def test_the_lock_file_names_no_download_host():
    lock = json.loads((EXAMPLE / "package-lock.json").read_text())
    assert not any("resolved" in package for package in lock["packages"].values())
    assert all("integrity" in package for name, package in lock["packages"].items() if name)


@pytest.mark.slow
def test_node_personalizes_a_user_and_resumes_a_broken_stream(start, program, tmp_path: Path):
    npm, node = (program(name, "install Node.js 20 or newer") for name in ("npm", "node"))
    subprocess.run([npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=EXAMPLE,
                   check=True, capture_output=True)  # fmt: skip
    profile = json.loads(QUESTIONS.read_text())[0]["profile"]
    items = [{"input": row["text"], "output": row["title"], "date": row["date"]} for row in profile]
    source = tmp_path / "items.jsonl"
    source.write_text("".join(json.dumps(item) + "\n" for item in items))
    server = start()
    said = subprocess.run(
        [node, EXAMPLE / "personalize.js", server.address, source, "ann", tmp_path / "bundle"],
        capture_output=True, text=True, timeout=500,
        env={**os.environ, "POCKETUNE_BREAK_AFTER": "100000", "POCKETUNE_EPOCHS": "1",
             "POCKETUNE_PER_REAL": "0.5"},
    )  # fmt: skip
    assert said.returncode == 0, said.stdout + said.stderr
    assert f"{len(items)} items" in said.stdout
    broke = re.search(r"the stream broke at (\d+) of (\d+) bytes", said.stdout)
    assert broke
    assert 100_000 <= int(broke[1]) < int(broke[2])
    assert "1 streams resumed" in said.stdout
    with Client(server.address) as client:
        (bundle,) = client.list_bundles("users/ann")
    for file in bundle.files:
        content = (tmp_path / "bundle" / file.path).read_bytes()
        assert hashlib.sha256(content).hexdigest() == file.sha256
    assert open_artifact(tmp_path / "bundle", "AdapterBundle").id == bundle.name.split("/")[-1]
