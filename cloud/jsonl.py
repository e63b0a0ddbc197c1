"""Profiles from plain JSONL, for tasks of one's own: an object on each line.

In: a file of items, perhaps one of held-out questions. Out: both, strictly read: the first thing
that is wrong is an error with its place.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from cloud.dates import is_before
from cloud.profiles import (
    Item,
    ItemError,
    Question,
    answer_field,
    at,
    check_label,
    date_field,
    text_field,
)
from cloud.tasks import Task
from protos.errors import InputError


def read_items(path: Path, task: Task) -> list[Item]:
    """Items from plain JSONL: `{"input": …, "output": …, "date": …}` a line, `date` optional.

    Raises:
        InputError: names the file, the line and the field.
    """
    return [
        at(where, partial(_item, row, str(number), task)) for number, where, row in _objects(path)
    ]


def read_questions(path: Path, task: Task, user: str) -> list[tuple[Question, str]]:
    """Held-out questions and their dates: `{"input": …, "output": …, "id": …, "date": …}` a line.

    All but `input` is optional: without an output a question cannot be scored, and without an id
    its id is made of the user and the line.

    Raises:
        InputError: names the file, the line and the field; two have the same id.
    """
    asked: dict[str, tuple[Question, str]] = {}
    for number, where, row in _objects(path):
        question, day = at(where, partial(_question, row, f"{user}-{number}", task))
        if question.id in asked:
            raise InputError(f"{where}, field 'id': {question.id!r} is there twice")
        asked[question.id] = question, day
    return list(asked.values())


def split_at(items: list[Item], first: str) -> tuple[list[Item], list[str]]:
    """Those items that are surely older than `first`, and what is to be said of the others.

    Those without a date are taken for older.
    """
    older = [item for item in items if not item.date or is_before(item.date, first)]
    later = [
        f"item {item.id!r} of {item.date}: not before the first question, of {first}"
        for item in items
        if item.date and not is_before(item.date, first)
    ]
    return older, later


def _objects(path: Path) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Each line's number, its place for messages, and the object on it."""
    for number, line in numbered_lines(path):
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{where}, column {error.colno}: not JSON ({error.msg})") from None
        except ValueError as error:
            raise InputError(f"{where}: a number that cannot be read ({error})") from None
        except RecursionError:
            raise InputError(f"{where}: JSON nested too deeply") from None
        if not isinstance(row, dict):
            raise InputError(f"{where}: expected an object, found {type(row).__name__}")
        yield number, where, row


def _item(row: dict[str, Any], default_id: str, task: Task) -> Item:
    _check_fields(row)
    output = text_field(row, "output")
    check_label(task, output, "output")
    identifier = str(row.get("id", default_id))
    return Item(identifier, text_field(row, "input"), output, date_field(row))


def _question(row: dict[str, Any], default_id: str, task: Task) -> tuple[Question, str]:
    _check_fields(row)
    text, output = text_field(row, "input"), None
    if row.get("output") is not None:
        output = answer_field(row, "output", task)
    identifier = str(row.get("id", default_id))
    return Question(identifier, task.asked(text), text, output), date_field(row)


def _check_fields(row: dict[str, Any]) -> None:
    unknown = sorted(set(row) - {"id", "input", "output", "date"})
    if unknown:
        raise ItemError(unknown[0], "unknown field, expected input, output, date and id")


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
        raise InputError(f"{path}: empty, expected an object on each line")
