"""Profiles from LaMP's own files, both splits, as the benchmark publishes them.

In: `{train,dev,test}_questions.json`, optionally the matching `_outputs.json`. Out: one user's
items as training pairs and their questions as held-out questions.

The user-based split has one sample a user; the time-based split has several, each with the profile
as it stood then. Only items that stand in *every* profile of the user are taken: they are the ones
dated before the user's first question, so no question's answer is learned from.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

from cloud.profiles import (
    Item,
    ItemError,
    Question,
    at,
    check_label,
    date_field,
    text_field,
)
from cloud.tasks import TASKS, Task
from protos.artifacts import read_json, write_json
from protos.errors import InputError

TWEET_HEAD = 0.2
"""Share of a tweet's words that become the input; published work uses 10 to 25%."""
_TASK_ALIASES = {"LaMP_2M": "LaMP_2"}
_NAMES_IN_FILES = {"LaMP_2N": "LaMP_2"}
"""LaMP's older files and its evaluator call both label sets LaMP_2."""


@dataclass(frozen=True)
class Sample:
    """One entry of a questions file. where: file, line and number, for error messages."""

    where: str
    id: str
    user: str
    query: str
    profile: list[dict[str, Any]]


def read_lamp(
    questions: Path, outputs: Path | None, task: Task, user: str | None
) -> tuple[str, list[Item], list[Question]]:
    """One user's id, items and held-out questions.

    Args:
        questions: a LaMP questions file. outputs: its outputs file, or None where it is unknown.
        user: the user's id; may be left out if the file holds one user only.

    Raises:
        InputError: names the file, the sample with its line, and the field.
    """
    samples = _read_samples(questions)
    users = list(dict.fromkeys(sample.user for sample in samples))
    if user is None and len(users) > 1:
        raise InputError(
            f"{questions}: {len(users)} users, choose one with --user (such as {users[0]})"
        )
    user = users[0] if user is None else user
    mine = [sample for sample in samples if sample.user == user]
    if not mine:
        raise InputError(f"{questions}: no user {user!r} among {len(users)} (such as {users[0]})")
    return user, *_items_and_questions(mine, task, _read_golds(outputs, task) if outputs else {})


def read_lamp_users(
    questions: Path, outputs: Path, task: Task
) -> Iterator[tuple[str, list[Item], list[Question]]]:
    """Every user of a LaMP questions file as `read_lamp` gives one, in the order of the file.

    Raises:
        InputError: names the file, the sample with its line, and the field.
    """
    golds = _read_golds(outputs, task)
    users: dict[str, list[Sample]] = {}
    for sample in _read_samples(questions):
        users.setdefault(sample.user, []).append(sample)
    for user, samples in users.items():
        yield user, *_items_and_questions(samples, task, golds)


def task_of(outputs: Path) -> Task:
    """The task that an outputs file names.

    Raises:
        InputError: it names none that is known.
    """
    raw = read_json(outputs)
    name = raw.get("task") if isinstance(raw, dict) else None
    return named_task(str(name), f"{outputs}, field 'task'")


def named_task(name: str, where: str) -> Task:
    """A LaMP task by its name, the name of the movie variant of LaMP_2 included."""
    task = TASKS.get(_TASK_ALIASES.get(name, name))
    if task is None:
        raise InputError(f"{where}: unknown task {name!r}, expected one of {', '.join(TASKS)}")
    return task


def write_predictions(path: Path, task: Task, predictions: Mapping[str, str]) -> None:
    """Write answers by question id in the shape of LaMP's outputs files, for its own evaluator."""
    golds = [{"id": name, "output": text} for name, text in predictions.items()]
    write_json(path, {"task": _NAMES_IN_FILES.get(task.name, task.name), "golds": golds})


