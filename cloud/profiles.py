"""A profile: one user's own items for one task, in time order, and what they consented to.

In: LaMP files (`cloud/lamp.py`) or plain JSONL. Out: a Profile artifact with `items.jsonl`, and
`questions.jsonl` for held-out questions that only evaluation and the leakage filter may read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

from cloud.tasks import Task, task_from_config
from protos.artifacts import Artifact, create, finished, open_artifact
from protos.errors import InputError

MAX_ITEM_CHARS = 100_000
MIN_ITEMS = 2
"""One item to learn from and one to check by."""
ITEMS_FILE = "items.jsonl"
QUESTIONS_FILE = "questions.jsonl"


@dataclass(frozen=True)
class Item:
    """One thing that the user wrote or decided. date: ISO (YYYY-MM-DD), or empty if unknown."""

    id: str
    input: str
    output: str
    date: str = ""


@dataclass(frozen=True)
class Question:
    """A held-out question.

    query: as the model is asked it. output: the user's own answer, None if unknown.
    """

    id: str
    query: str
    input: str
    output: str | None


@dataclass(frozen=True)
class Consent:
    """What the user agreed to.

    third_party: items may be sent to a teacher that others operate. contributes: items may also
    train the task's adapter, which other users get (`cloud/task_adapter.py`).
    """

    purpose: str = "personalization"
    retention_days: int = 365
    third_party: bool = False
    contributes: bool = False


@dataclass(frozen=True)
class Profile:
    """Everything that an opened Profile artifact holds. items: oldest first."""

    task: Task
    user: str
    language: str
    consent: Consent
    items: list[Item]
    questions: list[Question]


@dataclass(frozen=True)
class ItemError(Exception):
    """What is wrong with one field of one item; whoever knows the place adds it."""

    field: str
    problem: str


def write_profile(profile: Profile, out: Path) -> Artifact:
    """Check the profile as a whole and write it; an unchanged one is left as it is.

    Items go by date; those of one day stay in their order, those without a date count as oldest.

    Raises:
        InputError: fewer than two items.
    """
    items = sorted(dict.fromkeys(profile.items), key=lambda item: item.date)
    if len(items) < MIN_ITEMS:
        raise InputError(
            f"user {profile.user!r} has {len(items)} items for {profile.task.name}, expected at "
            f"least {MIN_ITEMS}: one to learn from and one to check by"
        )
    config = {
        "task": profile.task.to_config(),
        "user": profile.user,
        "language": profile.language,
        "consent": asdict(profile.consent),
    }
    rows = {ITEMS_FILE: items, QUESTIONS_FILE: profile.questions}
    contents = {name: "".join(map(_json_line, values)) for name, values in rows.items()}
    current = finished(out, "Profile", {}, config)
    if current and all(current.file(n).read_text("utf-8") == t for n, t in contents.items()):
        return current
    with create(out, "Profile", {}, config) as draft:
        for name, text in contents.items():
            (draft.path / name).write_text(text, encoding="utf-8")
        undated = sum(not item.date for item in items)
        draft.measured.update(items=len(items), undated=undated, questions=len(profile.questions))
    return open_artifact(out, "Profile")


def read_profile(artifact: Artifact) -> Profile:
    """The profile in an opened Profile artifact."""
    config = artifact.config
    return Profile(
        task=task_from_config(config["task"]),
        user=config["user"],
        language=config["language"],
        consent=Consent(**config["consent"]),
        items=[Item(**row) for row in read_rows(artifact.file(ITEMS_FILE))],
        questions=[Question(**row) for row in read_rows(artifact.file(QUESTIONS_FILE))],
    )


def read_jsonl_items(path: Path, task: Task) -> list[Item]:
    """Items from plain JSONL: `{"input": …, "output": …, "date": …}` a line, `date` optional.

    Raises:
        InputError: names the file, the line and the field.
    """
    items: list[Item] = []
    for number, line in numbered_lines(path):
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{where}, column {error.colno}: not JSON ({error.msg})") from None
        except RecursionError:
            raise InputError(f"{where}: JSON nested too deeply") from None
        if not isinstance(row, dict):
            raise InputError(f"{where}: expected an object, found {type(row).__name__}")
        items.append(at(where, partial(jsonl_item, row, str(number), task)))
    return items


def jsonl_item(row: dict[str, Any], default_id: str, task: Task) -> Item:
    """One item from one object.

    Raises:
        ItemError: names the field.
    """
    unknown = sorted(set(row) - {"id", "input", "output", "date"})
    if unknown:
        raise ItemError(unknown[0], "unknown field, expected input, output, date and id")
    output = text_field(row, "output")
    check_label(task, output, "output")
    identifier = str(row.get("id", default_id))
    return Item(identifier, text_field(row, "input"), output, date_field(row))


def at(where: str, make: Callable[[], Item]) -> Item:
    """Run `make` and turn an `ItemError` into an `InputError` that says where."""
    try:
        return make()
    except ItemError as found:
        raise InputError(f"{where}, field {found.field!r}: {found.problem}") from None


def text_field(row: dict[str, Any], name: str) -> str:
    """A field that must be non-empty text of at most MAX_ITEM_CHARS; numbers become text."""
    value = row.get(name)
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        found = "missing" if name not in row else type(value).__name__
        raise ItemError(name, f"expected text, found {found}")
    text = value.replace("\0", "").strip()
    if not text:
        raise ItemError(name, "expected text, found nothing but spaces")
    if len(text) > MAX_ITEM_CHARS:
        raise ItemError(name, f"{len(text):,} characters, at most {MAX_ITEM_CHARS:,} are read")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ItemError(name, f"not Unicode text at character {error.start}") from None
    return text


def date_field(row: dict[str, Any]) -> str:
    """The item's date as YYYY-MM-DD, or empty where there is none."""
    value = row.get("date")
    if value is None or value == "":
        return ""
    try:
        return date.fromisoformat(str(value)[:10]).isoformat()
    except ValueError:
        raise ItemError("date", f"expected YYYY-MM-DD, found {str(value)[:40]!r}") from None


def check_label(task: Task, output: str, field: str) -> None:
    """Refuse an output that is none of the task's labels."""
    if task.labels and output not in task.labels:
        known = ", ".join(task.labels[:20])
        raise ItemError(field, f"{output[:40]!r} is no label of {task.name} (known: {known})")


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The non-blank lines of a UTF-8 file, counted from 1.

    Raises:
        InputError: missing, not UTF-8 (names the line), or no line in it.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    found = False
    with path.open("rb") as stream:
        for number, raw in enumerate(stream, 1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{path}, line {number}: not UTF-8 at byte {error.start}"
                ) from None
            if line:
                found = True
                yield number, line
    if not found:
        raise InputError(f"{path}: empty, expected at least {MIN_ITEMS} items")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file that we wrote ourselves."""
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write objects as JSONL, UTF-8."""
    path.write_text("".join(map(_dump, rows)), encoding="utf-8")


def _json_line(row: Item | Question) -> str:
    return _dump(asdict(row))


def _dump(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
