"""The pocket world: users with hidden traits, and their dated items, for the tasks of `WORLDS`.

In: a task and a user's number. Out: items and LaMP-shaped files. Everything follows from the
numbers alone (`random.Random` seeded with text), so any machine makes the same users. No torch
here. A new task is one class like `Headlines` and one row in `WORLDS`; docs/pocket.md says what
each holds.

    python -m cloud.pocket.world    # prints the digests of the development and test files
"""

import datetime
import hashlib
import itertools
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import click

from cloud.lamp import item_from_lamp
from cloud.pocket.films import Films
from cloud.pocket.headlines import Headlines
from cloud.pocket.notices import Notices
from cloud.pocket.papers import PAPERS, Citations
from cloud.pocket.reviews import Reviews
from cloud.pocket.tweets import Tweets
from cloud.tasks import TASKS, Task
from protos.errors import InputError

TRAIN_USERS = range(1_000_000)
DEV_USERS = range(1_000_000, 1_001_000)
TEST_USERS = range(2_000_000, 2_001_000)
SPLITS: dict[str, range] = {
    "train": TRAIN_USERS[:100],
    "dev": DEV_USERS[:20],
    "test": TEST_USERS[100:140],
    "test2": TEST_USERS[200:240],
}
"""Users that files are written for. The bundled users, seen by all, are not among those of tests.
`test2` is for what was changed after `test` had been looked at."""
SIZES = (4, 8, 16, 32, 64)
"""Items in a profile. Five users in a row, from a multiple of five on, have one of these each."""
QUESTIONS = 20

PROFILE_START = datetime.date(2020, 1, 1)
LATER_START = datetime.date(2025, 1, 1)
MAX_GAP_DAYS = 5


class TaskWorld(Protocol):
    """One task: hidden traits, and what follows from facts, traits and chance."""

    def traits(self, rng: random.Random) -> Any:
        """Draw a user's hidden traits: a dataclass, the same type for all users."""
        ...

    def facts(self, rng: random.Random) -> Any:
        """Draw what one item is about, independently of any user."""
        ...

    def text(self, facts: Any, rng: random.Random) -> str:
        """The facts in neutral words: the input."""
        ...

    def facts_of(self, text: str) -> Any | None:
        """What a text that `text` made states, also with LaMP's words around it; None: no such
        text. Where an output is all that there is of an item, such as a tweet, it is that.
        """
        ...

    def ideal(self, facts: Any, traits: Any) -> str:
        """The output without noise: what who knows the traits would answer."""
        ...

    def output(self, facts: Any, traits: Any, rng: random.Random) -> str:
        """The output as the user made it."""
        ...

    def labels(self, traits: Any) -> tuple[int, ...]:
        """The traits as small class numbers: what the teacher is taught to notice."""
        ...


WORLDS: dict[str, TaskWorld] = {
    "LaMP_1": PAPERS,
    "LaMP_2": Films(),
    "LaMP_3": Reviews(),
    "LaMP_4": Headlines(),
    "LaMP_5": PAPERS,
    "LaMP_7": Tweets(),
    "POCKET_0": Notices(),
}
ASKED: dict[str, TaskWorld] = {"LaMP_1": Citations()}
"""How held-out questions are drawn where they are no items; their traits are those of `WORLDS`."""


@dataclass(frozen=True)
class User:
    """One user of one task; `traits` are hidden from all models and are the task's own type."""

    id: str
    task: str
    number: int
    traits: Any


@dataclass(frozen=True)
class Drawn:
    """One item or question, with the facts behind it."""

    facts: Any
    input: str
    output: str
    date: str


def asked_world(task: str) -> TaskWorld:
    """The world that a task's held-out questions come from."""
    return ASKED.get(task, WORLDS[task])


def sample_user(task: str, number: int) -> User:
    """The user with this number: always the same one.

    Raises:
        KeyError: the pocket world has no such task.
    """
    rng = random.Random(f"pocket user {task} {number}")
    return User(f"{task}-{number}", task, number, WORLDS[task].traits(rng))


