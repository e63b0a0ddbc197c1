"""Small LaMP files in the benchmark's own shapes, and what they are evaluated with."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cloud.augment import AugmentConfig
from cloud.evaluation.inputs import EvaluateConfig, Means
from cloud.evaluation.users import read_users
from cloud.teachers import Calls, open_teacher
from cloud.train import TrainConfig
from protos.artifacts import Artifact
from protos.base_model import open_base

PLACES = ("zoo", "mill", "castle", "shop", "harbour", "school", "theatre", "bakery")
AUGMENTING = AugmentConfig(scrub="off", pool=1.0, tries=3, round=4)
TRAINING = TrainConfig(epochs=1, rank=2, batch_size=4, dtype="float32", learning_rate=5e-3)


def lamp_files(folder: Path, task: str, users: dict[str, Any], split: str = "dev") -> Path:
    """LaMP's two files. users: name -> (profile items, [(question, the user's own answer)])."""
    questions: list[dict[str, Any]] = []
    golds: list[dict[str, str]] = []
    for user, (profile, asked) in users.items():
        for number, (query, gold) in enumerate(asked):
            name = f"{user}-{number}"
            questions.append({"id": name, "input": query, "user_id": user, "profile": profile})
            golds.append({"id": name, "output": gold})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{split}_questions.json").write_text(json.dumps(questions))
    (folder / f"{split}_outputs.json").write_text(json.dumps({"task": task, "golds": golds}))
    return folder


def headlines(user: str, items: int = 4, first: int = 0) -> Any:
    """A user of LaMP_4: items about some places, and two questions about yet others."""
    profile = [
        {
            "id": f"{user}p{n}", "text": f"The {PLACES[n % 8]} of {user} opened with {n} guests.",
            "title": f"{PLACES[n % 8]} opens for {user}", "date": f"2020-01-{n + 1:02}",
        }
        for n in range(first, first + items)
    ]  # fmt: skip
    head = "Generate a headline for the following article: "
    asked = [
        (f"{head}Zebra {user} ran over field number {n} at night.", f"Secret {user} zebra {n}")
        for n in range(2)
    ]
    return profile, asked


@pytest.fixture
def means(tiny_base: Path) -> Callable[..., Means]:
    """`means(teacher, …)`: the tiny base, trained for one short epoch."""

    def make(teacher: str = "pocket", **given: Any) -> Means:
        settings = {"augmenting": AUGMENTING, "training": TRAINING, "calls": Calls(retries=0)}
        opened = open_teacher(teacher, 1, Calls(retries=0, timeout_s=30))
        return Means(open_base(str(tiny_base)), opened, **{**settings, **given})

    return make


@pytest.fixture
def imported(tmp_path: Path) -> Callable[..., list[Artifact]]:
    """`imported(folder)`: the Profiles of everybody in LaMP's files."""

    def read(folder: Path, out: Path | None = None) -> list[Artifact]:
        return read_users(folder, "dev", None, False, out or tmp_path / "out").profiles

    return read


def arms(names: str, **given: Any) -> EvaluateConfig:
    return EvaluateConfig(names, **given)
