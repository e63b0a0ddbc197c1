"""The pocket world: the same users everywhere, hidden traits that stay hidden, honest splits."""

import itertools
import json
import random
from collections import Counter
from pathlib import Path

import pytest

from cloud.filters import Filters
from cloud.lamp import read_lamp, task_of
from cloud.pocket import build, ceilings, world
from cloud.pocket.world import (
    DEV_USERS,
    QUESTIONS,
    SIZES,
    SPLITS,
    TEST_USERS,
    TRAIN_USERS,
    WORLDS,
    asked_world,
    draw,
    lamp_files,
    profile_size,
    question_text,
    sample_items,
    sample_user,
    write_users,
)
from cloud.profiles import Item
from cloud.tasks import TASKS
from protos.errors import InputError

BUNDLED_USERS = Path(build.__file__).parent / "users"
FROZEN = Path(world.__file__).parent / "world.json"
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


def test_the_world_is_frozen() -> None:
    assert world.digests() == json.loads(FROZEN.read_text("utf-8"))


def test_populations_are_disjoint_and_the_bundled_users_are_not_tested() -> None:
    spans = sorted((r.start, r.stop) for r in (TRAIN_USERS, DEV_USERS, TEST_USERS))
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))
    assert set(SPLITS["train"]) <= set(TRAIN_USERS)
    assert set(SPLITS["dev"]) <= set(DEV_USERS)
    tested = [*SPLITS["test"], *SPLITS["test2"], *build.USERS]
    assert set(tested) <= set(TEST_USERS)
    assert len(set(tested)) == len(tested)
    assert len(SPLITS["test"]) == len(SPLITS["test2"]) == 40