def draw(user: User, stream: str = "profile") -> Iterator[Drawn]:
    """Endless items in increasing date order; held-out questions if the stream is `questions`.

    Each stream is an independent draw. Dates of `profile` start in 2020, those of any other stream
    in 2025, so a profile of up to 365 items lies before every held-out question.
    """
    rng = random.Random(f"pocket items {user.id} {stream}")
    date = PROFILE_START if stream == "profile" else LATER_START
    asked = stream == "questions"
    world = asked_world(user.task) if asked else WORLDS[user.task]
    task = TASKS[user.task]
    while True:
        date += datetime.timedelta(days=rng.randint(1, MAX_GAP_DAYS))
        facts = world.facts(rng)
        text = world.text(facts, rng)
        output = world.output(facts, user.traits, rng)
        if task.is_beginning and not asked:
            text = item_from_lamp({"id": "", task.input_field: output}, task).input
        yield Drawn(facts, text, output, date.isoformat())


def sample_items(user: User, count: int, stream: str = "profile") -> list[dict[str, str]]:
    """The first `count` of `draw`, as {input, output, date}."""
    return [
        {"input": drawn.input, "output": drawn.output, "date": drawn.date}
        for drawn in itertools.islice(draw(user, stream), count)
    ]


def question_text(task: Task, text: str) -> str:
    """A held-out question in LaMP's own words."""
    return (task.question or task.prompt).replace("{input}", text)


def profile_size(user: User) -> int:
    """How many items this user has: one of `SIZES`."""
    block, place = divmod(user.number, len(SIZES))
    sizes = random.Random(f"pocket sizes {user.task} {block}").sample(SIZES, len(SIZES))
    return sizes[place]


def lamp_files(
    user: User, profile_count: int, question_count: int
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """LaMP's (questions, outputs) of one user, split by time; all questions share one profile."""
    task = TASKS[user.task]
    profile = [
        _profile_item(user, index, item)
        for index, item in enumerate(sample_items(user, profile_count))
    ]
    questions: list[dict[str, Any]] = []
    golds: list[dict[str, str]] = []
    for index, item in enumerate(sample_items(user, question_count, "questions")):
        name = f"{user.number}{index:04d}"
        text = question_text(task, item["input"])
        questions.append({"id": name, "input": text, "user_id": user.id, "profile": profile})
        golds.append({"id": name, "output": item["output"]})
    return questions, {"task": user.task, "golds": golds}


def write_users(task: str, split: str, folder: Path, users: int | None = None) -> tuple[Path, Path]:
    """Write the users of a split, or its first `users`, as files of LaMP's time-based split.

    Returns:
        `{split}_questions.json` and `{split}_outputs.json` in `folder`.

    Raises:
        InputError: no such task or split, or fewer users in it.
    """
    contents = _file_texts(task, split, users)
    folder.mkdir(parents=True, exist_ok=True)
    questions, outputs = (folder / f"{split}_{name}.json" for name in contents)
    for path, text in zip((questions, outputs), contents.values(), strict=True):
        path.write_text(text, encoding="utf-8")
    return questions, outputs


def digests() -> dict[str, str]:
    """The sha256 of each development and test file, by task and file name."""
    return {
        f"{task}/{split}_{name}.json": hashlib.sha256(text.encode()).hexdigest()
        for task in WORLDS
        for split in SPLITS
        if split != "train"
        for name, text in _file_texts(task, split, None).items()
    }


def _file_texts(task: str, split: str, users: int | None) -> dict[str, str]:
    """What the two files of a split hold: a sample a line, so that errors can name the line."""
    for name, known in ((task, WORLDS), (split, SPLITS)):
        if name not in known:
            raise InputError(f"pocket world: {name!r}, expected one of {', '.join(known)}")
    numbers = SPLITS[split][:users]
    if users is not None and not 0 < users == len(numbers):
        raise InputError(f"pocket world: {users} users, but {split} has {len(SPLITS[split])}")
    rows: dict[str, list[dict[str, Any]]] = {"questions": [], "outputs": []}
    for number in numbers:
        user = sample_user(task, number)
        questions, outputs = lamp_files(user, profile_size(user), QUESTIONS)
        rows["questions"] += questions
        rows["outputs"] += outputs["golds"]
    lists = {
        name: "[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in found) + "\n]"
        for name, found in rows.items()
    }
    golds = f'{{"task": {json.dumps(task)}, "golds": {lists["outputs"]}}}\n'
    return {"questions": lists["questions"] + "\n", "outputs": golds}


def _profile_item(user: User, index: int, item: dict[str, str]) -> dict[str, str]:
    task = TASKS[user.task]
    whole = {task.input_field: item["output"]}
    pair = {task.input_field: item["input"], task.output_field: item["output"]}
    return {
        "id": f"{user.number}p{index:04d}",
        **(whole if task.is_beginning else pair),
        "date": item["date"],
    }


if __name__ == "__main__":
    click.echo(json.dumps(digests(), indent=1))
