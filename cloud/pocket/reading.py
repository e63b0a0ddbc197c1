"""How users of the pocket world are read from their items, by one who knows its rules.

In: what items state, and their outputs. Out: the traits that explain these best. No model here.
"""

import dataclasses
import functools
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from cloud.likeness import Words, rouge_l, words
from cloud.pocket.world import TRAIN_USERS, WORLDS, sample_user
from cloud.tasks import TASKS, Kind

CROWD = 300
"""Users whose traits a reader thinks of."""
ROUNDS = 2
SEVERAL = ("adjectives", "blends", "verbs", "within", "words")
"""Traits that are several independent ones in one tuple."""
Known = tuple[Any, str]
"""What an item states, and its output."""


def likeliest(task: str, items: Sequence[Known], rng: random.Random | None = None) -> Any:
    """The traits under which the outputs are nearest to what they are.

    The search begins at the likeliest of a crowd of users, and then takes over single traits of
    others while that explains more. rng: draws where several explain as much; else the first.
    """
    others, changes = [*crowd(task)], [*_changes(task)]
    if rng:
        rng.shuffle(others)
        rng.shuffle(changes)
    best = max(others, key=lambda traits: _explained(task, traits, items))
    most = _explained(task, best, items)
    for change in changes * ROUNDS:
        changed = change(best)
        explained = _explained(task, changed, items)
        if explained > most + 1e-9:
            best, most = changed, explained
    return best


def near(kind: Kind, one: str, other: str) -> float:
    """The task's own score, with a quicker ROUGE-L."""
    if kind == "rating":
        return -abs(float(one) - float(other))
    return float(one == other) if kind == "classification" else _likeness(one, other)


@functools.cache
def crowd(task: str) -> list[Any]:
    """The traits of some users that nobody is evaluated on."""
    return [sample_user(task, number).traits for number in TRAIN_USERS[:CROWD]]


def _explained(task: str, traits: Any, items: Sequence[Known]) -> float:
    """How near the items are to what a user with these traits would have made, in sum."""
    kind = TASKS[task].kind
    return sum(near(kind, WORLDS[task].ideal(facts, traits), output) for facts, output in items)


@functools.lru_cache(maxsize=100_000)
def _likeness(one: str, other: str) -> float:
    return rouge_l(_words(one), _words(other))


@functools.lru_cache(maxsize=100_000)
def _words(text: str) -> Words:
    return words(text)


def _changes(task: str) -> Iterator[Callable[[Any], Any]]:
    """Every way to take over one trait of one of the crowd."""
    others = crowd(task)
    for field in dataclasses.fields(others[0]):
        values = list(dict.fromkeys(getattr(traits, field.name) for traits in others))
        if field.name in SEVERAL:
            for place, column in enumerate(zip(*values, strict=True)):
                for value in dict.fromkeys(column):
                    yield functools.partial(_with_one, name=field.name, place=place, value=value)
        else:
            for value in values:
                yield functools.partial(dataclasses.replace, **{field.name: value})


def _with_one(traits: Any, name: str, place: int, value: Any) -> Any:
    several = list(getattr(traits, name))
    several[place] = value
    return dataclasses.replace(traits, **{name: tuple(several)})
