"""Clocks that jump an hour, forward and back, on server and workers, while a job runs."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from google.longrunning import operations_pb2 as longrunning

from protos.v1 import operations_pb2, profiles_pb2, users_pb2

ROOT = Path(__file__).parents[4]
SLEEP = """
# libfaketime refuses the sleep until a moment of the monotonic clock that time.sleep is made of.
import select, time
time.sleep = lambda seconds: select.select([], [], [], seconds) and None
"""


class Clock:
    """A wall clock for some processes; other clocks of theirs go on as they are."""

    def __init__(self, library: Path, folder: Path) -> None:
        self._file = folder / f"clock-{uuid.uuid4().hex[:8]}"
        self.jump(0)
        self.environment = {
            "LD_PRELOAD": str(library), "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "PYTHONPATH": f"{folder}:{ROOT}",
        }  # fmt: skip

    def jump(self, hours: int) -> None:
        """Stand this far from the true time."""
        partial = self._file.with_suffix(".new")
        partial.write_text(f"{hours * 3600:+d}\n")
        partial.replace(self._file)


@pytest.fixture
def clock(program: Callable[[str, str], str], tmp_path: Path) -> Callable[[], Clock]:
    program("faketime", "apt-get install faketime")
    (library, *_) = Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")
    (tmp_path / "sitecustomize.py").write_text(SLEEP)
    return lambda: Clock(library, tmp_path)


def test_a_clock_that_jumps_kills_nobody_repeats_nothing_and_forgets_nothing(
    start, worker, clock, until
):
    ours, theirs = clock(), clock()
    served = start(ours.environment, worker=False, teachers={"sleep:8": "pocket"}, sweep_s=0.2)
    profile = served.add_user()
    url = f"sqlite:///{served.data}/pocketune.db"
    workers = [worker(url, served.data, each.environment) for each in (ours, theirs)]
    request = profiles_pb2.AugmentProfileRequest(
        name=profile, options={"teacher": "sleep:8"}, request_id=str(uuid.uuid4())
    )
    for each in (ours, theirs):
        each.jump(1)  # so that the job ends, by the clock, before it began
    (begun,) = served.call("AugmentProfile", request).answers
    find = longrunning.GetOperationRequest(name=begun.name)
    until(lambda: any("child" in line for line in served.lines()))

    jumps = itertools.cycle([(0, 0), (-1, 0), (0, -1), (-1, -1)])
    told: list[operations_pb2.OperationMetadata] = []

    def is_done() -> bool:
        for each, hours in zip((ours, theirs), next(jumps), strict=True):
            each.jump(hours)
        (now,) = served.call("GetOperation", find).answers
        metadata = operations_pb2.OperationMetadata()
        assert now.metadata.Unpack(metadata)
        told.append(metadata)
        return now.done

    until(is_done, 60, every=0.5)
    assert len(told) >= 4
    (done,) = served.call("GetOperation", find).answers
    assert done.HasField("response"), done.error
    assert [process.poll() for process in workers] == [None, None]
    assert told[-1].attempt == 1
    ended = [line.split()[1] for line in served.lines() if line.endswith("end")]
    assert ended == ["one", "heavy", "last"]
    for metadata in told:
        assert metadata.time_left.seconds >= 0
        assert metadata.start_time.seconds >= metadata.create_time.seconds
    assert told[-1].end_time.seconds >= told[-1].start_time.seconds
    assert [metadata.progress for metadata in told] == sorted(m.progress for m in told)
    (again,) = served.call("AugmentProfile", request).answers
    assert again.name == begun.name
    assert len(list(served.client.list_items(profile))) == 2
    listed = served.call("ListUsers", users_pb2.ListUsersRequest()).answers[0]
    assert [user.name for user in listed.users] == ["users/ann"]
    assert "Traceback" not in served.log()
