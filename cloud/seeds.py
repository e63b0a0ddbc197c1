"""Which of a user's items a teacher is shown, and what it is asked with them, request by request.

In: the items that training may see. Out: endless requests in a mix of strategies. Each selection
covers what the user writes, each item is shown equally often, and labels
come as the user gave them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from cloud.likeness import vector
from cloud.profiles import Item
from cloud.prompts import STRATEGIES, Ask, Strategy
from cloud.tasks import Task
from protos.errors import InputError

_PER_HAND = 8
AUTO = "auto"
"""`label` where labels are to come as often as among the user's own items, else `new`."""


def parse_strategies(text: str) -> dict[Strategy, float]:
    """`new=2,paraphrase=1` as shares of the requests; a name alone has the share 1, `auto` none.

    Raises:
        InputError: an unknown name, or a share that is no positive number.
    """
    shares: dict[Strategy, float] = {}
    if text == AUTO:
        return shares
    for part in text.split(","):
        name, _, share = (piece.strip() for piece in part.partition("="))
        try:
            value = float(share or 1)
        except ValueError:
            value = 0.0
        if name not in STRATEGIES or name in shares or not 0 < value < 1e6:
            raise InputError(
                f"strategies: {part.strip()!r}, expected {AUTO}, or each of "
                f"{', '.join(STRATEGIES)} at most once, with a share above 0, such as "
                "new=2,paraphrase=1"
            )
        shares[name] = value
    return shares


def shares_for(task: Task, text: str, keeps_labels: bool = True) -> dict[Strategy, float]:
    """The shares of one task's requests.

    keeps_labels: whether labels are to come as among the user's own items; see `AUTO`.

    Raises:
        InputError: `label` without labels, or `paraphrase` where the output repeats the input.
    """
    shares = parse_strategies(text) or {"label" if task.labels and keeps_labels else "new": 1.0}
    if "label" in shares and not task.labels:
        raise InputError(
            f"strategies: label, but {task.name} has no labels; take new or paraphrase"
        )
    if "paraphrase" in shares and task.is_beginning:
        raise InputError(
            f"strategies: paraphrase, but an input of {task.name} is the beginning of its output "
            "and cannot change alone; take new"
        )
    return shares


def requests(
    task: Task,
    train: Sequence[Item],
    shares: Mapping[Strategy, float],
    shots: int,
    max_chars: int,
    per_ask: int,
    seed: int,
    is_wanted: Callable[[str], bool],
) -> Iterator[Ask]:
    """Endless requests, as many of each strategy as its share says.

    A selection of items serves until some eight new ones were asked for with it: a local teacher
    reads it once. is_wanted: whether, at this moment, more of a label is wanted: `label` asks for
    no others.

    Raises:
        InputError: no item is short enough to be shown.
    """
    items = showable(train, max_chars)
    hands = choose_shots(items, shots, seed, max_chars)
    subjects, labels = _deck(items, f"subjects {seed}"), _deck(train, f"labels {seed}")
    used = dict.fromkeys(shares, 0)
    number, hand = 0, tuple[Item, ...]()
    while True:
        number += 1
        kind = max(
            shares, key=lambda name: shares[name] * number - used[name] * sum(shares.values())
        )
        used[kind] += 1
        if (number - 1) % (_PER_HAND // per_ask or 1) == 0:
            hand = tuple(next(hands))
        own = seed + number
        if kind == "paraphrase":
            subject = next(subjects)
            yield Ask(kind, hand, subject.input, subject.output, seed=own)
        elif kind == "label":
            output = next(item.output for item in labels if is_wanted(item.output))
            yield Ask(kind, hand, output=output, count=per_ask, seed=own)
        else:
            yield Ask(kind, hand, count=per_ask, seed=own)


def showable(train: Sequence[Item], max_chars: int) -> list[Item]:
    """The items that fit into a request.

    Raises:
        InputError: none does.
    """
    items = [item for item in train if _size(item) <= max_chars]
    if not items:
        shortest = min(map(_size, train))
        raise InputError(
            f"the shortest item has {shortest:,} characters, and at most {max_chars:,} are shown "
            "to a teacher at once; take a higher --max-chars and a teacher with a long context"
        )
    return items


def choose_shots(
    train: Sequence[Item], shots: int, seed: int, max_chars: int = 2**31
) -> Iterator[list[Item]]:
    """Endless selections of at most `shots` items and `max_chars` characters, none twice in one.

    Each takes from the items shown least often so far the one farthest from those it has already
    (greedy k-center, Gonzalez 1985), so it spans what the user writes, and no item is shown more
    than once more often than another. Every selection has an order of its own.
    """
    import numpy as np

    rng = random.Random(seed)
    vectors: Any = np.stack([vector(f"{item.input} {item.output}") for item in train])
    used = [0] * len(train)
    while True:
        hand: list[int] = []
        nearest: Any = np.full(len(train), -1.0)
        room = max_chars
        while len(hand) < min(shots, len(train)):
            rest = [i for i in range(len(train)) if i not in hand]
            least = min(used[i] for i in rest)
            rest = [i for i in rest if used[i] == least]
            rng.shuffle(rest)
            likeness = [round(float(value), 6) for value in nearest]
            pick = min(rest, key=likeness.__getitem__)
            room -= _size(train[pick])
            if room < 0 and hand:
                break
            hand.append(pick)
            used[pick] += 1
            nearest = np.maximum(nearest, vectors @ vectors[pick])
        rng.shuffle(hand)
        yield [train[i] for i in hand]


def _deck(items: Sequence[Item], seed: str) -> Iterator[Item]:
    """Shuffled decks of the items, one after the other: shares stay as they are in the items."""
    rng = random.Random(seed)
    while True:
        yield from rng.sample(list(items), len(items))


def _size(item: Item) -> int:
    return len(item.input) + len(item.output)
