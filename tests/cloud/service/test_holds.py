"""Work that is done once: who holds it, who waits, and who takes over; on both databases."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from sqlalchemy import delete, insert, select, update

from cloud.service import holds, operations, scratch
from cloud.service.errors import Cancelled
from cloud.service.pipeline import Job
from cloud.service.settings import Settings
from cloud.service.state import Database
from cloud.service.tables import Hold, Operation, Worker
from cloud.service.vault import open_vault
from protos.v1 import bases_pb2

KEY = "lower/0/r"


@pytest.fixture
def shared(tmp_path: Path):
    return open_vault(Settings(data_dir=tmp_path)).shared


@pytest.fixture
def job(database: Database, shared, tmp_path: Path):
    """A job of a worker that lives."""

    def make(worker: str, wanted: bool = True) -> Job:
        new = operations.New("t", None, "LowerBase", "bases/b", worker, bases_pb2.Base())
        with database.transaction() as connection:
            operations.create(connection, new, shared)
            row = operations.begin(connection, new.uid, worker)
            values = {"executor_id": worker, "host": "h", "beat": 0, "start_time": 0}
            connection.execute(insert(Worker).values(values))
        return Job(row, shared, 1, tmp_path, is_wanted=lambda: wanted)

    return make


def held_by(database: Database) -> str | None:
    with database.transaction(write=False) as connection:
        return connection.execute(select(Hold.operation_uid)).scalar()


def test_one_does_it_while_the_other_waits_and_finds_it_done(database, job):
    first, second = job("w1"), job("w2")
    done, inside, seen = threading.Event(), threading.Event(), []

    def wait() -> None:
        inside.wait()
        with holds.held(database, second, KEY, done.is_set) as mine:
            seen.append(mine)

    thread = threading.Thread(target=wait)
    thread.start()
    with holds.held(database, first, KEY, done.is_set) as mine:
        assert mine
        inside.set()
        thread.join(1)
        assert not seen
        done.set()
    thread.join(10)
    assert seen == [False]
    assert held_by(database) is None


def test_a_hold_of_a_dead_worker_or_of_an_old_attempt_is_taken_over(database, job):
    first, second, third = job("w1"), job("w2"), job("w3")
    with holds.held(database, first, KEY, lambda: False):
        with database.transaction() as connection:
            connection.execute(delete(Worker).where(Worker.executor_id == "w1"))
        with holds.held(database, second, KEY, lambda: False) as mine:
            assert mine
            with database.transaction() as connection:
                operations.begin(connection, second.operation.uid, "w3")
            with holds.held(database, third, KEY, lambda: False) as again:
                assert again
                assert held_by(database) == third.operation.uid
    assert held_by(database) is None


def test_who_waits_can_be_cancelled(database, job):
    first, second = job("w1"), job("w2", wanted=False)
    with (
        holds.held(database, first, KEY, lambda: False),
        pytest.raises(Cancelled),
        holds.held(database, second, KEY, lambda: False),
    ):
        pass


def test_scratch_folders_of_ended_and_older_attempts_are_removed(database, job, tmp_path: Path):
    root = tmp_path / "scratch"
    running, over = job("w1").operation, job("w2").operation
    now = scratch.folder(root, running.uid, 1)
    scratch.folder(root, over.uid, 1)
    scratch.folder(root, "00000000-0000-4000-8000-000000000000", 1)
    assert now.stat().st_mode & 0o777 == 0o700
    with database.transaction() as connection:
        connection.execute(update(Operation).where(Operation.uid == over.uid).values(end_time=1))
    assert scratch.sweep(root, database) == 2
    assert list(root.iterdir()) == [now]
    newer = scratch.folder(root, running.uid, 2)
    assert list(root.iterdir()) == [newer]
