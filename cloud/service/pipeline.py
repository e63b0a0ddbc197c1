"""What operations are made of: stages in order, and what a stage sees of its operation.

Plain data and a few functions; knows neither the engine that runs it (`jobs.py`) nor the loop of
tries around a stage (`runner.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from google.protobuf.message import Message
from sqlalchemy import Row

from cloud.service import child
from cloud.service.errors import Cancelled
from cloud.service.turns import Turn, Turns
from cloud.service.vault import Space

M = TypeVar("M", bound=Message)
Result = dict[str, Any]


@dataclass(frozen=True)
class Stage:
    """One part of a pipeline.

    number: of `pocketune.v1.Stage`. share: of the operation's time, for the progress; the shares
    of a pipeline sum to 1. run: does it; what it returns is JSON, holds nothing of the user, and
    is given to the stages after it.
    """

    name: str
    number: int
    share: float
    run: Callable[[Job], Result]


@dataclass(frozen=True)
class Pipeline:
    """How the operations of one method are done. answer: their response, from all results.

    in_turn: they count among the jobs that a worker runs at a time, and wait for their turn.
    """

    stages: Sequence[Stage]
    answer: Callable[[Job], Message]
    in_turn: bool = True


@dataclass
class Job:
    """What a stage sees of the operation it works for.

    folder: its own on this host, for this attempt, gone when it ends. results: of the stages
    before, by name. counters: shown in the operation's metadata. held: what the stage holds on to
    while it runs, such as a base model of this host. turn: what it needs to begin a stage.
    """

    operation: Row[Any]
    space: Space
    threads: int
    folder: Path
    results: dict[str, Result] = field(default_factory=dict[str, Result])
    counters: dict[str, float] = field(default_factory=dict[str, float])
    report: Callable[[str, float], None] = lambda message, share: None
    is_wanted: Callable[[], bool] = lambda: True
    held: ExitStack = field(default_factory=ExitStack)
    turn: Turn = field(default_factory=lambda: Turn(Turns(1), "", None, 0))

    def request(self, message: M) -> M:
        """Fill `message` with the request that began the operation."""
        context = f"operations/{self.operation.uid}/request"
        message.ParseFromString(self.space.unseal(self.operation.sealed_request, context))
        return message

    def value(self, name: str) -> Any:
        """What the last stage that returned something of this name has returned."""
        return next(r[name] for r in reversed(self.results.values()) if name in r)

    def in_child(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run a heavy function in its own process; it ends when the operation is cancelled.

        Raises:
            Cancelled: the operation is no longer wanted.
        """
        answer = child.run(
            function, arguments, self.threads, self.folder, self.report, self.is_wanted
        )
        self.check()
        return answer

    def take_turn(self) -> None:
        """Wait until it is this one's turn; nothing, where it is.

        Raises:
            Cancelled: the operation is no longer wanted.
        """
        if not self.turn.take(self.is_wanted):
            raise Cancelled("cancelled")

    def check(self) -> None:
        """Stop here if the operation is no longer wanted; long stages call it now and then.

        Raises:
            Cancelled: it was cancelled, erased or taken over.
        """
        if not self.is_wanted():
            raise Cancelled("cancelled")
