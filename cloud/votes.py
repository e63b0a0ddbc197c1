"""What teachers think of candidates: would the user give this label, could the user write this?

In: candidates that passed the cheap filters. Out: a share of votes or a mark for each. A teacher
that votes sees the text and the user's history, never the label that is claimed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cloud.answers import Answers
from cloud.profiles import Item
from cloud.prompts import Ask, Pair
from cloud.tasks import Task
from cloud.teachers import Sampling, Teacher


def agreement(
    task: Task, pairs: Sequence[Pair], votes: int, hands: Iterator[list[Item]], teacher: Teacher,
    answers: Answers, sampling: Sampling, seed: int,
) -> list[float]:  # fmt: skip
    """For each pair the share of `votes` that give its label; each vote sees other items."""
    asks = [
        Ask("vote", tuple(next(hands)), text=pair[0], seed=seed + index * votes + vote)
        for index, pair in enumerate(pairs)
        for vote in range(votes)
    ]
    said = _answered(task, asks, teacher, answers, sampling)
    return [
        sum(vote == pair[1] for vote in said[index * votes : (index + 1) * votes]) / votes
        for index, pair in enumerate(pairs)
    ]


def marks(
    task: Task, pairs: Sequence[Pair], hands: Iterator[list[Item]], judge: Teacher,
    answers: Answers, sampling: Sampling, seed: int,
) -> list[int]:  # fmt: skip
    """For each pair the judge's mark, 1 to 5; 0 where it gave none."""
    asks = [
        Ask("judge", tuple(next(hands)), text=pair[0], output=pair[1], seed=seed + index)
        for index, pair in enumerate(pairs)
    ]
    return [int(mark or 0) for mark in _answered(task, asks, judge, answers, sampling)]


def _answered(
    task: Task, asks: Sequence[Ask], teacher: Teacher, answers: Answers, sampling: Sampling
) -> list[str | None]:
    replies = answers.of(teacher, task, asks, sampling)
    read = [
        teacher.read(task, ask, reply.text)[0] for ask, reply in zip(asks, replies, strict=True)
    ]
    return [pair[1] if pair else None for pair in read]
