"""Steps of several jobs in one child process, where one process does them better than several.

In: jobs of this worker that reach the same step at about the same time, each in the thread of its
own operation. Out: each one's own end. Whoever finds nobody at it begins a round with all who are
there, or come within half a minute; who comes later waits for the next round. Who waits gives up
its turn, so that the next one can come, and a round needs one turn however many are in it. Only
the child is shared: lease, attempt, folder, checkpoint, progress, error and result stay each
operation's own, and each goes on as soon as its own part is there. Who is cancelled leaves at once
and takes its folder along, by which the child knows it. A worker that dies takes all of a round
with it; each operation is then put back and goes on from its own checkpoint, as after any step.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from cloud.service import child, scratch
from cloud.service.pipeline import Job
from protos.artifacts import MANIFEST
from protos.errors import PocketuneError

Key = tuple[str, ...]
_POLL_S = 0.2
_GATHER_S, _MOST_GATHER_S = 1.0, 30.0
"""How long the first one waits before a round: at least, and where others are on their way."""
_log = structlog.get_logger(__name__)


@dataclass(eq=False)
class _Waiting:
    """One job in a round. out: the artifact that its part makes."""

    job: Job
    member: Any
    out: Path
    ended: threading.Event = field(default_factory=threading.Event)
    error: Exception | None = None
    has_left: bool = False

    def is_in(self) -> bool:
        """Whether the round goes on for this one."""
        return not self.has_left and self.job.is_wanted()

    def is_made(self) -> bool:
        """An artifact appears whole or not at all."""
        return (self.out / MANIFEST).is_file()


class Together:
    """The rounds of one worker. most: members of a round; with 1 each job has its own child."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._waiting: dict[Key, list[_Waiting]] = defaultdict(list)
        self._at_it: set[Key] = set()

    def run(
        self,
        key: Key,
        job: Job,
        member: Any,
        out: Path,
        function: Callable[..., Sequence[PocketuneError | None]],
        *arguments: Any,
    ) -> None:
        """Have `function(members, *arguments, threads, progress)` make the artifact at `out`.

        key: jobs of the same key share a child, so it names all that `arguments` hold. The function
        gives each member's error or None; a message of its progress begins with the member's number
        and a space; it asks `asked(folder)` between two steps of a member.

        Raises:
            Cancelled: the operation is no longer wanted; the others go on.
            PocketuneError: this member's own error.
        """
        mine = _Waiting(job, member, out)
        if mine.is_made():  # an earlier try of this attempt came so far
            return
        if self._most > 1:
            self._join(key, mine, function, arguments)
            if mine.error:
                raise mine.error
            if mine.is_made():
                return
        # Alone: by the settings, or because the others' child failed as a whole.
        job.take_turn()
        report = job.report
        job.report = lambda message, share: report(message.partition(" ")[2], share)
        try:
            [error] = job.in_child(function, [member], *arguments, job.threads)
        finally:
            job.report = report
        if error:
            raise error

    def _join(
        self, key: Key, mine: _Waiting, function: Callable[..., Any], arguments: tuple[Any, ...]
    ) -> None:
        """Wait in a round until this member's part has ended, well or not."""
        mine.job.turn.came_to_training = True
        mine.job.turn.give()
        with self._lock:
            self._waiting[key].append(mine)
            if key not in self._at_it:
                self._at_it.add(key)
                given = (key, function, arguments)
                threading.Thread(target=self._rounds, args=given, daemon=True).start()
        try:
            while not (mine.ended.wait(_POLL_S) or mine.is_made()):
                mine.job.check()
            mine.job.check()
        except BaseException:
            self._leave(key, mine)
            raise

    def _leave(self, key: Key, mine: _Waiting) -> None:
        """Leave out this one: its folder goes, and the child asks for it between two steps."""
        with self._lock:
            if mine in self._waiting[key]:
                self._waiting[key].remove(mine)
                return
        scratch.discard(mine.job.folder)
        mine.has_left = True

    def _rounds(self, key: Key, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        time.sleep(_GATHER_S)
        while first := self._first(key):
            self._gather(key, first)
            with first.job.turn.beside() as turn:
                if turn.take(partial(self._is_waiting, key, first)) and (group := self._next(key)):
                    _round(group, function, arguments)

    def _first(self, key: Key) -> _Waiting | None:
        with self._lock:
            if self._waiting[key]:
                return self._waiting[key][0]
            self._at_it.discard(key)
            del self._waiting[key]
            return None

    def _gather(self, key: Key, first: _Waiting) -> None:
        """Wait as long as others come, and one more may be in the round."""
        until = time.monotonic() + _MOST_GATHER_S
        while time.monotonic() < until and self._is_waiting(key, first):
            if len(self._waiting[key]) >= self._most or not first.job.turn.others_come():
                return
            time.sleep(_POLL_S)

    def _is_waiting(self, key: Key, one: _Waiting) -> bool:
        with self._lock:
            return one in self._waiting[key]

    def _next(self, key: Key) -> list[_Waiting]:
        with self._lock:
            group = self._waiting[key][: self._most]
            del self._waiting[key][: self._most]
        return group


def _round(
    group: Sequence[_Waiting], function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    """One child for all. If it fails as a whole nobody is told an error: each tries alone."""
    first = group[0].job
    threads = first.threads  # those of one job, as the round needs one turn

    def told(message: str, share: float) -> None:
        number, _, text = message.partition(" ")
        group[int(number)].job.report(text, share)

    def is_going() -> bool:
        _clear(group)
        return any(each.is_in() for each in group)

    given = ([each.member for each in group], *arguments, threads)
    ends: list[tuple[_Waiting, Exception | None]] = [(each, None) for each in group]
    try:
        errors = child.run(function, given, threads, first.folder, told, is_going)
        ends = list(zip(group, errors, strict=True))
    except Exception as error:  # whatever it is, it is told to somebody or tried again
        _log.warning("steps failed together", members=len(group), error=type(error).__name__)
        if len(group) == 1:
            ends = [(group[0], error)]
    _clear(group)
    for each, error in ends:
        each.error = error
        each.ended.set()


def _clear(group: Sequence[_Waiting]) -> None:
    """Remove what the child has begun to write for one who left just before."""
    for each in group:
        if each.has_left:
            scratch.discard(each.job.folder)


def asked(folder: Path) -> Callable[[], bool]:
    """In the child: whether the job with this folder is still in."""
    return folder.exists
