"""`pocketune remote personalize` does the whole job, whoever is stopped on the way."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import cloud.pocket

ROOT = Path(__file__).parents[3]
USERS = Path(cloud.pocket.__file__).parent / "users" / "LaMP_4"
RECIPE = "executorch-xnnpack-fp32"


def test_the_client_imports_neither_the_service_nor_a_stage():
    program = (
        "import sys, cloud.client, cloud.client.personalize, cloud.remote_cli\n"
        "heavy = ('cloud.service', 'torch', 'dbos', 'export', 'mobile_runtime')\n"
        "print([name for name in sys.modules if name.startswith(heavy)])"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert said.stdout == "[]\n", said.stderr


Begin = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def begin() -> Iterator[Begin]:
    """Starts commands; what still runs at the end is killed."""
    begun: list[subprocess.Popen[str]] = []

    def start(*arguments: str | Path, log: Path) -> subprocess.Popen[str]:
        with log.open("ab") as errors:
            begun.append(subprocess.Popen(
                [sys.executable, "-m", "pocketune", *map(str, arguments)], text=True,
                stdout=subprocess.PIPE, stderr=errors, env={**os.environ, "OMP_NUM_THREADS": "1"},
            ))  # fmt: skip
        return begun[-1]

    yield start
    for process in begun:
        if process.returncode is None:
            process.kill()
            process.communicate()


def serve(begin: Begin, folder: Path, port: str = "0") -> tuple[subprocess.Popen[str], str]:
    server = begin("serve", "--data-dir", folder / "data", "--port", port, log=folder / "server")
    assert server.stdout
    found = re.search(r"serves on (\S+:\d+)", server.stdout.readline())
    assert found
    return server, found[1]


@pytest.mark.slow
def test_a_user_is_personalized_though_client_and_server_are_stopped_on_the_way(
    begin: Begin, tmp_path: Path
):
    questions = json.loads((USERS / "dev_questions.json").read_text())
    server, address = serve(begin, tmp_path)
    work, base = tmp_path / "work", tmp_path / "base"
    personalize = (
        "remote", "personalize", USERS / "dev_questions.json", "--task", "LaMP_4",
        "--user", questions[0]["user_id"], "--recipe", RECIPE, "--epochs", "3",
        "--per-real", "0.5", "--out", work, "--base-bundle", base, "--server", address, "--json",
    )  # fmt: skip
    client = begin(*personalize, log=tmp_path / "client")
    wait_for(tmp_path / "client", "personalize:")
    client.send_signal(signal.SIGINT)
    client.communicate(timeout=30)
    assert client.returncode == 130
    server.send_signal(signal.SIGTERM)  # the operation goes on after the next start
    assert server.communicate(timeout=60)[0].endswith("Drained.\n")
    server, _ = serve(begin, tmp_path, address.split(":")[1])
    client = begin(*personalize, log=tmp_path / "client")
    said = client.communicate(timeout=400)[0]
    assert client.returncode == 0, (tmp_path / "client").read_text()
    made = json.loads(said)
    assert made["parityReport"]["passed"]
    assert made["bundle"]["recipe"] == RECIPE
    status = begin("remote", "status", "--server", address, log=tmp_path / "client")
    assert status.communicate(timeout=60)[0] == ""  # one operation did it all
    server.send_signal(signal.SIGTERM)
    server.communicate(timeout=60)
    phone = begin(
        "run", "--base-bundle", base, "--adapter-bundle", work / "adapter-bundle",
        questions[0]["input"], log=tmp_path / "phone",
    )  # fmt: skip
    assert phone.communicate(timeout=100)[0].strip()
    assert phone.returncode == 0


def wait_for(log: Path, pattern: str) -> None:
    deadline = time.monotonic() + 200
    while not re.search(pattern, log.read_text()):
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.3)
