"""Augment: a user's few items become a training set, with new ones that a teacher writes like them.

In: a Profile and a Teacher. Out: a Dataset: `train.jsonl` (all real items but the newest, plus the
synthetic ones), `valid.jsonl` (the newest real items), `rejected.jsonl` (what the filters refused).
Every row says whether it is real, and where it came from. The teacher sees training items only.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cloud.filters import Filters
from cloud.profiles import Item, Profile, read_profile, write_rows
from cloud.prompts import Pair
from cloud.tasks import Task
from cloud.teachers import Reply, Sampling, Teacher
from protos.artifacts import (
    Artifact,
    create,
    digest_json,
    finished,
    open_artifact,
    read_json,
    work_dir,
    write_json,
)
from protos.errors import InputError, TeacherError
from protos.progress import Progress, silent

VALID_SHARE = 0.2
TRAIN_FILE, VALID_FILE, REJECTED_FILE = "train.jsonl", "valid.jsonl", "rejected.jsonl"
FILTERS = ("unparsed", "label", "duplicate", "near-duplicate", "length", "leakage")


@dataclass(frozen=True)
class AugmentConfig:
    """per_real: synthetic items wanted for each real training item. shots: items shown a request.

    tries: candidates asked for at most, for each one wanted. round: requests sent at a time; a
    killed run starts again at the round it was in.
    """

    per_real: float = 2.0
    shots: int = 8
    temperature: float = 1.0
    top_p: float = 0.95
    tries: int = 6
    round: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        checks = {
            f"per_real is {self.per_real}, expected 0 to 20": 0 <= self.per_real <= 20,
            f"shots is {self.shots}, expected 1 or more": self.shots >= 1,
            f"temperature is {self.temperature}, expected above 0": self.temperature > 0,
            f"top_p is {self.top_p}, expected above 0, at most 1": 0 < self.top_p <= 1,
            f"tries is {self.tries}, expected 1 or more": self.tries >= 1,
            f"round is {self.round}, expected 1 or more": self.round >= 1,
        }
        wrong = [message for message, sound in checks.items() if not sound]
        if wrong:
            raise InputError("; ".join(wrong))


@dataclass(frozen=True)
class Candidate:
    """One thing that the teacher wrote. pair: None if it did not parse. source: its provenance."""

    pair: Pair | None
    text: str
    source: dict[str, Any]


def augment(
    profile: Artifact,
    teacher: Teacher,
    out: Path,
    config: AugmentConfig,
    progress: Progress = silent,
) -> Artifact:
    """Make the Dataset of one profile; an unchanged one is left as it is.

    Raises:
        InputError: the user did not consent to a third-party teacher.
        TeacherError: the teacher failed, or wrote nothing that passes the filters.
    """
    parents = {"profile": profile.id, "teacher": teacher.digest}
    resolved = {**asdict(config), "teacher": teacher.name, "task": profile.config["task"]}
    if current := finished(out, "Dataset", parents, resolved):
        return current
    user = read_profile(profile)
    if teacher.third_party and not user.consent.third_party:
        raise InputError(
            f"{profile.path}: the user's consent does not allow a third-party teacher "
            f"({teacher.name}); import the profile with --third-party once they agree"
        )
    train, valid = split(user.items)
    wanted = round(config.per_real * len(train))
    filters = _filters(user, train, valid)
    counts: Counter[str] = Counter()
    kept: list[Candidate] = []
    rejected: list[dict[str, Any]] = []
    with work_dir(out, parents, resolved) as work:
        for candidate in _candidates(user.task, train, teacher, wanted, config, work):
            reason = filters.rejects(candidate.pair) if candidate.pair else "unparsed"
            counts[reason or "kept"] += 1
            if reason:
                rejected.append(_rejected_row(candidate, reason))
            else:
                kept.append(candidate)
                progress(f"{len(kept)} kept, {len(rejected)} rejected", len(kept) / wanted)
            if len(kept) == wanted:
                break
        if kept or not wanted:
            with create(out, "Dataset", parents, resolved) as draft:
                real = [_real_row(user.task, item) for item in train]
                synthetic = [_synthetic_row(user.task, candidate) for candidate in kept]
                write_rows(draft.path / TRAIN_FILE, real + synthetic)
                write_rows(draft.path / VALID_FILE, [_real_row(user.task, item) for item in valid])
                write_rows(draft.path / REJECTED_FILE, rejected)
                draft.measured.update(
                    real=len(train), valid=len(valid), wanted=wanted, synthetic=len(kept),
                    asked=sum(counts.values()), rejected={name: counts[name] for name in FILTERS},
                )  # fmt: skip
    if wanted and not kept:
        reasons = ", ".join(f"{name} {counts[name]}" for name in FILTERS if counts[name])
        raise TeacherError(f"{teacher.name}: nothing it wrote passed the filters ({reasons})")
    return open_artifact(out, "Dataset")


def split(items: Sequence[Item]) -> tuple[list[Item], list[Item]]:
    """Items in time order, cut in two: older ones to train on, the newest to validate on."""
    newest = max(1, round(len(items) * VALID_SHARE))
    return list(items[:-newest]), list(items[-newest:])


def choose_shots(train: Sequence[Item], shots: int, seed: int) -> Iterator[list[Item]]:
    """Endless selections of at most `shots` items: every item is shown equally often.

    Items are dealt from shuffled decks, so that each selection is a different mix in a different
    order, and none holds an item twice.
    """
    rng = random.Random(seed)
    size = min(shots, len(train))
    deck: list[Item] = []
    while True:
        hand: list[Item] = []
        while len(hand) < size:
            if not deck:
                deck = rng.sample(list(train), len(train))
            fresh = next((i for i, item in enumerate(deck) if item not in hand), None)
            if fresh is None:
                deck = [*deck, *rng.sample(list(train), len(train))]
                continue
            hand.append(deck.pop(fresh))
        yield hand


def _candidates(
    task: Task,
    train: Sequence[Item],
    teacher: Teacher,
    wanted: int,
    config: AugmentConfig,
    work: Path,
) -> Iterator[Candidate]:
    """What the teacher writes, round by round, until `tries` candidates for each wanted one."""
    hands = choose_shots(train, config.shots, config.seed)
    asked = number = 0
    while asked < wanted * config.tries:
        requests = [next(hands) for _ in range(config.round)]
        sampling = Sampling(config.temperature, config.top_p, config.seed + number)
        for shots, reply in zip(
            requests, _replies(task, teacher, requests, sampling, work / f"{number:04}.json"),
            strict=True,
        ):  # fmt: skip
            source = {
                "teacher": teacher.name,
                "shots": [shot.id for shot in shots],
                "request": digest_json([[s.input, s.output] for s in shots])[:16],
                "seed": sampling.seed,
            }
            for index, pair in enumerate(reply.pairs):
                asked += 1
                yield Candidate(pair, reply.text, {**source, "index": index})
        number += 1


def _replies(
    task: Task,
    teacher: Teacher,
    requests: Sequence[Sequence[Item]],
    sampling: Sampling,
    saved: Path,
) -> list[Reply]:
    """The replies of one round, from the interrupted run before us where it got them."""
    if saved.is_file():
        rows: list[dict[str, Any]] = read_json(saved)
        return [Reply(r["text"], [tuple(p) if p else None for p in r["pairs"]]) for r in rows]
    replies = teacher.write(task, requests, sampling)
    partial = saved.with_suffix(".partial")
    write_json(partial, [asdict(reply) for reply in replies])
    partial.rename(saved)
    return replies


def _filters(user: Profile, train: list[Item], valid: list[Item]) -> Filters:
    inputs = [*(item.input for item in valid), *(q.input for q in user.questions)]
    outputs = [*(item.output for item in valid), *(q.output for q in user.questions if q.output)]
    return Filters(user.task, train, inputs, outputs)


def _row(task: Task, text: str, output: str) -> dict[str, Any]:
    return {"prompt": task.query(text), "completion": output, "input": text, "output": output}


def _real_row(task: Task, item: Item) -> dict[str, Any]:
    source = {"item": item.id, "date": item.date}
    return {**_row(task, item.input, item.output), "origin": "real", "source": source}


def _synthetic_row(task: Task, candidate: Candidate) -> dict[str, Any]:
    assert candidate.pair is not None  # only parsed candidates are kept
    return {**_row(task, *candidate.pair), "origin": "synthetic", "source": candidate.source}


def _rejected_row(candidate: Candidate, reason: str) -> dict[str, Any]:
    text = candidate.text if candidate.pair is None else None
    return {"reason": reason, "pair": candidate.pair, "text": text, "source": candidate.source}