def item_from_lamp(row: dict[str, Any], task: Task) -> Item:
    """A profile item as a training pair.

    Raises:
        ItemError: names the field.
    """
    if task.input_field not in row and task.name == "LaMP_2" and "category" in row:
        raise ItemError("category", "an item of the news variant; import it with --task LaMP_2N")
    text = text_field(row, task.input_field)
    if not task.is_beginning:
        output = text_field(row, task.output_field)
        check_label(task, output, task.output_field)
        return Item(str(row["id"]), text, output, date_field(row))
    words = text.split()
    if len(words) < 2:
        raise ItemError(task.input_field, "one word only, so no beginning to complete")
    head = max(1, round(len(words) * TWEET_HEAD))
    return Item(str(row["id"]), " ".join(words[:head]), text, date_field(row))


def _items_and_questions(
    samples: list[Sample], task: Task, golds: Mapping[str, str]
) -> tuple[list[Item], list[Question]]:
    asked = [
        Question(s.id, s.query, task.question_input(s.query), golds.get(s.id)) for s in samples
    ]
    return _common_items(samples, task), asked


def _common_items(samples: list[Sample], task: Task) -> list[Item]:
    """The items of the user's earliest profile: those that no sample's profile lacks."""
    common = set.intersection(*({str(row.get("id")) for row in s.profile} for s in samples))
    first = samples[0]
    items: list[Item] = []
    for number, row in enumerate(first.profile):
        where = f"{first.where}, profile item {number}"
        if "id" not in row:
            raise InputError(f"{where}, field 'id': missing")
        if str(row["id"]) in common:
            items.append(at(where, partial(item_from_lamp, row, task)))
    return items


def _read_samples(path: Path) -> list[Sample]:
    read_json(path)  # its errors name line and column
    text = path.read_bytes().decode("utf-8-sig")
    decoder = json.JSONDecoder()
    start = text.find("[")
    if start < 0 or text[:start].strip():
        raise InputError(f"{path}: expected a list of samples, as in LaMP's questions files")
    samples: list[Sample] = []
    while text[(start := _skip(text, start + 1))] != "]":
        raw, end = decoder.raw_decode(text, start)
        line = text.count("\n", 0, start) + 1
        samples.append(_sample(raw, f"{path}, line {line}, sample {len(samples)}"))
        start = _skip(text, end)
        if text[start] == "]":
            break
    if not samples:
        raise InputError(f"{path}: no samples in it")
    return samples


def _skip(text: str, index: int) -> int:
    while text[index].isspace():
        index += 1
    return index


def _sample(raw: Any, where: str) -> Sample:
    if not isinstance(raw, dict):
        raise InputError(f"{where}: expected an object, found {type(raw).__name__}")
    row = cast("dict[str, Any]", raw)
    wanted: dict[str, type | tuple[type, ...]] = {"id": (str, int), "input": str, "profile": list}
    for name, kind in wanted.items():
        if not isinstance(row.get(name), kind):
            found = type(row[name]).__name__ if name in row else "nothing"
            raise InputError(f"{where}, field {name!r}: found {found}")
    profile = row["profile"]
    for number, item in enumerate(profile):
        if not isinstance(item, dict):
            raise InputError(f"{where}, profile item {number}: expected an object")
    identifier = str(row["id"])
    return Sample(where, identifier, str(row.get("user_id", identifier)), row["input"], profile)


def _read_golds(path: Path, task: Task) -> dict[str, str]:
    raw = read_json(path)
    golds = raw.get("golds") if isinstance(raw, dict) else None
    if not isinstance(golds, list):
        raise InputError(f"{path}, field 'golds': expected a list, as in LaMP's outputs files")
    named = task_of(path)
    if named.name not in (task.name, _NAMES_IN_FILES.get(task.name)):
        raise InputError(
            f"{path}, field 'task': these are outputs of {named.name}, not {task.name}"
        )
    answers: dict[str, str] = {}
    for number, gold in enumerate(golds):
        if not isinstance(gold, dict) or "id" not in gold or "output" not in gold:
            raise InputError(f"{path}, gold {number}: expected an object with id and output")
        answers[str(gold["id"])] = str(gold["output"])
    return answers
