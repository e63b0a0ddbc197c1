"""Answers that are one of several texts, token by token: what may come next.

In: token ids. Out: token ids. Whoever answers, in the cloud or as the phone does, keeps to it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence


def following(answers: Iterable[Sequence[int]]) -> dict[tuple[int, ...], set[int]]:
    """For each beginning of the answers, the empty one too, the ids that go on to one of them.

    answers: ids of each, with the one that ends it.
    """
    found: defaultdict[tuple[int, ...], set[int]] = defaultdict(set)
    for ids in answers:
        for place, token in enumerate(ids):
            found[tuple(ids[:place])].add(token)
    return dict(found)
