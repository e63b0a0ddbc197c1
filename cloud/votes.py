"""What teachers think of candidates: would the user give this label, could the user write this?

In: candidates that passed the cheap filters. Out: a share of votes or a mark for each. A teacher
that votes sees the text and the user's history, never the label that is claimed.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from cloud.answers import Answers
from cloud.profiles import Item
from cloud.prompts import Ask, Pair
from cloud.tasks import Task
from cloud.teachers import Sampling, Teacher


def agreement(
    task: Task, pairs: Sequence[Pair], hands: Sequence[list[Item]], teacher: Teacher,
    answers: Answers, sampling: Sampling, seed: int,
) -> list[float]:  # fmt: skip
    """For each pair the share of votes that give its label: one vote for each hand of items."""
    asks = [
        vote(pair[0], hand, seed + number) for pair in pairs for number, hand in enumerate(hands)
    ]
    said = _answered(task, asks, teacher, answers, sampling)
    votes = len(hands)
    return [
        sum(label == pair[1] for label in said[index * votes : (index + 1) * votes]) / votes
        for index, pair in enumerate(pairs)
    ]


def marks(
    task: Task, pairs: Sequence[Pair], hand: list[Item], judge: Teacher, answers: Answers,
    sampling: Sampling, seed: int,
) -> list[int]:  # fmt: skip
    """For each pair the judge's mark, 1 to 5; 0 where it gave none."""
    asks = [mark(pair, hand, seed) for pair in pairs]
    return [int(said or 0) for said in _answered(task, asks, judge, answers, sampling)]


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
    task: Task, asks: Sequence[Ask], teacher: Teacher, answers: Answers, sampling: Sampling
) -> list[str | None]:
    replies = answers.of(teacher, task, asks, sampling)
    read = [
        teacher.read(task, ask, reply.text)[0] for ask, reply in zip(asks, replies, strict=True)
    ]
    return [pair[1] if pair else None for pair in read]
