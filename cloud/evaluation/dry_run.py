"""What an evaluation would send to its teachers first, and nothing is sent.

In: what `evaluate` takes. Out: messages, users in their order. What comes after an augmentation's
first round depends on the answers to it; the arm `teacher` is asked all that is here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cloud import augment
from cloud.evaluation.answering import teacher_asks
from cloud.evaluation.arms import TASK, TEACHER, parse_arms, parse_ratios
from cloud.evaluation.datasets import Datasets
from cloud.evaluation.inputs import EvaluateConfig, Means, check, gather, has, really_others
from protos.artifacts import Artifact


def dry_run(
    profiles: Sequence[Artifact], means: Means, out: Path, config: EvaluateConfig
) -> Iterator[dict[str, Any]]:
    """Objects with `user`, `task`, what it is `for`, and what `augment.dry_run` gives or `sent`.

    Raises:
        InputError: see `evaluate`: what it would refuse, such as users without consent.
    """
    arms = parse_arms(config.arms, parse_ratios(config.ratios))
    people = gather(profiles, out, {})
    check(arms, people, really_others(people, means.others), means, out)
    wanted = dict.fromkeys(arm.data for arm in arms if arm.data not in ("", "real", TASK))
    for person in people:
        of = {"user": person.name, "task": person.user.task.name}
        own = Datasets(
            person.profile, means.teacher, person.folder, means.augmenting,
            parse_ratios(config.ratios),
        )  # fmt: skip
        for augmenting in dict.fromkeys(map(own.augmentation, wanted)):
            for sent in augment.dry_run(person.profile, means.teacher, augmenting, means.judge):
                row = sent if isinstance(sent, dict) else {"sent": sent}
                yield {**of, "for": f"augment, {augmenting.per_real:g} for each real item", **row}
        if has(arms, TEACHER):
            teacher, asks = teacher_asks(person, means, config)
            for ask in asks:
                yield {**of, "for": "teacher", "sent": teacher.prompt(person.user.task, ask)}
