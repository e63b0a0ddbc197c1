"""Turns: few of the jobs that a worker holds are at work at a time; the others wait inside of it.

In: jobs as the worker takes them, more than may be at work. Out: a `Turn` for each, which it takes
before it works, and gives up where it waits for others to be trained with. So a worker needs the
memory of `at_once` jobs, and yet has several at hand that wait for the same base.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager

_POLL_S = 0.25


class Turns:
    """Those of one worker. at_once: jobs that are at work at a time."""

    def __init__(self, at_once: int) -> None:
        self._free = at_once
        self._last = ""
        self._change = threading.Condition()
        self._present: list[Turn] = []
        self._waiting: list[Turn] = []

    @contextmanager
    def joined(self, tenant: str, base_uid: str | None, since: int) -> Generator[Turn]:
        """A job's own turns for as long as this worker has it.

        base_uid: what it trains for. since: when it was created; the oldest goes first.
        """
        turn = Turn(self, tenant, base_uid, since)
        with self._change:
            self._present.append(turn)
        try:
            yield turn
        finally:
            turn.give()
            with self._change:
                self._present.remove(turn)

    def take(self, turn: Turn, is_wanted: Callable[[], bool]) -> bool:
        """See `Turn.take`."""
        with self._change:
            self._waiting.append(turn)
        try:
            while is_wanted():
                with self._change:
                    if self._free and self._next() is turn:
                        self._free -= 1
                        self._last = turn.tenant
                        return True
                    self._change.wait(_POLL_S)
            return False
        finally:
            with self._change:
                self._waiting.remove(turn)
                self._change.notify_all()

    def give(self) -> None:
        """One is free again."""
        with self._change:
            self._free += 1
            self._change.notify_all()

    def others_come(self, turn: Turn) -> bool:
        """See `Turn.others_come`."""
        with self._change:
            return turn.base_uid is not None and any(
                (each.tenant, each.base_uid) == (turn.tenant, turn.base_uid)
                and not each.came_to_training
                for each in self._present
            )

    def _next(self) -> Turn:
        """The oldest job's, but of another tenant than the last one's where there is one."""
        return min(self._waiting, key=lambda each: (each.tenant == self._last, each.since))


class Turn:
    """A job's. came_to_training: set by it, once it waits for no stage before that any more."""

    def __init__(self, turns: Turns, tenant: str, base_uid: str | None, since: int) -> None:
        self.tenant, self.base_uid, self.since = tenant, base_uid, since
        self.came_to_training = False
        self._turns, self._held = turns, False

    def take(self, is_wanted: Callable[[], bool]) -> bool:
        """Wait until it is this one's turn, if it is not; False if it is no longer wanted."""
        self._held = self._held or self._turns.take(self, is_wanted)
        return self._held

    def give(self) -> None:
        """Let another one work, if it was this one's turn."""
        if self._held:
            self._held = False
            self._turns.give()

    def others_come(self) -> bool:
        """Whether another job of this tenant and base is still on its way to its training."""
        return self._turns.others_come(self)

    @contextmanager
    def beside(self) -> Generator[Turn]:
        """Turns for what is done for this job and others; they end with the block."""
        turn = Turn(self._turns, self.tenant, None, self.since)
        try:
            yield turn
        finally:
            turn.give()
