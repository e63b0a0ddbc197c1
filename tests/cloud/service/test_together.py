"""Steps in one child: who is in a round, and what one member's end means to the others."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from cloud.service import scratch
from cloud.service.errors import Cancelled
from cloud.service.pipeline import Job
from cloud.service.stages.together import Together, asked
from protos.errors import InputError, PocketuneError

BAD, CRASH, LATE, SHORT = "bad", "crash", "late", "short"
ENOUGH = "enough"  # a file in its folder ends a member's pause
Say = Callable[[str, float], None]


def work(
    members: Sequence[tuple[str, str]], pause: float, threads: int, progress: Say
) -> list[PocketuneError | None]:
    """In the child: make each member's artifact in turn, as long as it is wanted."""
    errors: list[PocketuneError | None] = []
    if len(members) > 1 and CRASH in dict(members):
        os._exit(3)
    if len(members) > 1 and SHORT in dict(members):
        return errors  # of nobody
    for number, (name, folder) in enumerate(members):
        progress(f"{number} {name} begins", 0.5)
        until = time.monotonic() + pause
        wanted = asked(Path(folder))
        if name == LATE:  # it was about to write when it was cancelled
            while wanted():
                time.sleep(0.01)
            (Path(folder) / ".out.work").mkdir(parents=True)
            (Path(folder) / ".out.work" / "text").write_text("of a user")
            progress(f"{number} {name} wrote", 0.6)
            errors.append(None)
            continue
        while (
            (going := wanted()) and time.monotonic() < until and not Path(folder, ENOUGH).exists()
        ):
            time.sleep(0.01)
        if going and name != BAD:
            made = Path(folder) / ".draft"
            made.mkdir()
            (made / "manifest.json").write_text(f"{os.getpid()} {len(members)} {threads}")
            made.rename(Path(folder) / "out")
        errors.append(InputError(f"{name} is at fault") if name == BAD else None)
    return errors


class Worker:
    """Jobs in threads of their own. answers: what each ended with: pid, members and threads of its
    child, or an error."""

    def __init__(self, folder: Path, most: int, pause: float = 0.0) -> None:
        self.together, self.folder, self.pause = Together(most), folder, pause
        self.answers: dict[str, object] = {}
        self.said: dict[str, list[str]] = {}
        self.cancelled: set[str] = set()
        self.threads: list[threading.Thread] = []

    def begin(self, name: str, key: tuple[str, ...] = ("tenant", "base")) -> None:
        home = self.folder / name
        home.mkdir()
        said = self.said.setdefault(name, [])
        job = Job(SimpleNamespace(uid=name), None, 1, home)  # type: ignore[arg-type]
        job.report = lambda message, share: said.append(message)
        job.is_wanted = lambda: name not in self.cancelled

        def run() -> None:
            try:
                member = (name, str(home))
                self.together.run(key, job, member, home / "out", work, self.pause)
                self.answers[name] = (home / "out" / "manifest.json").read_text().split()
            except (PocketuneError, Cancelled) as error:
                self.answers[name] = error

        self.threads.append(threading.Thread(target=run))
        self.threads[-1].start()

    def all_end(self, *names: str, **keys: tuple[str, ...]) -> dict[str, object]:
        for name in names:
            self.begin(name)
        for name, key in keys.items():
            self.begin(name, key)
        for thread in self.threads:
            thread.join(60)
        return self.answers


def test_who_waits_at_the_same_time_shares_a_child_up_to_the_limit(tmp_path: Path):
    worker = Worker(tmp_path, most=2)
    answers = worker.all_end("ann", "bob", "cid")
    members = [int(answer[1]) for answer in answers.values()]  # type: ignore[index]
    assert sorted(members) == [1, 2, 2]
    assert len({answer[0] for answer in answers.values()}) == 2  # type: ignore[index]
    assert all(worker.said[name] == [f"{name} begins"] for name in answers)


def test_a_round_has_the_threads_of_one_job_since_it_counts_as_one(tmp_path: Path):
    answers = Worker(tmp_path, most=8).all_end("ann", "bob")
    assert [answer[1:] for answer in answers.values()] == [["2", "1"]] * 2  # type: ignore[index]


def test_other_tenants_and_other_bases_have_a_child_of_their_own(tmp_path: Path):
    keys = {"ann": ("one", "base"), "bob": ("two", "base"), "cid": ("one", "other")}
    answers = Worker(tmp_path, most=8).all_end(**keys)
    assert len({answer[0] for answer in answers.values()}) == 3  # type: ignore[index]


def test_with_a_limit_of_one_everybody_is_alone(tmp_path: Path):
    answers = Worker(tmp_path, most=1).all_end("ann", "bob")
    assert [answer[1:] for answer in answers.values()] == [["1", "1"]] * 2  # type: ignore[index]


def test_one_members_error_is_its_own(tmp_path: Path):
    answers = Worker(tmp_path, most=8).all_end("ann", BAD, "cid")
    assert str(answers[BAD]) == "bad is at fault"
    assert answers["ann"][1] == answers["cid"][1] == "3"  # type: ignore[index]


@pytest.mark.parametrize("fault", [CRASH, SHORT])
def test_a_child_that_fails_as_a_whole_is_followed_by_one_for_each(tmp_path: Path, fault: str):
    answers = Worker(tmp_path, most=8).all_end(fault, "bob", "cid")
    assert set(answers) == {fault, "bob", "cid"}
    assert all(answer[1] == "1" for answer in answers.values())  # type: ignore[index]


def test_a_cancelled_one_leaves_and_the_others_stay(tmp_path: Path):
    worker = Worker(tmp_path, most=8, pause=1.5)
    cancel_one(worker, "bob")
    assert not (tmp_path / "bob").exists()
    assert worker.all_end()["cid"][1] == "2"  # type: ignore[index]
    assert [path.name for path in tmp_path.iterdir()] == ["cid"]


def test_what_is_written_for_a_cancelled_one_in_this_moment_goes_while_the_round_goes_on(
    tmp_path: Path,
):
    worker = Worker(tmp_path, most=8, pause=120)
    cancel_one(worker, LATE)
    until(lambda: "late wrote" in worker.said[LATE])
    until(lambda: [path.name for path in tmp_path.iterdir()] == ["cid"])
    assert "cid" not in worker.answers
    (tmp_path / "cid" / ENOUGH).touch()
    assert worker.all_end()["cid"][1] == "2"  # type: ignore[index]
    assert [path.name for path in tmp_path.iterdir()] == ["cid"]


def test_a_folder_that_is_written_to_is_removed_whole(tmp_path: Path):
    """As by a child in the middle of a step, which asks for it only after."""
    folder, written = tmp_path / "job", threading.Event()
    folder.mkdir()

    def write() -> None:
        with contextlib.suppress(FileNotFoundError):
            for number in range(20_000):
                (folder / str(number)).write_text("of a user")
                if number == 500:
                    written.set()

    writer = threading.Thread(target=write)
    writer.start()
    written.wait()
    scratch.discard(folder)
    writer.join()
    assert not any(tmp_path.iterdir())


def cancel_one(worker: Worker, name: str) -> None:
    """Begin a round of this one and `cid`, and cancel it when the child is at it."""
    for each in (name, "cid"):
        worker.begin(each)
    until(lambda: worker.said[name])
    worker.cancelled.add(name)
    until(lambda: name in worker.answers)
    assert isinstance(worker.answers[name], Cancelled)


def until(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)