@tasks
@pytest.mark.parametrize("split", ["dev", "test", "test2"])
def test_users_of_a_split_have_each_number_of_items_equally_often(task: str, split: str) -> None:
    sizes = Counter(profile_size(sample_user(task, number)) for number in SPLITS[split])
    assert sizes == dict.fromkeys(SIZES, len(SPLITS[split]) // len(SIZES))


@tasks
@pytest.mark.parametrize("stream", ["profile", "questions"])
def test_what_a_text_states_can_be_read_from_it(task: str, stream: str) -> None:
    """Who goes by what was read gives the answers of who goes by the facts, for any traits."""
    asked = stream == "questions"
    the_world = asked_world(task) if asked else WORLDS[task]
    traits = [sample_user(task, number).traits for number in range(20)]
    for number in range(40, 50):
        for item in itertools.islice(draw(sample_user(task, number), stream), 20):
            spoken = item.output if TASKS[task].is_beginning else item.input
            read = the_world.facts_of(question_text(TASKS[task], item.input) if asked else spoken)
            assert [the_world.ideal(read, each) for each in traits] == [
                the_world.ideal(item.facts, each) for each in traits
            ]
    assert the_world.facts_of("The quick brown fox jumps over the lazy dog.") is None


@tasks
def test_streams_and_users_share_no_text(task: str) -> None:
    """A tweet's beginning may come again; the tweet may not."""
    user, other = sample_user(task, 5), sample_user(task, 6)
    name = "output" if TASKS[task].is_beginning else "input"
    streams = [
        {item[name] for item in items}
        for items in (
            sample_items(user, 100),
            sample_items(user, 100, "questions"),
            sample_items(other, 100),
        )
    ]
    assert len(set.union(*streams)) == sum(len(stream) for stream in streams) == 300


@tasks
def test_items_are_single_lines_in_date_order(task: str) -> None:
    for items in (
        sample_items(sample_user(task, 11), 50),
        sample_items(sample_user(task, 11), 50, "questions"),
    ):
        dates = [item["date"] for item in items]
        assert dates == sorted(set(dates))
        assert all("\n" not in item["input"] + item["output"] for item in items)


@pytest.mark.parametrize(
    ("task", "answers"),
    [("LaMP_1", 100), ("LaMP_2", 3), ("LaMP_3", 4), ("LaMP_4", 100), ("LaMP_5", 100),
     ("LaMP_7", 100), ("POCKET_0", 1)],
)  # fmt: skip
def test_the_same_facts_get_other_answers_from_other_users(task: str, answers: int) -> None:
    facts = WORLDS[task].facts(random.Random("one item"))
    made = {WORLDS[task].ideal(facts, sample_user(task, n).traits) for n in range(200)}
    assert len(made) == 1 if answers == 1 else len(made) >= answers


@tasks
def test_traits_are_counted_as_classes_from_zero(task: str) -> None:
    rows = [WORLDS[task].labels(sample_user(task, number).traits) for number in range(500)]
    for column in zip(*rows, strict=True):
        assert set(column) == set(range(max(column) + 1))
        assert len(set(column)) > 1


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
    fields = {TASKS[task].input_field, TASKS[task].output_field} - {""}
    for question, item in zip(questions, held_out, strict=True):
        assert TASKS[task].question_input(question["input"]) == item["input"] != question["input"]
        assert set(question["profile"][0]) == {"id", "date", *fields}
        assert all(old["date"] < item["date"] for old in question["profile"])
        texts = [old[TASKS[task].input_field] for old in question["profile"]]
        assert all(text not in question["input"] for text in texts)


@tasks
def test_written_users_are_imported_as_the_world_made_them(task: str, tmp_path: Path) -> None:
    questions, outputs = write_users(task, "dev", tmp_path, users=5)
    assert (questions.name, outputs.name) == ("dev_questions.json", "dev_outputs.json")
    assert task_of(outputs) == TASKS[task]
    sizes: list[int] = []
    for number in SPLITS["dev"][:5]:
        user = sample_user(task, number)
        read = read_lamp(questions, outputs, TASKS[task], user.id)
        made = sample_items(user, profile_size(user))
        assert (read.name, read.left_out) == (user.id, [])
        assert [(i.input, i.output, i.date) for i in read.items] == [
            tuple(i.values()) for i in made
        ]
        held_out = sample_items(user, QUESTIONS, "questions")
        assert [(q.input, q.output) for q in read.questions] == [
            (i["input"], i["output"]) for i in held_out
        ]
        sizes.append(len(read.items))
    assert sorted(sizes) == list(SIZES)


@pytest.mark.parametrize(
    ("task", "split", "users", "message"),
    [
        ("LaMP_6", "dev", None, "'LaMP_6', expected one of LaMP_1, LaMP_2"),
        ("LaMP_4", "valid", None, "'valid', expected one of train, dev, test"),
        ("LaMP_4", "dev", 21, "21 users, but dev has 20"),
        ("LaMP_4", "dev", 0, "0 users, but dev has 20"),
    ],
)
def test_users_that_there_are_not_are_refused(
    task: str, split: str, users: int | None, message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        write_users(task, split, tmp_path, users)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("task", "noise"), [("LaMP_1", 0.05), ("LaMP_2", 0.05), ("LaMP_3", 0.03), ("POCKET_0", 0.05)]
)
def test_outputs_are_noisy_as_often_as_is_said(task: str, noise: float) -> None:
    """Within three standard deviations of 2,000 questions; clipped scores hide some of it."""
    wrong = total = 0
    for number in range(100):
        user = sample_user(task, number)
        for drawn in itertools.islice(world.draw(user, "questions"), 20):
            if task != "LaMP_3" or asked_world(task).ideal(drawn.facts, user.traits) in "234":
                wrong += asked_world(task).ideal(drawn.facts, user.traits) != drawn.output
                total += 1
    assert wrong / total == pytest.approx(noise, abs=3 * (noise * (1 - noise) / total) ** 0.5)


@pytest.mark.parametrize(
    ("task", "ceiling", "unknown"),
    [("LaMP_1", 0.9, 0.65), ("LaMP_2", 0.9, 0.6), ("LaMP_3", -0.05, -0.6), ("LaMP_4", 0.97, 0.5),
     ("LaMP_5", 0.97, 0.6), ("LaMP_7", 0.97, 0.6)],
)  # fmt: skip
def test_users_can_be_known_by_their_items_and_by_nothing_else(
    task: str, ceiling: float, unknown: float
) -> None:
    """The oracle reaches the ceiling, no stranger comes near; a reader gains by items, until all
    is known.
    """
    found = ceilings.row(task, [sample_user(task, number) for number in DEV_USERS[:5]])
    few, some, many = (found[f"reader, {count} items"] for count in ceilings.READ)
    assert found["oracle"] >= ceiling
    assert max(found["stranger"], found["another"]) <= unknown
    assert found["stranger"] < few < some
    assert some < many <= found["oracle"] + 0.02 or some == many == found["oracle"]
    assert many - found["stranger"] > 0.9 * (found["oracle"] - found["stranger"])


def test_nothing_can_be_gained_where_there_are_no_traits() -> None:
    found = ceilings.row("POCKET_0", [sample_user("POCKET_0", n) for n in DEV_USERS[:5]])
    assert set(found.values()) == {found["oracle"]}
    assert found["oracle"] > 0.97


@pytest.mark.parametrize(
    ("task", "least"),
    [("LaMP_1", 0.97), ("LaMP_2", 0.96), ("LaMP_3", 0.95), ("LaMP_4", 0.87), ("LaMP_5", 0.92),
     ("LaMP_7", 0.91), ("POCKET_0", 0.95)],
)  # fmt: skip
def test_nearly_all_new_items_of_a_user_pass_our_own_filters(task: str, least: float) -> None:
    """Else no teacher, however good, could help this user: 300 items of 15 of them."""
    passed = 0
    for number in DEV_USERS[:15]:
        user = sample_user(task, number)
        rows = enumerate(sample_items(user, 16))
        real = [Item(str(n), row["input"], row["output"], row["date"]) for n, row in rows]
        asked = sample_items(user, QUESTIONS, "questions")
        inputs, outputs = ([row[name] for row in asked] for name in ("input", "output"))
        filters = Filters(TASKS[task], real, inputs, outputs)
        for row in sample_items(user, 20, "fresh"):
            pair = (row["input"], row["output"])
            passed += not (filters.rejects(pair) or filters.keep(pair))
    assert passed >= least * 15 * 20


@pytest.mark.parametrize("task", build.USER_TASKS)
def test_bundled_users_are_what_the_world_makes(task: str, tmp_path: Path) -> None:
    build.build_users(tmp_path)
    for name in ("dev_questions.json", "dev_outputs.json"):
        made = (tmp_path / "users" / task / name).read_bytes()
        assert made == (BUNDLED_USERS / task / name).read_bytes(), f"run: {build.USERS_COMMAND}"
    questions = json.loads((BUNDLED_USERS / task / "dev_questions.json").read_text("utf-8"))
    counts = Counter(question["user_id"] for question in questions)
    assert list(counts.values()) == [30, 30]
    assert {len(question["profile"]) for question in questions} == {12}
