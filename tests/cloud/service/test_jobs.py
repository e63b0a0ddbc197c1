"""Jobs on DBOS with real worker processes: killed, cancelled, handed back, given up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from google.longrunning import operations_pb2 as longrunning
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from cloud.service import operations
from cloud.service.errors import Conflict
from cloud.service.jobs import JobQueue, make_tables
from cloud.service.settings import Settings
from cloud.service.state import Database
from cloud.service.vault import open_vault
from protos.v1 import operations_pb2, profiles_pb2

T = TypeVar("T")
WORKER = Path(__file__).with_name("worker_process.py")
ROOT = Path(__file__).parents[3]


class Bench:
    """A database, its queue, and workers that come and go."""

    def __init__(self, database: Database, data: Path) -> None:
        self.database, self.data = database, data
        make_tables(database)
        self.queue = JobQueue(database)
        self.shared = open_vault(Settings(data_dir=data)).shared
        self.workers: list[subprocess.Popen[bytes]] = []

    def worker(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, str(WORKER), self.database.url, str(self.data)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        self.workers.append(process)
        return process

    def submit(self, what: str, tenant: str = "a", key: str = "") -> str:
        request = profiles_pb2.AugmentProfileRequest()
        request.options.teacher = what
        new = operations.New(
            tenant,
            None,
            "AugmentProfile",
            "users/u/profiles/LaMP_4",
            key or f"k{time.monotonic_ns()}",
            request,
        )
        with self.database.transaction() as connection:
            operations.create(connection, new, self.shared)
            self.queue.put(connection, tenant, new.uid, "cpu")
        return new.uid

    def state(self, uid: str) -> tuple[longrunning.Operation, operations_pb2.OperationMetadata]:
        with self.database.transaction(write=False) as connection:
            row = operations.by_uid(connection, uid)
        operation = operations.to_message(row, self.shared)
        metadata = operations_pb2.OperationMetadata()
        operation.metadata.Unpack(metadata)
        return operation, metadata

    def lines(self, uid: str = "") -> list[str]:
        log = self.data / "log"
        return (
            [line for line in log.read_text().splitlines() if line.startswith(uid)]
            if log.exists()
            else []
        )

    def until(self, what: Callable[[], T], seconds: float = 40) -> T:
        """Wait for a truth, and give it."""
        deadline = time.monotonic() + seconds
        while not (found := what()):
            assert time.monotonic() < deadline, self.lines()
            time.sleep(0.05)
        return found

    def until_done(
        self, uid: str
    ) -> tuple[longrunning.Operation, operations_pb2.OperationMetadata]:
        self.until(lambda: self.state(uid)[0].done)
        return self.state(uid)

    def child(self, uid: str) -> int:
        """The process id of its child, as soon as it has one."""
        said = self.until(lambda: [line for line in self.lines(uid) if "child" in line])
        return int(said[0].split()[-1])

    def has(self, uid: str, words: str) -> Callable[[], bool]:
        return lambda: any(words in line for line in self.lines(uid))


@pytest.fixture
def bench(database: Database, tmp_path: Path) -> Iterator[Bench]:
    found = Bench(database, tmp_path)
    yield found
    for process in found.workers:
        process.kill()
        process.wait()
    found.queue.close()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"


def test_an_operation_runs_all_stages_and_tells_how_far_it_is(bench):
    bench.worker()
    uid = bench.submit("sleep:1.5")

    def halfway() -> operations_pb2.OperationMetadata | None:
        told = bench.state(uid)[1]
        return told if told.progress > 0.3 and told.stage == operations_pb2.STAGE_TRAIN else None

    half = bench.until(halfway)
    assert half
    assert half.message.startswith("step")
    assert half.HasField("time_left")
    operation, metadata = bench.until_done(uid)
    result = profiles_pb2.AugmentProfileResponse()
    operation.response.Unpack(result)
    assert (result.dataset, metadata.progress, metadata.attempt) == ("one-heavy-last", 1.0, 1)
    assert metadata.stage == operations_pb2.STAGE_DONE


def test_a_new_attempt_is_not_told_with_the_progress_of_the_one_before(bench):
    uid, stage = bench.submit("sleep:0"), operations_pb2.STAGE_TRAIN
    with bench.database.transaction() as connection:
        operations.begin(connection, uid, "first")
        operations.advance(
            connection, uid, 1, stage=stage, progress=0.5, message="epoch 5/12",
            counters={"synthetic": 12},
        )  # fmt: skip
    assert bench.state(uid)[1].HasField("time_left")
    with bench.database.transaction() as connection:
        operations.begin(connection, uid, "second")
    _, told = bench.state(uid)
    assert (told.attempt, told.progress, told.message) == (2, 0.0, "")
    assert not told.HasField("time_left")
    assert (told.stage, dict(told.counters)) == (stage, {"synthetic": 12})


def test_progress_does_not_fall_when_a_stage_is_tried_again(bench):
    bench.worker()
    uid, told = bench.submit("stumble:3"), list[float]()

    def is_done() -> bool:
        operation, metadata = bench.state(uid)
        told.append(metadata.progress)
        return operation.done

    bench.until(is_done)
    assert bench.state(uid)[0].HasField("response")
    assert sum("child" in line for line in bench.lines(uid)) == 2
    assert any(0.5 < each < 0.9 for each in told)
    assert told == sorted(told)


def test_a_killed_worker_s_job_goes_on_elsewhere_and_repeats_no_finished_stage(bench):
    first = bench.worker()
    uid = bench.submit("sleep:2")
    child = bench.child(uid)
    first.send_signal(signal.SIGKILL)
    bench.until(lambda: not alive(child), 5)  # the child dies with its parent
    bench.worker()
    operation, metadata = bench.until_done(uid)
    assert operation.HasField("response")
    assert metadata.attempt == 2
    ended = [line.split()[1] for line in bench.lines(uid) if line.endswith("end")]
    assert ended == ["one", "heavy", "last"]


def test_cancel_stops_a_running_child_within_a_second(bench):
    bench.worker()
    uid = bench.submit("sleep:60")
    child = bench.child(uid)
    started = time.monotonic()
    with bench.database.transaction() as connection:
        assert not operations.request_cancel(connection, uid)
    bench.until(lambda: bench.state(uid)[0].done, 5)
    assert time.monotonic() - started < 1
    assert bench.state(uid)[0].error.code == 1
    assert not alive(child)


def test_a_job_that_nobody_took_is_cancelled_at_once_and_never_runs(bench):
    uid = bench.submit("sleep:0")
    with bench.database.transaction() as connection:
        assert operations.request_cancel(connection, uid)
    assert bench.state(uid)[0].error.code == 1
    bench.worker()
    other = bench.submit("sleep:0")
    bench.until_done(other)
    assert not bench.lines(uid)


def test_jobs_that_wait_in_a_worker_are_cancelled_at_once_and_lose_nothing_by_its_death(bench):
    first, runs = bench.worker(), bench.submit("sleep:60")
    bench.until(bench.has(runs, "child"), 90)
    cancelled, waits = bench.submit("sleep:0"), bench.submit("sleep:0")
    bench.until(lambda: len(_taken(bench)) == 3)
    assert not bench.lines(cancelled) + bench.lines(waits), "one is at work at a time"
    with bench.database.transaction() as connection:
        assert operations.request_cancel(connection, cancelled)
        assert not operations.request_cancel(connection, runs)
    first.send_signal(signal.SIGKILL)
    bench.worker()
    bench.until(lambda: bench.state(waits)[0].done, 90)
    assert bench.state(waits)[1].attempt == 1
    assert not bench.lines(cancelled)


def test_a_job_that_was_put_back_and_waits_again_is_cancelled_at_once(bench):
    first, put_back = bench.worker(), bench.submit("sleep:60", key="ann")
    bench.until(bench.has(put_back, "child"), 90)
    first.send_signal(signal.SIGKILL)
    first.wait()
    runs = bench.submit("sleep:60")  # the second worker takes it before it knows the first is dead
    bench.worker()
    bench.until(lambda: (taken := _taken(bench)).get(runs) == taken.get(put_back, ""), 90)
    started = time.monotonic()
    with bench.database.transaction() as connection:
        assert not operations.request_cancel(connection, put_back)
    bench.until(lambda: bench.state(put_back)[0].done, 5)
    assert time.monotonic() - started < 1
    assert bench.state(put_back)[0].error.code == 1
    assert sum("one begin" in line for line in bench.lines(put_back)) == 1
    assert not bench.state(runs)[0].done
    bench.submit("sleep:0", key="ann")  # the user is free again


def _taken(bench: Bench) -> dict[str, str]:
    """The jobs that a worker has taken from the queue, with that worker."""
    schema = "dbos." if bench.database.url.startswith("postgresql") else ""
    columns = "workflow_uuid, executor_id"
    query = text(f"SELECT {columns} FROM {schema}workflow_status WHERE status = 'PENDING'")
    with bench.database.transaction(write=False) as connection:
        return {row.workflow_uuid: row.executor_id for row in connection.execute(query)}


def test_a_wrong_input_fails_at_once_and_a_dying_child_after_its_tries(bench):
    bench.worker()
    wrong, dies = bench.submit("fail"), bench.submit("die")
    operation, _ = bench.until_done(wrong)
    assert operation.error.code == 3
    assert "stage heavy: there is nothing in it" in operation.error.message
    assert sum("heavy begin" in line for line in bench.lines(wrong)) == 1
    operation, _ = bench.until_done(dies)
    assert "exit code 3" in operation.error.message
    assert sum("heavy begin" in line for line in bench.lines(dies)) == 2


def test_a_job_over_which_workers_die_is_given_up_with_the_reason(bench):
    uid = bench.submit("killworker")
    bench.until(lambda: _kept_alive(bench) and bench.state(uid)[0].done, 90)
    operation, metadata = bench.state(uid)
    assert "given up: 3 workers ended during it" in operation.error.message
    assert metadata.attempt == 4


def _kept_alive(bench: Bench) -> bool:
    """Start a worker where there is none, as a supervisor would."""
    if all(process.poll() is not None for process in bench.workers):
        bench.worker()
    return True


def test_a_worker_that_is_told_to_stop_hands_its_job_back(bench):
    first = bench.worker()
    uid = bench.submit("sleep:2")
    bench.until(bench.has(uid, "child"))
    first.terminate()
    assert first.wait(10) == 0
    assert not bench.state(uid)[0].done
    bench.worker()
    operation, _ = bench.until_done(uid)
    assert operation.HasField("response")


def test_a_tenant_with_one_job_does_not_wait_behind_one_with_many(bench):
    many = [bench.submit("sleep:0.2", "greedy") for _ in range(12)]
    one = bench.submit("sleep:0.2", "modest")
    bench.worker()
    bench.until_done(one)
    assert sum(bench.state(uid)[0].done for uid in many) < 12
    order = [line.split()[3] for line in bench.lines() if "one begin" in line]
    assert order.index("modest") < 11


def test_a_second_operation_on_the_same_thing_is_refused_until_the_first_ended(bench):
    first = bench.submit("sleep:0", key="ann")
    with pytest.raises(Conflict, match="at work"):
        bench.submit("sleep:0", key="ann")
    bench.worker()
    bench.until_done(first)
    bench.until_done(bench.submit("sleep:0", key="ann"))


def freeze(bench: Bench, worker: subprocess.Popen[bytes]) -> None:
    """Stop a worker between two transactions: SQLite's lock would stay locked with its holder."""
    while True:
        worker.send_signal(signal.SIGSTOP)
        try:
            with bench.database.transaction():
                return
        except OperationalError:
            worker.send_signal(signal.SIGCONT)


def test_a_worker_that_was_frozen_and_comes_back_ends_and_spoils_nothing(bench):
    frozen = bench.worker()
    uid = bench.submit("sleep:3")
    bench.until(bench.has(uid, "child"))
    bench.worker()
    freeze(bench, frozen)
    bench.until(lambda: bench.state(uid)[1].attempt == 2)
    frozen.send_signal(signal.SIGCONT)
    assert frozen.wait(10) == 70
    operation, metadata = bench.until_done(uid)
    assert operation.HasField("response")
    assert metadata.attempt == 2
    assert sum("one end" in line for line in bench.lines(uid)) == 1
    assert sum("last end" in line for line in bench.lines(uid)) == 1
