"""What an arm learns from where `augment` did not choose it: the first items, and some of them."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cloud.augment import AugmentConfig, augment, split
from cloud.evaluation.datasets import Datasets, unfiltered
from cloud.privacy import Scrubber
from cloud.profiles import Consent, Item, Profile, read_rows, write_profile
from cloud.tasks import TASKS, Task
from cloud.teachers import open_teacher
from protos.artifacts import Artifact

CONFIG = AugmentConfig(scrub="off", pool=1.0, tries=4, votes=0)


def profile_of(out: Path, items: list[Item], task: Task) -> Artifact:
    return write_profile(Profile(task, "ann", "en", Consent(), items, []), out)


def line(text: str, output: str) -> str:
    return json.dumps({"input": text, "output": output})


def test_unfiltered_items_can_be_trained_on_and_hold_nobodys_data(tmp_path: Path, chat) -> None:
    """The first two are too short, the third has no beginning; of the fourth one is too long."""
    pytest.importorskip("presidio_analyzer")
    task = TASKS["LaMP_7"]
    tweets = [
        "Boats left the harbour at dawn today", "My garden is full of red tulips now",
        "Nobody came to the long match again", "Snow fell on all of the hills here",
    ]  # fmt: skip
    items = [Item(str(n), t.split()[0], t) for n, t in enumerate(tweets)]
    profile = profile_of(tmp_path / "p", items, task)
    said = [
        ("Hi", "Hi you"), ("Call", "Call 212-555-0187"), ("Rain", "Sun and rain all over the town"),
        ("Bread", "Bread and butter for all of us"), ("Trains", "Trains are late once more in May"),
        ("Music", "Music was loud at the old mill"),
    ]  # fmt: skip
    chat.say = lambda message, number: "\n".join(line(*pair) for pair in said)
    whole = augment(profile, open_teacher(chat.spec, 1), tmp_path / "d", CONFIG)
    rejected = Counter(row["reason"] for row in read_rows(whole.file("rejected.jsonl")))
    assert rejected["length"] == 2
    assert rejected["schema"] == 1
    user = Profile(task, "ann", "en", Consent(), items, [])
    scrubber = Scrubber([text for item in split(items)[0] for text in (item.input, item.output)])
    assert [row["output"] for row in unfiltered(user, whole, scrubber)] == [
        "Hi you", "Bread and butter for all of us", "Trains are late once more in May",
    ]  # fmt: skip
    assert [row["output"] for row in unfiltered(user, whole, None)][:2] == [
        "Hi you", "Call 212-555-0187",
    ]  # fmt: skip


def test_what_augmentations_of_several_sizes_ask_in_common_is_asked_once(
    tmp_path: Path, chat
) -> None:
    items = [Item(str(n), f"The {w} opened today.", f"{w} opens") for n, w in enumerate(
        ("zoo", "mill", "castle", "shop", "harbour"))]  # fmt: skip
    profile = profile_of(tmp_path / "p", items, TASKS["LaMP_4"])
    said = [
        line("A farmer sold nine pigs.", "pigs sell"),
        line("Rain kept ships in.", "ships stay"),
    ]
    chat.say = lambda message, number: "\n".join(said)
    teacher = open_teacher(chat.spec, 1)
    for per_real in (1.0, 0.5):
        config = replace(CONFIG, per_real=per_real)
        datasets = Datasets(profile, teacher, tmp_path / "u", config, (2.0,))
        assert datasets.of("mixed")
        assert datasets.of("ratio-2")
    sent = [json.dumps([body["messages"], body["seed"]]) for body in chat.bodies]
    assert len(sent) == len(set(sent)) > 1


def test_real_items_are_repeated_to_the_rows_of_a_mix_in_whole_passes_and_a_part(
    tmp_path: Path, chat
) -> None:
    items = [Item(str(n), f"{n} is a number", f"number {n}") for n in range(10)]
    profile = profile_of(tmp_path / "p", items, TASKS["LaMP_4"])
    teacher = open_teacher(chat.spec, 1)

    def repeated(rows: int, seed: int = 0) -> Artifact:
        config = AugmentConfig(scrub="off", seed=seed)
        return Datasets(profile, teacher, tmp_path / "u", config)._repeated(rows)

    def outputs(dataset: Artifact, name: str = "train.jsonl") -> list[str]:
        return [row["output"] for row in read_rows(dataset.file(name))]

    once = repeated(8)
    assert outputs(once) == [f"number {n}" for n in range(8)]
    assert (once.manifest.parents, once.path.name) == ({"profile": profile.id}, "real")
    many = repeated(21)
    assert outputs(many)[:16] == outputs(once) * 2
    assert len(set(outputs(many)[16:])) == 5
    assert outputs(many, "valid.jsonl") == outputs(once, "valid.jsonl") == ["number 8", "number 9"]
    assert {row["origin"] for row in read_rows(many.file("train.jsonl"))} == {"real"}
    assert repeated(21).id == many.id
    lots = {tuple(outputs(repeated(21, seed))[16:]) for seed in range(5)}
    assert len(lots) > 1
    assert len(outputs(repeated(16))) == 16


@pytest.mark.parametrize("labels", [False, True])
def test_ratios_are_nested_draws_by_lot_with_labels_in_their_shares(
    tmp_path: Path, chat, labels: bool
) -> None:
    items = [Item(str(n), f"{n} is a number", "5" if n % 4 else "1") for n in range(25)]
    task = TASKS["LaMP_3" if labels else "LaMP_4"]
    profile = profile_of(tmp_path / "p", items, task)
    teacher = open_teacher(chat.spec, 1)

    def drawn(ratio: float, seed: int = 0) -> list[int]:
        config = AugmentConfig(scrub="off", seed=seed)
        datasets = Datasets(profile, teacher, tmp_path / "u", config, (0.5, 1.0, 2.0))
        return [row["place"] for row in datasets._some(rows, ratio)]

    rows: list[dict[str, Any]] = [
        {"place": n, "output": "5" if n % 4 else "1", "source": {"scores": {"style": n / 40}}}
        for n in range(40)
    ]
    half, one, two = drawn(0.5), drawn(1.0), drawn(2.0)
    assert (len(half), len(one), two) == (10, 20, list(range(40)))
    assert set(half) < set(one) < set(two)
    assert half == sorted(half)
    assert drawn(0.5) == half != drawn(0.5, seed=1)
    # the mean quality of what is drawn is that of all, not that of the best
    means = [sum(drawn(0.5, seed)) / 10 for seed in range(40)]
    assert sum(means) / len(means) == pytest.approx(19.5, abs=2)
    if labels:  # a quarter are 1
        for chosen in (half, one):
            assert sum(place % 4 == 0 for place in chosen) == pytest.approx(len(chosen) / 4, abs=1)
