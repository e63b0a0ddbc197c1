"""A profile: one user's own items for one task, in time order, and what they consented to.

In: LaMP files (`cloud/lamp.py`) or plain JSONL (`cloud/jsonl.py`). Out: a Profile artifact with
`items.jsonl`, and `questions.jsonl` for held-out questions that only evaluation and the leakage
filter may read. Its `created` is the day of the consent: importing again is agreeing again, but
for what an evaluation imports by itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from cloud.dates import read_date
from cloud.tasks import Task, task_from_config
from protos.artifacts import Artifact, create, finished, open_artifact
from protos.errors import InputError

MAX_ITEM_CHARS = 100_000
MAX_RETENTION_DAYS = 36_500
MIN_ITEMS = 2
"""One item to learn from and one to check by."""
ITEMS_FILE = "items.jsonl"
QUESTIONS_FILE = "questions.jsonl"
EVALUATION = "evaluation"
"""The purpose of a Profile that an evaluation imports by itself: importing it renews no consent."""
Row = TypeVar("Row")


@dataclass(frozen=True)
class Item:
    """One thing that the user wrote or decided. date: see `cloud/dates.py`; empty if unknown."""

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

    retention_days: for how long; 0 is without end. third_party: items may be sent to a teacher that
    others operate. contributes: items may also train the task's adapter, which other users get
    (`cloud/task_adapter.py`).
    """

    purpose: str = "personalization"
    retention_days: int = 365
    third_party: bool = False
    contributes: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.retention_days <= MAX_RETENTION_DAYS:
            raise InputError(
                f"retention_days is {self.retention_days}, expected 0 to {MAX_RETENTION_DAYS}"
            )


@dataclass(frozen=True)
class Profile:
    """Everything that an opened Profile artifact holds.

    items: oldest first. left_out: what was in the files and is not among these, by place and
    reason.
    """

    task: Task
    user: str
    language: str
    consent: Consent
    items: list[Item]
    questions: list[Question]
    left_out: list[str] = field(default_factory=list[str])


@dataclass(frozen=True)
class ItemError(Exception):
    """What is wrong with one field of one item; whoever knows the place adds it."""

    field: str
    problem: str


def write_profile(profile: Profile, out: Path) -> Artifact:
    """Check the profile as a whole and write it; one that is unchanged since today's is left.

    Items go by date; those of one date stay in their order, those without one count as oldest. An
    unchanged profile of an earlier day is dated anew, and keeps its id, so that whatever was made
    of it stays valid.

    Raises:
        InputError: fewer than two items.
    """
    items = sorted(dict.fromkeys(profile.items), key=lambda item: item.date)
    if len(items) < MIN_ITEMS:
        raise InputError(
            f"user {profile.user!r} has {len(items)} items for {profile.task.name}, expected at "
            f"least {MIN_ITEMS}: one to learn from and one to check by{but_left_out(profile)}"
        )
    config = {
        "task": profile.task.to_config(),
        "user": profile.user,
        "language": profile.language,
        "consent": asdict(profile.consent),
    }
    rows = {ITEMS_FILE: items, QUESTIONS_FILE: profile.questions}
    contents = {name: "".join(map(_json_line, values)) for name, values in rows.items()}
    measured = {
        "items": len(items),
        "undated": sum(not item.date for item in items),
        "questions": len(profile.questions),
        "left_out": profile.left_out,
    }
    current = finished(out, "Profile", {}, config)
    if current and _is_todays(current, contents, measured):
        return current
    with create(out, "Profile", {}, config) as draft:
        for name, text in contents.items():
            (draft.path / name).write_text(text, encoding="utf-8")
        draft.measured.update(measured)
    return open_artifact(out, "Profile")


def _is_todays(current: Artifact, contents: dict[str, str], measured: dict[str, Any]) -> bool:
    today = datetime.now(UTC).date().isoformat()
    return (
        current.manifest.created.startswith(today)
        and current.manifest.measured == measured
        and all(current.file(name).read_text("utf-8") == text for name, text in contents.items())
    )


def but_left_out(profile: Profile) -> str:
    """What was left out, for the end of a message about what is too little; the first by name."""
    if not profile.left_out:
        return ""
    return f"; left out {len(profile.left_out)}, first: {profile.left_out[0]}"


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
        left_out=list(artifact.manifest.measured.get("left_out", ())),
    )


def at(where: str, make: Callable[[], Row]) -> Row:
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
    """The item's date in the form of `cloud/dates.py`, or empty where there is none."""
    value = row.get("date")
    try:
        return read_date(value)
    except ValueError:
        found = repr(value)[:40]
        raise ItemError("date", f"expected YYYY-MM-DD or a time, found {found}") from None


def answer_field(row: dict[str, Any], name: str, task: Task) -> str:
    """The user's own answer to a held-out question: text, or one of the labels that it may be."""
    answer = text_field(row, name)
    _check_among(task.answer_labels, task, answer, name)
    return answer


def check_label(task: Task, output: str, field: str) -> None:
    """Refuse an output that is none of the task's labels."""
    _check_among(task.labels, task, output, field)


def _check_among(labels: Sequence[str], task: Task, text: str, field: str) -> None:
    if labels and text not in labels:
        known = ", ".join(labels[:20])
        raise ItemError(field, f"{text[:40]!r} is no label of {task.name} (known: {known})")


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
