"""Profiles from LaMP's own files, both splits, as the benchmark publishes them.

In: `{train,dev,test}_questions.json`, optionally the matching `_outputs.json`. Out: one user's
items as training pairs and their questions as held-out questions. An odd item or question is left
out, with its place and the reason; a file that is no such file at all is an error.

The user-based split has one sample a user; the time-based split has several, each with the profile
as it stood then. Only items that stand in *every* profile of the user are taken: they are the ones
dated before the user's first question, so no question's answer is learned from.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from cloud.profiles import (
    Item,
    ItemError,
    Question,
    answer_field,
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
_NEWS = TASKS["LaMP_2N"]


@dataclass(frozen=True)
class LampUser:
    """One user of LaMP's files. left_out: what is odd, by place and reason."""

    name: str
    task: Task
    items: list[Item]
    questions: list[Question]
    left_out: list[str]


@dataclass(frozen=True)
class Sample:
    """One entry of a questions file.

    where: file, line, number and user, for messages. user: empty if it names none. profile: None if
    there is no list. odd: why its question cannot be asked, None where it can.
    """

    where: str
    id: str
    user: str
    query: str
    profile: list[Any] | None
    odd: ItemError | None


def read_lamp(questions: Path, outputs: Path | None, task: Task, user: str | None) -> LampUser:
    """One user's items and held-out questions.

    Args:
        questions: a LaMP questions file. outputs: its outputs file, or None where it is unknown.
        user: the user's id; may be left out if the file holds one user only.

    Raises:
        InputError: names the file; it is malformed, or there is no such user in it.
    """
    samples = _read_samples(questions)
    users = list(dict.fromkeys(sample.user for sample in samples if sample.user))
    if user is None and len(users) > 1:
        raise InputError(
            f"{questions}: {len(users)} users, choose one with --user (such as {users[0]})"
        )
    user = users[0] if user is None else user
    mine = [sample for sample in samples if sample.user == user]
    if not mine:
        raise InputError(f"{questions}: no user {user!r} among {len(users)} (such as {users[0]})")
    golds = _read_golds(outputs, task) if outputs else {}
    found = _lamp_user(user, mine, task, golds)
    nobodys = [f"{s.where}, {_said(s.odd)}" for s in samples if not s.user]
    return replace(found, left_out=[*found.left_out, *nobodys])


def read_lamp_users(questions: Path, outputs: Path, task: Task | None) -> Iterator[LampUser]:
    """Every user of a LaMP questions file as `read_lamp` gives one, in the order of the file.

    Samples that name no user come last, as a user without items.

    Args:
        task: None for the one that the files tell.

    Raises:
        InputError: names the file, which is malformed.
    """
    samples = _read_samples(questions)
    task = task or _variant(task_of(outputs), samples)
    golds = _read_golds(outputs, task)
    users: dict[str, list[Sample]] = {}
    for sample in samples:
        users.setdefault(sample.user, []).append(sample)
    nobodys = users.pop("", [])
    for user, samples in users.items():
        yield _lamp_user(user, samples, task, golds)
    if nobodys:
        yield _lamp_user("(unnamed)", nobodys, task, golds)


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


def item_from_lamp(row: Any, task: Task) -> Item:
    """A profile item as a training pair.

    Raises:
        ItemError: names the field.
    """
    if not isinstance(row, dict):
        raise ItemError("", f"expected an object, found {type(row).__name__}")
    row = cast("dict[str, Any]", row)
    if not isinstance(row.get("id"), str | int):
        raise ItemError("id", f"found {type(row['id']).__name__ if 'id' in row else 'nothing'}")
    if task.input_field not in row and task.name == "LaMP_2" and _NEWS.output_field in row:
        raise ItemError(
            _NEWS.output_field, "an item of the news variant; import it with --task LaMP_2N"
        )
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


def _variant(task: Task, samples: Sequence[Sample]) -> Task:
    """LaMP_2N where files that say LaMP_2 hold its items, which have a category and no tag."""
    if task.name != "LaMP_2":
        return task
    rows = [row for sample in samples for row in sample.profile or () if isinstance(row, dict)]
    counts = {each: sum(each.output_field in row for row in rows) for each in (task, _NEWS)}
    return max(counts, key=counts.__getitem__)


