"""The reader as a teacher: what it says follows from the items that it is shown, and the rules."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cloud.augment import AugmentConfig, augment
from cloud.cli import import_profile
from cloud.metrics import item_scores
from cloud.pocket import ceilings
from cloud.pocket.reader import ReaderTeacher
from cloud.pocket.world import DEV_USERS, WORLDS, Drawn, User, draw, question_text, sample_user
from cloud.profiles import Item
from cloud.prompts import Ask, Pair
from cloud.tasks import TASKS
from cloud.teachers import GREEDY, Sampling, open_teacher
from protos.artifacts import read_json
from protos.errors import InputError

USERS = Path(ceilings.__file__).parent / "users"
GIVEN: dict[str, Any] = {
    "task": None, "kind": None, "prompt": "{input}", "labels": "", "language": "en",
    "purpose": "personalization", "retention_days": 30, "third_party": False,
}  # fmt: skip
tasks = pytest.mark.parametrize("task", list(WORLDS))
reader = ReaderTeacher()
WARM = Sampling(temperature=1.0)


def drawn(user: User, count: int, stream: str = "profile") -> list[Drawn]:
    return list(itertools.islice(draw(user, stream), count))


def items(user: User, count: int) -> tuple[Item, ...]:
    return tuple(
        Item(str(number), each.input, each.output) for number, each in enumerate(drawn(user, count))
    )


def said(task: str, *asks: Ask, sampling: Sampling = GREEDY) -> list[list[Pair | None]]:
    replies = dict(reader.write(TASKS[task], asks, sampling))
    return [reader.read(TASKS[task], ask, replies[index].text) for index, ask in enumerate(asks)]


def questions(task: str, shots: tuple[Item, ...], stranger: list[Drawn]) -> list[str]:
    asks = [
        Ask("answer", shots, question_text(TASKS[task], question.input)) for question in stranger
    ]
    return [pair[1] for (pair,) in said(task, *asks) if pair]


@tasks
def test_from_texts_alone_it_answers_as_who_knows_the_facts_behind_them(task: str) -> None:
    user = sample_user(task, DEV_USERS[3])
    asked = drawn(user, 20, "questions")
    knows = ceilings.reader(user, 16)
    assert questions(task, items(user, 16), asked) == [knows(each.facts) for each in asked]


@pytest.mark.parametrize("task", ["LaMP_2", "LaMP_4", "LaMP_5", "LaMP_7"])
def test_it_knows_nothing_but_what_it_is_shown(task: str) -> None:
    one, other = sample_user(task, DEV_USERS[0]), sample_user(task, DEV_USERS[1])
    asked = drawn(one, 20, "questions")
    golds = [each.output for each in asked]
    own, others = (
        sum(item_scores(TASKS[task], questions(task, items(user, 16), asked), golds))
        for user in (one, other)
    )
    assert own > others + 2


@pytest.mark.parametrize("task", ["LaMP_2", "LaMP_3", "LaMP_4", "LaMP_7"])
def test_new_items_are_new_and_as_the_user_would_make_them(task: str) -> None:
    user = sample_user(task, DEV_USERS[2])
    shots = items(user, 64)
    first, again, other = said(task, *(Ask("new", shots, count=4, seed=seed) for seed in (1, 1, 2)))
    assert len(first) == 4
    assert first == again
    assert first != other
    known = {(each.input, each.output) for each in shots}
    pairs = [pair for pair in first + other if pair]
    assert not known & set(pairs)
    ideal = [
        WORLDS[task].ideal(
            WORLDS[task].facts_of(output if TASKS[task].is_beginning else text), user.traits
        )
        for text, output in pairs
    ]
    scores = item_scores(TASKS[task], [output for _, output in pairs], ideal)
    assert sum(scores) / len(scores) > (-0.4 if task == "LaMP_3" else 0.8)


def test_each_kind_of_request_has_its_reply() -> None:
    user = sample_user("LaMP_3", DEV_USERS[4])
    shots = items(user, 64)
    item = drawn(user, 1, "more")[0]
    ((vote,),) = said("LaMP_3", Ask("vote", shots, item.input))
    assert vote
    ((output,), (other,), label) = said(
        "LaMP_3",
        Ask("output", shots, item.input),
        Ask("paraphrase", shots, item.input, vote[1]),
        Ask("label", shots, output="2", count=3),
    )
    assert output == vote
    assert other
    assert other[0] != item.input
    assert WORLDS["LaMP_3"].facts_of(other[0]) == item.facts
    assert [pair[1] for pair in label if pair] == ["2"] * 3
    votes = said("LaMP_3", *(Ask("vote", shots, pair[0]) for pair in label if pair))
    assert [pair[1] for (pair,) in votes if pair] == ["2"] * 3


@pytest.mark.parametrize("task", ["LaMP_2", "LaMP_3"])
def test_its_votes_agree_on_what_the_items_tell_and_differ_on_what_they_do_not(task: str) -> None:
    """So what most votes give is right more often than what it says when it is asked once."""
    once: list[bool] = []
    agreed: list[bool] = []
    for number in DEV_USERS[:20]:
        user = sample_user(task, number)
        asked = drawn(user, 20, "more")
        shots = items(user, 4)
        asks = [Ask("vote", shots, each.input, seed=seed) for each in asked for seed in range(5)]
        labels = [pair[1] if pair else None for (pair,) in said(task, *asks, sampling=WARM)]
        for place, each in enumerate(asked):
            votes = labels[5 * place : 5 * place + 5]
            is_right = votes[0] == WORLDS[task].ideal(each.facts, user.traits)
            once.append(is_right)
            if len(set(votes)) == 1:
                agreed.append(is_right)
    assert 0.3 * len(once) < len(agreed) < 0.9 * len(once)
    assert sum(agreed) / len(agreed) > sum(once) / len(once) + 0.05


def test_at_temperature_nought_a_seed_changes_nothing() -> None:
    differ = 0
    for number in DEV_USERS[:10]:
        user = sample_user("LaMP_3", number)
        shots, text = items(user, 4), drawn(user, 1, "more")[0].input
        asks = [Ask("vote", shots, text, seed=seed) for seed in range(16)]
        first, *others = said("LaMP_3", *asks)
        assert others == [first] * 15
        warm = said("LaMP_3", *asks, sampling=WARM)
        assert warm == said("LaMP_3", *asks, sampling=WARM)
        differ += any(each != first for each in warm)
    assert differ


def test_it_judges_by_nearness_to_what_the_user_would_write() -> None:
    user = sample_user("LaMP_4", DEV_USERS[0])
    item, shots = drawn(user, 1, "more")[0], items(user, 64)
    ((own,),) = said("LaMP_4", Ask("output", shots, item.input))
    assert own
    (best,), (worst,) = said(
        "LaMP_4",
        Ask("judge", shots, item.input, own[1]),
        Ask("judge", shots, item.input, "Nothing of the kind"),
    )
    assert best
    assert worst
    assert (best[1], worst[1]) == ("5", "1")


def test_who_is_not_of_this_world_is_refused_and_a_strange_text_is_unparsed() -> None:
    stranger = (Item("1", "Cheap pills", "spam"),)
    with pytest.raises(InputError, match="users of the pocket world only"):
        said("LaMP_2", Ask("new", stranger))
    mails = replace(TASKS["LaMP_2"], name="mails")
    with pytest.raises(InputError, match="users of the pocket world only"):
        list(reader.write(mails, [Ask("new", stranger)], GREEDY))
    shots = items(sample_user("LaMP_2", DEV_USERS[0]), 4)
    assert said("LaMP_2", Ask("vote", shots, "Cheap pills")) == [[None]]


def test_augmentation_takes_nearly_all_that_it_writes(tmp_path: Path) -> None:
    profile = import_profile(
        USERS / "LaMP_3" / "dev_questions.json", tmp_path / "profile", user="LaMP_3-2000000",
        outputs=USERS / "LaMP_3" / "dev_outputs.json", **GIVEN,
    )  # fmt: skip
    config = AugmentConfig(per_real=3, shots=16)
    made = augment(profile, open_teacher("pocket-reader", threads=1), tmp_path / "set", config)
    measured = read_json(made.path / "manifest.json")["measured"]
    assert measured["synthetic"] == measured["wanted"] > 0
    assert measured["rejected"]["inconsistent"] == measured["rejected"]["unparsed"] == 0
