"""Evaluate: the same users' held-out questions, answered in several ways, compared user by user.

In: Profiles with questions, a base model and a teacher. Out: an Evaluation: `evaluation.json` with
every user's scores, and the answers of each arm, beside the users' own, in LaMP's own format.
Whatever is made on the way (Datasets, Adapters, answers) is kept beside it, so that a killed run
goes on, and a changed one makes only what the change concerns. Nothing but the scores is made from
a held-out answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cloud.evaluation.answering import Answered, answers_of
from cloud.evaluation.arms import OTHER, TASK, TEACHER, Arm, parse_arms, parse_ratios
from cloud.evaluation.datasets import Datasets, counts
from cloud.evaluation.inputs import (
    EvaluateConfig,
    Made,
    Means,
    Person,
    check,
    derangement,
    gather,
    has,
    really_others,
)
from cloud.evaluation.results import FORM, GOLDS_FILE, RESULTS_FILE, results
from cloud.lamp import write_predictions
from cloud.task_adapter import ADAPTER, task_dataset
from cloud.teachers import Calls
from cloud.train import Member, train_many
from protos.artifacts import (
    Artifact,
    create,
    digest_json,
    finished,
    open_artifact,
    write_json,
)
from protos.errors import InputError, PocketuneError, TeacherError, listed
from protos.progress import Progress, part, silent


def evaluate(
    profiles: Sequence[Artifact],
    means: Means,
    out: Path,
    config: EvaluateConfig,
    left_out: Mapping[str, str] | None = None,
    progress: Progress = silent,
) -> Artifact:
    """Make the Evaluation of these users in `out`; an unchanged one is left as it is.

    Args:
        left_out: users who could not even be imported, with the reason, for the record.

    Raises:
        InputError: an arm lacks what it needs, or nobody has a question with a known answer.
        TeacherError: the teacher failed, or not one of its answers could be read for any user;
            what it has answered is kept.
    """
    arms = parse_arms(config.arms, parse_ratios(config.ratios))
    missing = dict(left_out or {})
    people = gather(profiles, out, missing)
    others = really_others(people, means.others)
    check(arms, people, others, means, out)
    parents, resolved = _identity(people, others, means, config)
    if current := finished(out / "evaluation", "Evaluation", parents, resolved):
        return current
    datasets, own = _datasets(arms, people, others, means, out, config, part(progress, 0, 0.4))
    adapters = _adapters(datasets, people, means, out, part(progress, 0.4, 0.8))
    partners = derangement({each.name: len(each.user.items) for each in people}, config.seed)
    answered = answers_of(
        arms, people, adapters, partners, means, out, config, part(progress, 0.8, 1)
    )
    said = answered.said
    with create(out / "evaluation", "Evaluation", parents, resolved) as draft:
        found = results(arms, people, said, config.seed)
        for name, row in found["arms"].items():
            row["truncated"], row["cut"] = answered.truncated[name], answered.cut[name]
            row["empty"] = sum(not text for person in people for text in said[name, person.name])
        for row in found["users"]:
            row["other"] = partners[row["user"]] if has(arms, OTHER) else None
            row["fell_back"] = sorted(own[row["user"]].fallen_back)
            row["unreadable"] = bool(own[row["user"]].unreadable)
            row |= _learned(arms, row["user"], partners, datasets)
        write_json(draft.path / RESULTS_FILE, {
            **found, "left_out": missing, "base": means.base.name, "teacher": means.teacher.name,
            "digests": parents, "config": resolved,
        })  # fmt: skip
        (draft.path / "predictions").mkdir()
        task = people[0].user.task
        golds = {each.id: str(each.output) for person in people for each in person.asked}
        write_predictions(draft.path / GOLDS_FILE, task, golds)
        for arm in arms:
            answers = {
                question.id: text
                for person in people
                for question, text in zip(person.asked, said[arm.name, person.name], strict=True)
            }
            write_predictions(draft.path / "predictions" / f"{arm.name}.json", task, answers)
        draft.measured.update(
            users=len(people), questions=sum(len(person.asked) for person in people),
            left_out=len(missing), costs=_costs(arms, people, datasets, adapters, answered, means),
        )  # fmt: skip
    return open_artifact(out / "evaluation", "Evaluation")


def _identity(
    people: Sequence[Person], others: Sequence[Artifact], means: Means, config: EvaluateConfig
) -> tuple[dict[str, str], dict[str, Any]]:
    parents = {
        "profiles": digest_json([person.profile.id for person in people]),
        "base_model": means.base.digest, "teacher": means.teacher.digest,
    }  # fmt: skip
    if others:
        parents["others"] = digest_json([profile.id for profile in others])
    if means.judge:
        parents["judge"] = means.judge.digest
    calls = means.calls or Calls()
    return parents, {
        "form": FORM, "task": people[0].user.task.to_config(), **asdict(config),
        "device": means.device is not None, "prices": [calls.price_in, calls.price_out],
        "augment": asdict(means.augmenting), "train": asdict(means.training),
    }  # fmt: skip


def _datasets(
    arms: Sequence[Arm], people: Sequence[Person], others: Sequence[Artifact], means: Means,
    out: Path, config: EvaluateConfig, progress: Progress,
) -> tuple[Made, dict[str, Datasets]]:  # fmt: skip
    """What each adapter learns from; and each user's Datasets, which know what fell back.

    Raises:
        TeacherError: see `evaluate`.
    """
    made: Made = {}
    of_users: dict[str, Datasets] = {}
    wanted = list(dict.fromkeys(arm.data for arm in arms if arm.data not in ("", TASK)))
    for number, person in enumerate(people):
        own = of_users[person.name] = Datasets(
            person.profile, means.teacher, person.folder, means.augmenting,
            parse_ratios(config.ratios), means.judge, means.calls,
        )  # fmt: skip
        for data in wanted:
            progress(f"{person.name}: data of {data}", number / len(people))
            made[data, person.name] = own.of(data)
    _check_readable(list(of_users.values()))
    if has(arms, TASK):
        shared = task_dataset(others, out / "task")
        made |= {(TASK, person.name): shared for person in people}
    return made, of_users


def _check_readable(of_users: Sequence[Datasets]) -> None:
    """Refuse a teacher that was of no use to anybody; one user alone may have been refused by it.

    Raises:
        TeacherError: not one of its answers could be read, for any user.
    """
    errors = [next(iter(own.unreadable.values())) for own in of_users if own.unreadable]
    if len(errors) == len(of_users):
        raise TeacherError(f"{len(errors)} of {len(of_users)} users, the first: {errors[0]}")


def _adapters(
    datasets: Made, people: Sequence[Person], means: Means, out: Path, progress: Progress
) -> Made:
    """All users' adapters of all arms, trained together."""
    folders = {person.name: person.folder for person in people}
    members: dict[Path, Member] = {}
    places: dict[tuple[str, str], Path | None] = {}
    for (data, name), dataset in datasets.items():
        if dataset is None:
            places[data, name] = None
            continue
        # who has no synthetic items has one adapter, of `real`, for all that would mix them in;
        # the shared one goes where `task withdraw` looks for it
        own = "real" if dataset.path.name == "real" else data
        place = out / "task" / ADAPTER if data == TASK else folders[name] / "adapters" / own
        places[data, name] = place
        members[place] = Member(dataset, place, means.training)
    trained = train_many(list(members.values()), means.base, means.threads, progress=progress)
    failed = {
        str(place): str(answer)
        for place, answer in zip(members, trained, strict=True)
        if isinstance(answer, PocketuneError)
    }
    if failed:
        count = f"{len(failed)} of {len(members)}"
        raise InputError(f"{count} adapters could not be trained: {listed(failed)}")
    made = {
        place: answer
        for place, answer in zip(members, trained, strict=True)
        if isinstance(answer, Artifact)
    }
    return {key: made[place] if place else None for key, place in places.items()}


