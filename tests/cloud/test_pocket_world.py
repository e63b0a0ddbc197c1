"""The pocket world: the same users everywhere, hidden traits that stay hidden, honest splits."""

import itertools
import json
import random
from collections import Counter
from pathlib import Path

import pytest

from cloud.pocket import build
from cloud.pocket.world import (
    DEV_USERS,
    TEST_USERS,
    TRAIN_USERS,
    WORLDS,
    lamp_files,
    sample_items,
    sample_user,
)
from cloud.tasks import TASKS

BUNDLED = Path(build.__file__).parent / "users"
tasks = pytest.mark.parametrize("task", list(WORLDS))


@tasks
def test_a_number_always_makes_the_same_user_and_items(task: str) -> None:
    first, again = sample_user(task, 7), sample_user(task, 7)
    assert first == again
    assert sample_items(first, 20) == sample_items(again, 20)
    assert sample_items(first, 20)[:5] == sample_items(again, 5)


def test_the_world_is_the_one_the_models_were_trained_on() -> None:
    headline = sample_items(sample_user("LaMP_4", 3), 1)[0]
    assert headline == {
        "input": "The news came from Nairobi on Tuesday. It concerns 800 patients. "
        "Everyone is talking about the clinic of doctor Holt.",
        "output": "Promising clinic approved by Holt on Tuesday",
        "date": "2020-01-05",
    }
    review = sample_items(sample_user("LaMP_3", 3), 1)[0]
    assert review == {
        "input": "A friend from Athens had told us about it. The food was bland. "
        "I found the lighting filthy. We thought the staff was slow. "
        "We thought the price was shocking.",
        "output": "1",
        "date": "2020-01-04",
    }


def test_populations_are_disjoint() -> None:
    spans = sorted((r.start, r.stop) for r in (TRAIN_USERS, DEV_USERS, TEST_USERS))
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))
    assert set(build.USERS) <= set(TEST_USERS)


@tasks
def test_streams_and_users_share_no_input(task: str) -> None:
    user, other = sample_user(task, 5), sample_user(task, 6)
    streams = [
        {item["input"] for item in items}
        for items in (
            sample_items(user, 100),
            sample_items(user, 100, "questions"),
            sample_items(other, 100),
        )
    ]
    assert len(set.union(*streams)) == sum(len(stream) for stream in streams)


@tasks
def test_items_are_single_lines_in_date_order(task: str) -> None:
    for items in (
        sample_items(sample_user(task, 11), 50),
        sample_items(sample_user(task, 11), 50, "questions"),
    ):
        dates = [item["date"] for item in items]
        assert dates == sorted(set(dates))
        assert all("\n" not in item["input"] + item["output"] for item in items)


@tasks
def test_inputs_do_not_depend_on_traits(task: str) -> None:
    """Same chance, other traits: the text stays the same to the letter, only outputs differ."""
    world = WORLDS[task]
    numbers = range(200)
    made = [world.item(sample_user(task, n).traits, random.Random("same chance")) for n in numbers]
    assert len({text for text, _ in made}) == 1
    assert len({output for _, output in made}) >= (4 if task == "LaMP_3" else 100)


def test_scores_are_in_range_and_none_is_rare() -> None:
    scores = Counter(
        item["output"]
        for number in range(300)
        for item in sample_items(sample_user("LaMP_3", number), 5)
    )
    assert set(scores) == set("12345")
    assert min(scores.values()) > 100


@tasks
def test_lamp_files_have_lamps_shape_and_hold_nothing_out_of_time(task: str) -> None:
    user = sample_user(task, TEST_USERS[5])
    questions, outputs = lamp_files(user, 12, 30)
    held_out = sample_items(user, 30, "questions")
    assert outputs["task"] == task
    assert [gold["id"] for gold in outputs["golds"]] == [q["id"] for q in questions]
    assert [gold["output"] for gold in outputs["golds"]] == [item["output"] for item in held_out]
    field = WORLDS[task].profile_field
    for question, item in zip(questions, held_out, strict=True):
        assert question["input"] == TASKS[task].query(item["input"])
        assert set(question["profile"][0]) == {"id", "text", field, "date"}
        assert all(old["date"] < item["date"] for old in question["profile"])
        assert all(old["text"] not in question["input"] for old in question["profile"])


@tasks
def test_bundled_users_are_what_the_world_makes(task: str, tmp_path: Path) -> None:
    build.build_users(tmp_path)
    for name in ("dev_questions.json", "dev_outputs.json"):
        made = (tmp_path / "users" / task / name).read_bytes()
        assert made == (BUNDLED / task / name).read_bytes(), f"run: {build.USERS_COMMAND}"
    questions = json.loads((BUNDLED / task / "dev_questions.json").read_text("utf-8"))
    counts = Counter(question["user_id"] for question in questions)
    assert list(counts.values()) == [30, 30]
    assert {len(question["profile"]) for question in questions} == {12}
