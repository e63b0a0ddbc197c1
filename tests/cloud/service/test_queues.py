"""Workers take from their own queues only: training waits for a GPU worker, the rest does not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import select

from cloud.client import Client
from cloud.service.state import Database
from cloud.service.tables import Operation
from protos.v1 import profiles_pb2

ROOT = Path(__file__).parents[3]
QUESTIONS = ROOT / "cloud/pocket/users/LaMP_4/dev_questions.json"
WORKER = Path(__file__).with_name("real_worker.py")
Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start workers that take from these queues, on the server's database and data folder."""
    made: list[subprocess.Popen[bytes]] = []

    def begin(*queues: str) -> subprocess.Popen[bytes]:
        settings = {"data_dir": str(tmp_path / "data"), "queues": queues, "threads": 1}
        made.append(subprocess.Popen([sys.executable, str(WORKER), json.dumps(settings)],
                                     env={**os.environ, "PYTHONPATH": str(ROOT)}))  # fmt: skip
        return made[-1]

    yield begin
    for process in made:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_training_waits_for_a_gpu_worker_and_the_rest_goes_on(serve, start: Start, tmp_path: Path):
    database = Database(f"sqlite:///{tmp_path / 'data' / 'pocketune.db'}")

    def worker(name: str) -> str:
        """The pid of the worker that took an operation; empty where none did."""
        found = select(Operation.worker).where(Operation.uid == name.removeprefix("operations/"))
        with database.transaction(write=False) as connection:
            return "".join(connection.execute(found).scalar_one().split("-")[-2:-1])

    rows = json.loads(QUESTIONS.read_text("utf-8"))[0]["profile"][:6]
    items = [profiles_pb2.Item(input=row["text"], output=row["title"]) for row in rows]
    with Client(serve(training_queue="gpu")) as client:
        client.create_user("ann")
        profile = client.create_profile("users/ann", "LaMP_4").name
        client.upload(profile, items)
        cpu = start("cpu", "erase")
        request = profiles_pb2.AugmentProfileRequest(name=profile, options={"per_real": 0.5})
        training = client.augment(request)
        base = client.create_base("pocket", "pocket")
        client.wait(base)
        client.create_user("carl")
        client.wait(client.delete_user("users/carl"))
        assert worker(base.name) == str(cpu.pid)
        assert worker(training.name) == ""

        cpu.kill()
        cpu.wait()
        waiting = client.create_base("again", "pocket")
        gpu = start("gpu")
        client.wait(training)
        assert worker(training.name) == str(gpu.pid)
        assert worker(waiting.name) == ""
    database.close()