def _lamp_user(name: str, samples: list[Sample], task: Task, golds: Mapping[str, Any]) -> LampUser:
    items, left_out = _common_items(samples, task)
    asked: list[Question] = []
    for sample in samples:
        try:
            asked.append(_question(sample, task, golds))
        except ItemError as odd:
            left_out.append(f"{sample.where}, {_said(odd)}")
    return LampUser(name, task, items, asked, left_out)


def _question(sample: Sample, task: Task, golds: Mapping[str, Any]) -> Question:
    """The held-out question of a sample.

    Raises:
        ItemError: the sample is odd, or what is said to be the answer to it.
    """
    if sample.odd:
        raise sample.odd
    gold = None
    if sample.id in golds:
        gold = answer_field({"output": golds[sample.id]}, "output", task)
    return Question(sample.id, sample.query, task.question_input(sample.query), gold)


def _common_items(samples: list[Sample], task: Task) -> tuple[list[Item], list[str]]:
    """The items of the user's earliest profile, those that no sample's profile lacks; odd ones."""
    known = [(sample, sample.profile) for sample in samples if sample.profile is not None]
    if not known:
        return [], []
    common = set.intersection(*({_id_of(row) for row in profile} for _, profile in known))
    first, profile = known[0]
    items: list[Item] = []
    left_out: list[str] = []
    for number, row in enumerate(profile):
        if (name := _id_of(row)) and name not in common:
            continue
        try:
            items.append(item_from_lamp(row, task))
        except ItemError as odd:
            place = f"profile item {number}" + (f" (id {name!r})" if name else "")
            left_out.append(f"{first.where}, {place}, {_said(odd)}")
    return items, left_out


def _id_of(row: Any) -> str:
    """The id of a profile item, empty if it has none."""
    found = row.get("id") if isinstance(row, dict) else None
    return str(found) if isinstance(found, str | int) else ""


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
    if not any(sample.user for sample in samples):
        raise InputError(f"{samples[0].where}, {_said(samples[0].odd)}; no other names a user")
    return samples


def _skip(text: str, index: int) -> int:
    while text[index].isspace():
        index += 1
    return index


def _sample(raw: Any, where: str) -> Sample:
    row = cast("dict[str, Any]", raw) if isinstance(raw, dict) else {}
    identifier = str(row["id"]) if isinstance(row.get("id"), str | int) else ""
    user = row["user_id"] if isinstance(row.get("user_id"), str | int) else identifier
    profile = row["profile"] if isinstance(row.get("profile"), list) else None
    named = f"{where}, user {str(user)!r}" if user else where
    query = row["input"] if isinstance(row.get("input"), str) else ""
    return Sample(named, identifier, str(user), query, profile, _oddness(raw))


def _oddness(raw: Any) -> ItemError | None:
    """What is wrong with a sample, None if nothing is."""
    if not isinstance(raw, dict):
        return ItemError("", f"expected an object, found {type(raw).__name__}")
    row = cast("dict[str, Any]", raw)
    wanted: dict[str, type | tuple[type, ...]] = {"id": (str, int), "input": str, "profile": list}
    for name, kind in wanted.items():
        if not isinstance(row.get(name), kind):
            return ItemError(
                name, f"found {type(row[name]).__name__ if name in row else 'nothing'}"
            )
    try:
        text_field(row, "input")
    except ItemError as odd:
        return odd
    return None


def _said(odd: ItemError | None) -> str:
    """What is wrong, with the field if there is one."""
    if odd is None:
        return ""
    return f"field {odd.field!r}: {odd.problem}" if odd.field else odd.problem


def _read_golds(path: Path, task: Task) -> dict[str, Any]:
    """What an outputs file says is the answer to each question, unchecked."""
    raw = read_json(path)
    golds = raw.get("golds") if isinstance(raw, dict) else None
    if not isinstance(golds, list):
        raise InputError(f"{path}, field 'golds': expected a list, as in LaMP's outputs files")
    named = task_of(path)
    if named.name not in (task.name, _NAMES_IN_FILES.get(task.name)):
        raise InputError(
            f"{path}, field 'task': these are outputs of {named.name}, not {task.name}"
        )
    answers: dict[str, Any] = {}
    for number, gold in enumerate(golds):
        if not isinstance(gold, dict) or "id" not in gold:
            raise InputError(f"{path}, gold {number}: expected an object with id and output")
        answers[str(gold["id"])] = gold.get("output")
    return answers
