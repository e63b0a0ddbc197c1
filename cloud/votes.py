"""What teachers think of candidates: would the user give this label, could the user write this?

In: candidates that passed the cheap filters. Out: a share of votes or a mark for each. A teacher
that votes sees the text and the user's history, never the label that is claimed.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from cloud.answers import Answers
from cloud.profiles import Item
from cloud.prompts import JUDGED, Ask, Pair
from cloud.tasks import Task
from cloud.teachers import Sampling, Teacher


@dataclass
class Tally:
    """How many votes or marks were asked for, and how many could not be read; the first of them."""

    asked: int = 0
    unread: int = 0
    example: str = ""

    @property
    def is_in_vain(self) -> bool:
        """Whether some were asked for, and none could be read."""
        return 0 < self.asked == self.unread

    def add(self, text: str, is_read: bool) -> None:
        """Count one reply."""
        self.asked += 1
        if not is_read:
            self.unread += 1
            self.example = self.example or text


def agreement(
    task: Task, pairs: Sequence[Pair], hands: Sequence[list[Item]], teacher: Teacher,
    answers: Answers, sampling: Sampling, seed: int, tally: Tally,
) -> list[float]:  # fmt: skip
    """For each pair the share of votes that give its label: one vote for each hand of items.

    A vote that cannot be read gives none. It is counted in `tally`.
    """
    asks = [
        vote(pair[0], hand, seed + number) for pair in pairs for number, hand in enumerate(hands)
    ]
    said = _answered(task, asks, teacher, answers, sampling, task.labels, tally)
    votes = len(hands)
    return [
        sum(label == pair[1] for label in said[index * votes : (index + 1) * votes]) / votes
        for index, pair in enumerate(pairs)
    ]


def marks(
    task: Task, pairs: Sequence[Pair], hand: list[Item], judge: Teacher, answers: Answers,
    sampling: Sampling, seed: int, tally: Tally,
) -> list[int]:  # fmt: skip
    """For each pair the judge's mark, 1 to 5; 0, counted in `tally`, where none can be read."""
    asks = [mark(pair, hand, seed) for pair in pairs]
    said = _answered(task, asks, judge, answers, sampling, JUDGED, tally)
    return [int(each or 0) for each in said]


def vote(text: str, hand: list[Item], seed: int) -> Ask:
    """The request for one vote. What is asked depends on nothing but the text and these."""
    return Ask("vote", tuple(hand), text=text, seed=seed + _spread(text))


def mark(pair: Pair, hand: list[Item], seed: int) -> Ask:
    """The request for one mark."""
    seed += _spread(" ".join(pair))
    return Ask("judge", tuple(hand), text=pair[0], output=pair[1], seed=seed)


def _spread(text: str) -> int:
    """Seeds for each text: below 2^31, with room for each to have 128."""
    return zlib.crc32(text.encode("utf-8", "surrogatepass")) % (1 << 23) << 7


def _answered(
    task: Task, asks: Sequence[Ask], teacher: Teacher, answers: Answers, sampling: Sampling,
    allowed: Sequence[str], tally: Tally,
) -> list[str | None]:  # fmt: skip
    said: list[str | None] = []
    for ask, reply in zip(asks, answers.of(teacher, task, asks, sampling), strict=True):
        pair = teacher.read(task, ask, reply.text)[0]
        said.append(pair[1] if pair and pair[1] in allowed else None)
        tally.add(reply.text, said[-1] is not None)
    return said
