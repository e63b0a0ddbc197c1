"""What teachers have answered for one user, stored as it arrives: no answer is paid for twice.

In: requests. Out: replies, those of earlier runs from their folder and only the rest from the
teacher; and what they cost. A request is known by everything that decides its answer, and by
nothing else: a run with other options finds what it has in common with those before it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cloud.prompts import Ask
from cloud.tasks import Task
from cloud.teachers import Reply, Sampling, Teacher
from protos.artifacts import digest_json, read_json, write_json


@dataclass
class Spent:
    """What one teacher was asked and has written. uncounted: replies without token counts."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    uncounted: int = 0

    def add(self, reply: Reply) -> None:
        """Count one reply."""
        self.calls += 1
        self.prompt_tokens += reply.prompt_tokens or 0
        self.completion_tokens += reply.completion_tokens or 0
        self.uncounted += reply.prompt_tokens is None


class Answers:
    """The replies in one folder: a file for each that has just come, and one for each full round.

    A file appears whole or not at all, so it can be copied at any moment. spent, without: by
    teacher, what it cost, and how many replies came without a parameter that it does not take.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, Reply] = {}
        for path in sorted(folder.glob("*.json")):
            rows: dict[str, dict[str, Any]] = read_json(path)
            self._known |= {key: Reply(**row) for key, row in rows.items()}
        self.spent: defaultdict[str, Spent] = defaultdict(Spent)
        self.without: defaultdict[str, Counter[str]] = defaultdict(Counter)

    def of(
        self, teacher: Teacher, task: Task, asks: Sequence[Ask], sampling: Sampling
    ) -> list[Reply]:
        """One reply for each request, in order.

        Raises:
            TeacherError: the teacher could not be reached or refused; what it did answer is stored.
        """
        keys = [request_key(teacher, task, ask, sampling) for ask in asks]
        wanted = dict(zip(keys, asks, strict=True))  # what is there twice is asked once
        new = [key for key in wanted if key not in self._known]
        for index, reply in teacher.write(task, [wanted[key] for key in new], sampling):
            key = new[index]
            self._known[key] = reply
            self._store(f"one-{key}", {key: reply})
        singles = [path for path in self._folder.glob("one-*.json") if path.stem[4:] in keys]
        if singles:
            self._store(f"round-{digest_json(keys)[:32]}", {key: self._known[key] for key in keys})
        for path in singles:
            path.unlink()
        for key in wanted:
            self.spent[teacher.name].add(self._known[key])
            self.without[teacher.name].update(filter(None, self._known[key].without.split(",")))
        return [self._known[key] for key in keys]

    def _store(self, name: str, replies: dict[str, Reply]) -> Path:
        path = self._folder / f"{name}.json"
        partial = path.with_suffix(".partial")
        write_json(partial, {key: asdict(reply) for key, reply in replies.items()})
        partial.rename(path)
        return path


def request_key(teacher: Teacher, task: Task, ask: Ask, sampling: Sampling) -> str:
    """A digest of what is sent, to whom, and with which seed."""
    sent = teacher.prompt(task, ask)
    return digest_json([teacher.digest, sent, ask.seed, asdict(sampling)])[:32]
