"""Turns: how many jobs are at work at a time, and who is next."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from cloud.service.turns import Turn, Turns


def always() -> bool:
    return True


class Jobs:
    """Jobs in threads of their own, each of which works until it is told to end."""

    def __init__(self, at_once: int) -> None:
        self.turns, self.stack = Turns(at_once), ExitStack()
        self.begun: list[str] = []
        self.threads: list[threading.Thread] = []
        self.ends: dict[str, threading.Event] = {}

    def add(self, name: str, tenant: str = "one") -> None:
        turn = self.stack.enter_context(self.turns.joined(tenant, None, len(self.threads)))
        end = self.ends[name] = threading.Event()

        def work() -> None:
            if turn.take(lambda: not end.is_set()):
                self.begun.append(name)
                end.wait(30)
                turn.give()

        self.threads.append(threading.Thread(target=work))
        self.threads[-1].start()
        time.sleep(0.05)

    def end(self, name: str) -> None:
        self.ends[name].set()
        time.sleep(0.4)


@pytest.fixture
def jobs() -> Iterator[Jobs]:
    found = Jobs(at_once=2)
    yield found
    for end in found.ends.values():
        end.set()
    for thread in found.threads:
        thread.join(30)


def test_so_many_are_at_work_and_the_oldest_is_next(jobs: Jobs):
    for name in ("a", "b", "c", "d"):
        jobs.add(name)
    assert jobs.begun == ["a", "b"]
    jobs.end("b")
    assert jobs.begun == ["a", "b", "c"]
    jobs.end("a")
    assert jobs.begun == ["a", "b", "c", "d"]


def test_another_tenant_is_next_where_there_is_one(jobs: Jobs):
    for name, tenant in (("a", "one"), ("b", "one"), ("c", "one"), ("d", "two")):
        jobs.add(name, tenant)
    jobs.end("a")
    assert jobs.begun == ["a", "b", "d"]


def test_who_is_not_wanted_any_more_waits_no_longer(jobs: Jobs):
    for name in ("a", "b", "c", "d"):
        jobs.add(name)
    jobs.end("c")
    jobs.end("a")
    assert jobs.begun == ["a", "b", "d"]


def test_what_is_done_for_several_is_as_old_as_the_first_of_them():
    turns, order = Turns(1), list[str]()
    with ExitStack() as stack:
        first, second, third = (
            stack.enter_context(turns.joined("one", "base", since)) for since in range(3)
        )  # fmt: skip
        assert third.take(always)
        common = stack.enter_context(first.beside())

        def work(name: str, turn: Turn) -> None:
            assert turn.take(always)
            order.append(name)
            turn.give()

        waiting = [("second", second), ("common", common)]
        threads = [threading.Thread(target=work, args=each) for each in waiting]
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        third.give()
        for thread in threads:
            thread.join(30)
    assert order == ["common", "second"]


def test_others_come_as_long_as_one_is_on_its_way_to_the_same_base():
    turns = Turns(1)
    with turns.joined("one", "base", 0) as mine, turns.joined("one", "other", 0):
        mine.came_to_training = True
        with turns.joined("two", "base", 0), turns.joined("one", "base", 0) as another:
            assert mine.others_come()
            another.came_to_training = True
            assert not mine.others_come()
        with turns.joined("one", "base", 0):
            assert mine.others_come()
        assert not mine.others_come()
