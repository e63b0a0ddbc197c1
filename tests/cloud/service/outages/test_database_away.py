"""The database goes away and comes back: cut off, silent, or locked by somebody else."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from google.longrunning import operations_pb2 as longrunning
from sqlalchemy import make_url

from cloud.service.liveness import Roll
from protos.v1 import operations_pb2, profiles_pb2, users_pb2

Code = grpc.StatusCode
USER = users_pb2.GetUserRequest(name="users/ann")


@pytest.fixture
def far(fresh_postgresql: str, gate: Callable[..., Any]) -> tuple[Any, str]:
    """A gate, and the URL of an empty PostgreSQL behind it."""
    url = make_url(fresh_postgresql)
    assert url.host
    assert url.port
    found = gate(url.host, url.port)
    return found, url.set(port=found.port).render_as_string(hide_password=False)


def test_without_a_database_calls_are_unavailable_and_a_job_goes_on_and_ends_once(
    start, far, worker, methods, until
):
    gate, url = far
    served = start(worker=False, database_url=url, teachers={"sleep:4": "pocket"})
    profile = served.add_user()
    workers = [worker(url, served.data) for _ in range(2)]
    request = profiles_pb2.AugmentProfileRequest(name=profile, options={"teacher": "sleep:4"})
    (begun,) = served.call("AugmentProfile", request).answers
    until(lambda: any("child" in line for line in served.lines()))

    gate.shut()
    for name in methods:
        outcome = served.call(name)
        assert (name, outcome.code) == (name, Code.UNAVAILABLE)
        assert outcome.wait_s > 0
        assert outcome.text == "the database or the blob store does not answer; try again"
    until(lambda: served.health() == "NOT_SERVING", 20)
    assert not any("last begin" in line for line in served.lines())

    gate.open()
    until(lambda: served.call("GetUser", USER).code is Code.OK, 20)
    until(lambda: served.health() == "SERVING", 20)
    find = longrunning.GetOperationRequest(name=begun.name)
    done = until(
        lambda: [op for op in served.call("GetOperation", find).answers if op.done], 60
    )[0]  # fmt: skip
    assert done.HasField("response"), done.error
    metadata = operations_pb2.OperationMetadata()
    assert done.metadata.Unpack(metadata)
    assert metadata.attempt == 1
    said = [line.split()[1:3] for line in served.lines()]
    assert [words for words in said if words[1] == "end"] == [
        ["one", "end"], ["heavy", "end"], ["last", "end"]
    ]  # fmt: skip
    again = served.call("AugmentProfile", request).answers[0]
    assert [process.poll() for process in workers] == [None, None]
    find.name = again.name
    until(lambda: served.call("GetOperation", find).answers[0].done, 60)
    assert "Traceback" not in served.log()


def test_a_silent_database_holds_no_call_longer_than_the_server_allows(start, far, until):
    gate, url = far
    served = start(worker=False, database_url=url, max_call_s=2)
    served.add_user()
    gate.silence()
    for name in ("GetUser", "ListOperations", "CreateUser", "AppendItems", "DownloadAdapter",
                 "WaitOperation", "AugmentProfile"):  # fmt: skip
        outcome = served.call(name, timeout=20)
        assert (name, outcome.code) == (name, Code.UNAVAILABLE)
        assert outcome.wait_s > 0
    until(lambda: served.health() == "NOT_SERVING", 20)
    gate.open()
    until(lambda: served.call("GetUser", USER).code is Code.OK, 20)
    until(lambda: served.health() == "SERVING", 20)
    assert "Traceback" not in served.log()


def test_an_sqlite_that_another_process_locks_can_be_read_and_is_written_later(start, until):
    served = start(worker=False, max_call_s=2)
    profile = served.add_user()
    other = sqlite3.connect(served.data / "pocketune.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    assert served.call("GetUser", USER).code is Code.OK
    item = profiles_pb2.AppendItemsRequest(parent=profile, items=[{"input": "x", "output": "y"}])
    for name, request in (("CreateUser", None), ("AppendItems", item)):
        refused = served.call(name, request)
        assert (refused.code, refused.wait_s > 0) == (Code.UNAVAILABLE, True)
    assert served.call("GetUser", USER).code is Code.OK
    other.execute("ROLLBACK")
    until(lambda: served.call("AppendItems", item).code is Code.OK, 20)
    other.close()
    assert "Traceback" not in served.log()


def test_after_an_outage_nobody_is_dead_and_who_is_silent_alone_is(database):
    """The first worker that comes back sees beats as old as the outage: it was away itself."""
    first, second = Roll("first", 0.5), Roll("second", 0.5)
    for roll in (first, second):
        roll.sign(database)
        roll.call(database)
    assert first.call(database) == {"first", "second"}
    time.sleep(0.8)  # neither reaches the database
    assert first.call(database) == {"first", "second"}
    for _ in range(8):
        time.sleep(0.1)
        living = first.call(database)
    assert living == {"first"}
    assert second.call(database) is None