def _learned(
    arms: Sequence[Arm], user: str, partners: Mapping[str, str], datasets: Made
) -> dict[str, dict[str, int]]:
    """What a user's adapter of each arm learned from: rows, and how many of them are synthetic."""
    owners = {arm: partners[user] if arm.name == OTHER else user for arm in arms if arm.data}
    each = {arm.name: counts(datasets[arm.data, owner]) for arm, owner in owners.items()}
    return {
        "rows": {name: rows for name, (rows, _) in each.items()},
        "synthetic": {name: synthetic for name, (_, synthetic) in each.items()},
    }


def _costs(
    arms: Sequence[Arm], people: Sequence[Person], datasets: Made, adapters: Made,
    answered: Answered, means: Means,
) -> dict[str, dict[str, float | None]]:  # fmt: skip
    """Means over users: the adapter's bytes, its seconds and steps, what teachers read and wrote.

    teacher_cost: at the prices of `means.calls`, of remote teachers; None where none are given.
    """
    costs: dict[str, dict[str, float | None]] = {}
    for arm in arms:
        trained = [adapters.get((arm.data, person.name)) for person in people]
        sizes = [a.manifest.files["adapter_model.safetensors"].size_bytes for a in trained if a]
        seconds = [a.manifest.measured["seconds"] / _together(a) for a in trained if a]
        steps = [a.manifest.measured["steps"] for a in trained if a]
        made = [datasets.get((arm.data, person.name)) for person in people]
        spent: list[Mapping[str, Any]] = [
            dataset.manifest.measured["spent"]
            for dataset in made
            if dataset and dataset.manifest.measured.get("spent")
        ]
        if arm.name == TEACHER:
            spent = [{means.teacher.name: each} for each in answered.spent.values()]
        costs[arm.name] = {
            "adapter_bytes": _mean(sizes), "train_seconds": _mean(seconds),
            "train_steps": _mean(steps),
            "teacher_prompt_tokens": _mean([_tokens(each, "prompt_tokens") for each in spent]),
            "teacher_tokens": _mean([_tokens(each, "completion_tokens") for each in spent]),
            "teacher_cost": _mean([_money(each, means) for each in spent]) or None,
            "device_ms": answered.device_ms.get(arm.name),
        }  # fmt: skip
    return costs


def _tokens(spent: Mapping[str, Any], kind: str) -> int:
    """Of all teachers of one user."""
    return sum(each[kind] for each in spent.values())


def _money(spent: Mapping[str, Any], means: Means) -> float:
    """What one user's remote teachers cost, at today's prices."""
    calls = means.calls or Calls()
    paid = {t.name for t in (means.teacher, means.judge) if t and t.is_remote}
    return sum(
        calls.cost(each["prompt_tokens"], each["completion_tokens"])
        for name, each in spent.items()
        if name in paid
    )


def _together(adapter: Artifact) -> int:
    """How many users shared the seconds of a training."""
    return adapter.manifest.measured.get("users", 1)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
