"""The choice among candidates that passed every filter: good ones, unlike each other.

In: pairs with a quality each, and how many are wanted. Out: which to take. For a task with labels,
each label gets the share that it has among the user's own items: their habits are what is learned.
Where a label is scarce, the others are scaled down with it. Of few items the shares are a poor
guess, and a label that has not come yet has none: then they may be left to the teacher.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from cloud.likeness import vector
from cloud.profiles import Item
from cloud.prompts import Pair
from cloud.tasks import Task

Quotas = dict[str, int]
OWN = "own"
"""Labels come as often as the user gives them."""


def quotas(task: Task, train: Sequence[Item], wanted: int) -> Quotas:
    """How many are wanted of each label, as often as in `train` (largest remainders); of "", which
    stands for all, for free text and where `train` is empty.
    """
    if not task.labels or not train:
        return {"": wanted}
    counts = Counter(item.output for item in train)
    exact = {label: wanted * count / len(train) for label, count in counts.items()}
    shares = {label: int(value) for label, value in exact.items()}
    by_remainder = sorted(exact, key=lambda label: exact[label] - shares[label], reverse=True)
    for label in by_remainder[: wanted - sum(shares.values())]:
        shares[label] += 1
    return shares


def missing(wanted: Quotas, pairs: Sequence[Pair]) -> Quotas:
    """How many more of each label would fill the quotas."""
    found = Counter(_label(wanted, pair) for pair in pairs)
    return {label: max(0, count - found[label]) for label, count in wanted.items()}


def places(wanted: Quotas, pairs: Sequence[Pair], real: Sequence[Item]) -> Quotas:
    """How many of each label are taken: the most for which no label gains on the others.

    At most one item more than its share among the real ones, of real and synthetic ones together;
    where a label is scarce, there are fewer of the others, too. Each may come once, whatever else
    is missing.
    """
    found = Counter(_label(wanted, pair) for pair in pairs)
    taken = {label: min(count, found[label]) for label, count in wanted.items()}
    if "" in wanted:
        return taken
    own = Counter(item.output for item in real)
    while True:
        total = sum(taken.values())
        most = {label: 1 + own[label] * total // len(real) for label in taken}
        if all(taken[label] <= most[label] for label in taken):
            return taken
        taken = {label: min(taken[label], most[label]) for label in taken}


def choose(
    wanted: Quotas, pairs: Sequence[Pair], qualities: Sequence[float], real: Sequence[Item]
) -> list[int]:
    """Indices of the pairs to take, in increasing order.

    Greedy, after maximal marginal relevance (Carbonell and Goldstein 1998): the next one is that
    with the highest quality times distance to the nearest text taken so far, real ones included.
    """
    import numpy as np

    if not pairs:
        return []
    vectors: Any = np.stack([vector(pair[0]) for pair in pairs])
    known: Any = np.stack([vector(item.input) for item in real])
    nearest: Any = (vectors @ known.T).max(axis=1)
    open_places, taken = places(wanted, pairs, real), list[int]()
    while True:
        free = [
            index
            for index, pair in enumerate(pairs)
            if index not in taken and open_places.get(_label(wanted, pair), 0) > 0
        ]
        if not free:
            return sorted(taken)
        value = {i: round(qualities[i] * (1 - float(nearest[i])), 6) for i in free}
        best = max(free, key=value.__getitem__)
        taken.append(best)
        open_places[_label(wanted, pairs[best])] -= 1
        nearest = np.maximum(nearest, vectors @ vectors[best])


def _label(wanted: Quotas, pair: Pair) -> str:
    return "" if "" in wanted else pair[1]
