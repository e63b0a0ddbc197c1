"""Scores: of each arm over all questions, of each user, and what each arm gains over others.

In: answers by arm and user. Out: what stands in `evaluation.json`, as plain values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from cloud.augment import split
from cloud.evaluation.arms import OTHER, Arm
from cloud.evaluation.statistics import gain
from cloud.metrics import measures
from protos.artifacts import Artifact, read_json

if TYPE_CHECKING:
    from cloud.evaluation.inputs import Person

RESULTS_FILE = "evaluation.json"
FORM = 3
"""Of what is in it, and by what rules: an Evaluation of another form is made anew."""
GOLDS_FILE = "golds.json"
"""The users' own answers to exactly the questions that were asked, in LaMP's format."""
MAIN = {"classification": "accuracy", "rating": "mae", "generation": "rouge-L"}
"""The measure that tables and plots go by, for each kind of answer."""
LOWER_IS_BETTER = ("mae", "rmse")
COMPARED_WITH = ("base", "real", "real-repeated", OTHER)
Said = Mapping[tuple[str, str], Sequence[str]]


def results(arms: Sequence[Arm], people: Sequence[Person], said: Said, seed: int) -> dict[str, Any]:
    """All scores and gains.

    An arm's `pooled` scores are LaMP's own, over all questions of all users at once. Gains are over
    users: each counts once, however many questions it has. `odd`: what their imports left out.
    """
    task = people[0].user.task
    users = [_user(person, arms, said) for person in people]
    golds = [str(question.output) for person in people for question in person.asked]
    pooled = {
        arm.name: measures(
            task, [text for person in people for text in said[arm.name, person.name]], golds
        )
        for arm in arms
    }
    metrics = list(pooled[arms[0].name])
    return {
        "task": task.name,
        "main": MAIN[task.answer_kind],
        "lower_is_better": [name for name in metrics if name in LOWER_IS_BETTER],
        "arms": {
            arm.name: {"about": arm.about, "pooled": pooled[arm.name]} for arm in arms
        },
        "gains": {
            metric: {
                arm.name: {
                    over.name: asdict(_gain(users, arm, over, metric, seed))
                    for over in arms
                    if over.name in COMPARED_WITH and over is not arm
                }
                for arm in arms
            }
            for metric in metrics
        },
        "users": users,
        "odd": {each.name: each.user.left_out for each in people if each.user.left_out},
    }  # fmt: skip


def read_results(evaluation: Artifact) -> dict[str, Any]:
    """What `results` said, and what it was made with."""
    return read_json(evaluation.file(RESULTS_FILE))


def _user(person: Person, arms: Sequence[Arm], said: Said) -> dict[str, Any]:
    golds = [str(question.output) for question in person.asked]
    train, _ = split(person.user.items)
    return {
        "user": person.name,
        "items": len(person.user.items),
        "trained_on": len(train),
        "questions": len(golds),
        "values": {
            arm.name: measures(person.user.task, said[arm.name, person.name], golds)
            for arm in arms
        },
    }  # fmt: skip


def _gain(users: Sequence[dict[str, Any]], arm: Arm, over: Arm, metric: str, seed: int) -> Any:
    ours, theirs = (
        [user["values"][each.name][metric] for user in users] for each in (arm, over)
    )  # fmt: skip
    return gain(ours, theirs, metric in LOWER_IS_BETTER, seed)
