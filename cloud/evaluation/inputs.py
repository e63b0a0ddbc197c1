"""What an evaluation is made with, checked before anything is paid for or computed.

In: a config, Profiles, models. Out: the users who can be scored, each with a partner for the
control.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from cloud.augment import AugmentConfig, check_consent
from cloud.evaluation import retrieval
from cloud.evaluation.arms import DEFAULT, OTHER, TASK, TEACHER, Arm, parse_arms, parse_ratios
from cloud.profiles import Profile, Question, read_profile
from cloud.randomness import seed_problems
from cloud.task_adapter import check_contributors
from cloud.teachers import Calls, Teacher
from cloud.train import TrainConfig
from protos.artifacts import Artifact, digest_json
from protos.base_model import BaseModel
from protos.errors import InputError

Made = dict[tuple[str, str], Artifact | None]
"""What was made, by the arm's data and the user's name."""


Device = Callable[[Artifact | None, Sequence[str], int], float]
"""Milliseconds of an answer of so many tokens at most to these questions, by an adapter or none."""


@dataclass(frozen=True)
class EvaluateConfig:
    """What is compared.

    arms, ratios: see `arms.py`. nearest: items that +bm25 puts into a prompt. teacher_shots: items
    that the teacher is shown with a question.
    """

    arms: str = ",".join(DEFAULT)
    ratios: str = ""
    nearest: int = retrieval.NEAREST
    teacher_shots: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        low = [
            f"{name} is {getattr(self, name)}, expected 1 or more"
            for name in ("nearest", "teacher_shots")
            if getattr(self, name) < 1
        ]
        if wrong := [*low, *seed_problems(self.seed)]:
            raise InputError("; ".join(wrong))
        parse_arms(self.arms, parse_ratios(self.ratios))


@dataclass(frozen=True)
class Person:
    """One user. asked: the questions whose answer is known. folder: where the user's pieces go."""

    profile: Artifact
    user: Profile
    asked: list[Question]
    folder: Path

    @property
    def name(self) -> str:
        return self.user.user


@dataclass(frozen=True)
class Means:
    """What an evaluation is made with.

    others: Profiles of users who are not evaluated. device: what times answers by the phone's
    runtime; that is no part of `cloud`.
    """

    base: BaseModel
    teacher: Teacher
    augmenting: AugmentConfig
    training: TrainConfig
    others: Sequence[Artifact] = ()
    judge: Teacher | None = None
    calls: Calls | None = None
    threads: int = 1
    device: Device | None = None


def context(means: Means) -> int:
    """Tokens of a question and its answer together."""
    return min(means.training.max_length, means.base.max_context)


def gather(profiles: Sequence[Artifact], out: Path, missing: dict[str, str]) -> list[Person]:
    """Those who can be scored; the others go into `missing`, with the reason."""
    people: list[Person] = []
    for profile in profiles:
        user = read_profile(profile)
        asked = [question for question in user.questions if question.output is not None]
        if asked:
            people.append(Person(profile, user, asked, user_folder(out, user.user)))
        else:
            missing[user.user] = "no held-out question with a known answer"
    return people


def really_others(people: Sequence[Person], others: Sequence[Artifact]) -> list[Artifact]:
    """Those of the other users who really are others, with items for the same task."""
    names = {person.name for person in people}
    task = people[0].user.task.name if people else ""
    return [
        profile
        for profile in others
        if profile.config["user"] not in names and profile.config["task"]["name"] == task
    ]


def check(
    arms: Sequence[Arm], people: Sequence[Person], others: Sequence[Artifact], means: Means,
    out: Path,
) -> None:  # fmt: skip
    """Refuse before anything is paid for or computed.

    Raises:
        InputError: see `evaluate`.
    """
    if not people:
        raise InputError("nobody to evaluate: no user has a held-out question with a known answer")
    _check_one_of_each(people)
    names = [person.name for person in people]
    if has(arms, OTHER) and len(people) == 1:
        raise InputError(
            f"arm {OTHER}: one user only ({names[0]}), so there is no other; leave it out of --arms"
        )
    if has(arms, TASK) and not others:
        raise InputError(
            f"arm {TASK}: nobody with this task besides those evaluated; name some with --others, "
            "or leave it out of --arms"
        )
    if has(arms, TASK):
        check_contributors(others, out / "task")
    if any(arm.retrieves for arm in arms):
        retrieval.check()
    if any(arm.name == TEACHER or arm.data not in ("", "real", TASK) for arm in arms):
        for person in people:
            for asked in filter(None, (means.teacher, means.judge)):
                check_consent(person.profile, asked)


def _check_one_of_each(people: Sequence[Person]) -> None:
    """Refuse a user or a question that is there twice, and users of several tasks."""
    names = [person.name for person in people]
    ids = [question.id for person in people for question in person.asked]
    for what, values in (("user", names), ("question", ids)):
        if len(set(values)) < len(values):
            twice = next(value for value in values if values.count(value) > 1)
            raise InputError(f"{what} {twice!r} is there twice; evaluate each once")
    tasks = {person.user.task.name for person in people}
    if len(tasks) > 1:
        raise InputError(
            f"users of several tasks ({', '.join(sorted(tasks))}); one at a time, please"
        )


def has(arms: Sequence[Arm], name: str) -> bool:
    """Whether an arm is among these."""
    return any(arm.name == name for arm in arms)


def derangement(items: Mapping[str, int], seed: int) -> dict[str, str]:
    """For each user another one with as many items, or nearly; nobody twice.

    In seeded order, one cycle through each group of `_alike`. items: how many, by user.
    """
    lot = random.Random(f"others {seed}").sample(list(items), len(items))
    return {
        name: group[(place + 1) % len(group)]
        for group in _alike(lot, items)
        for place, name in enumerate(group)
    }


def _alike(names: Sequence[str], items: Mapping[str, int]) -> list[list[str]]:
    """Users with equally many items together; who is alone joins the group of the nearest.

    That is the one above or below of which the farthest is nearest, the smaller one of two such.
    """
    ranked = sorted(names, key=items.__getitem__)
    groups = [list(each) for _, each in groupby(ranked, items.__getitem__)]
    for single in [group for group in groups if len(group) == 1]:
        if len(single) > 1 or len(groups) == 1:
            continue  # another one has joined meanwhile, or there is nobody else
        place = groups.index(single)
        groups.remove(single)
        beside = groups[max(place - 1, 0) : place + 1]
        count = items[single[0]]
        min(beside, key=lambda g: (max(abs(items[n] - count) for n in g), len(g))).extend(single)
    return groups


def user_folder(out: Path, user: str) -> Path:
    """Where one user's pieces go; a name that is no file name goes by its digest."""
    plain = re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}", user)
    return out / "users" / (user if plain else f"user-{digest_json(user)[:16]}")
