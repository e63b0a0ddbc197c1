"""The pocket world: users with hidden traits, and their dated items, for the tasks of `WORLDS`.

In: a task and a user's number. Out: items and LaMP-shaped files. Everything follows from the
numbers alone (`random.Random` seeded with text), so any machine makes the same users. No torch
here. A new task is one class like `Headlines` and one row in `WORLDS`.
"""

import datetime
import random
from dataclasses import dataclass
from typing import Any, Protocol

from cloud.pocket.headlines import Headlines
from cloud.pocket.reviews import Reviews
from cloud.tasks import TASKS

TRAIN_USERS = range(1_000_000)
DEV_USERS = range(1_000_000, 1_001_000)
TEST_USERS = range(2_000_000, 2_001_000)

PROFILE_START = datetime.date(2020, 1, 1)
LATER_START = datetime.date(2025, 1, 1)
MAX_GAP_DAYS = 5


class TaskWorld(Protocol):
    """One task: hidden traits, and items that follow from traits and chance."""

    profile_field: str
    """Name of the output in LaMP's profile items: `title` or `score`."""

    def traits(self, rng: random.Random) -> Any:
        """Draw a user's hidden traits."""
        ...

    def item(self, traits: Any, rng: random.Random) -> tuple[str, str]:
        """Draw one item, as (input, output); the input must not depend on the traits."""
        ...

    def labels(self, traits: Any) -> tuple[int, ...]:
        """The traits as small class numbers: what the teacher is taught to notice."""
        ...


WORLDS: dict[str, TaskWorld] = {"LaMP_3": Reviews(), "LaMP_4": Headlines()}


@dataclass(frozen=True)
class User:
    """One user of one task; `traits` are hidden from all models and are the task's own type."""

    id: str
    task: str
    number: int
    traits: Any


def sample_user(task: str, number: int) -> User:
    """The user with this number: always the same one.

    Raises:
        KeyError: the pocket world has no such task.
    """
    rng = random.Random(f"pocket user {task} {number}")
    return User(f"{task}-{number}", task, number, WORLDS[task].traits(rng))


def sample_items(user: User, count: int, stream: str = "profile") -> list[dict[str, str]]:
    """`count` items {input, output, date} in increasing date order.

    Each stream is an independent draw. Dates of `profile` start in 2020, those of any other stream
    in 2025, so a profile of up to 365 items lies before every held-out item.
    """
    rng = random.Random(f"pocket items {user.id} {stream}")
    date = PROFILE_START if stream == "profile" else LATER_START
    items: list[dict[str, str]] = []
    for _ in range(count):
        date += datetime.timedelta(days=rng.randint(1, MAX_GAP_DAYS))
        text, output = WORLDS[user.task].item(user.traits, rng)
        items.append({"input": text, "output": output, "date": date.isoformat()})
    return items


def lamp_files(
    user: User, profile_count: int, question_count: int
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """LaMP's (questions, outputs) of one user, split by time; all questions share one profile."""
    profile = [
        _profile_item(user, index, item)
        for index, item in enumerate(sample_items(user, profile_count))
    ]
    questions: list[dict[str, Any]] = []
    golds: list[dict[str, str]] = []
    for index, item in enumerate(sample_items(user, question_count, "questions")):
        name = f"{user.number}{index:04d}"
        text = TASKS[user.task].query(item["input"])
        questions.append({"id": name, "input": text, "user_id": user.id, "profile": profile})
        golds.append({"id": name, "output": item["output"]})
    return questions, {"task": user.task, "golds": golds}


def _profile_item(user: User, index: int, item: dict[str, str]) -> dict[str, str]:
    return {
        "id": f"{user.number}p{index:04d}",
        "text": item["input"],
        WORLDS[user.task].profile_field: item["output"],
        "date": item["date"],
    }
