"""Which candidates are taken: labels in the user's shares, the best and most different of each."""

from collections import Counter

import pytest

from cloud.profiles import Item
from cloud.selection import choose, places, quotas
from cloud.tasks import TASKS, custom_task

MAILS = custom_task("mails", "classification", "Sort: {input}", ("a", "b", "c", "d", "e", "f"))


def own(**counts: int) -> list[Item]:
    """So many real items of each label."""
    labels = [label for label, count in counts.items() for _ in range(count)]
    return [Item(str(n), f"real {n}", label) for n, label in enumerate(labels)]


def passed(**counts: int) -> list[tuple[str, str]]:
    """So many candidates of each label."""
    return [(f"{label} {n}", label) for label, count in counts.items() for n in range(count)]


@pytest.mark.parametrize(
    ("real", "found", "taken"),
    [
        # enough of all: what is wanted, one for each real one
        ({"a": 8, "b": 2}, {"a": 9, "b": 9}, {"a": 8, "b": 2}),
        # 2 of 8: with 2 of b it were 4, of which b's share is 0.8, so 1 (0.6 of 3, and one is free)
        ({"a": 8, "b": 2}, {"a": 2, "b": 2}, {"a": 2, "b": 1}),
        # none of the habit: of the other one item, not the two that are wanted
        ({"a": 8, "b": 2}, {"b": 9}, {"a": 0, "b": 1}),
        # the rare one is missing: 13 of 15 is one more than 0.8 of these, 16 of 18 were 1.6 more
        ({"a": 8, "b": 2}, {"a": 9}, {"a": 5, "b": 0}),
        # half of a's 40 are there: b's 10 become 1 + 10/50 of 26 = 6
        ({"a": 40, "b": 10}, {"a": 20, "b": 50}, {"a": 20, "b": 6}),
        # the common label is missing, each of the others may come once
        ({"a": 5, "b": 1, "c": 1, "d": 1, "e": 1, "f": 1}, dict.fromkeys("bcdef", 3),
         {"a": 0, "b": 1, "c": 1, "d": 1, "e": 1, "f": 1}),
        # few items, one scarce label: 1 of 2 and 2 of 2
        ({"a": 2, "b": 2}, {"a": 1, "b": 9}, {"a": 1, "b": 2}),
    ],
)  # fmt: skip
def test_where_a_label_is_scarce_the_others_are_scaled_down(
    real: dict[str, int], found: dict[str, int], taken: dict[str, int]
) -> None:
    items, pairs = own(**real), passed(**found)
    wanted = quotas(MAILS, items, len(items))
    assert places(wanted, pairs, items) == taken
    chosen = choose(wanted, pairs, [1.0] * len(pairs), items)
    assert Counter(pairs[i][1] for i in chosen) == Counter(taken)


@pytest.mark.parametrize("found", [{"a": 3, "b": 40, "c": 9}, {"a": 60, "b": 1, "c": 0}])
def test_no_label_gains_more_than_an_item_in_what_is_learned(found: dict[str, int]) -> None:
    real = {"a": 60, "b": 30, "c": 10}
    items = own(**real)
    taken = places(quotas(MAILS, items, 100), passed(**found), items)
    total = 100 + sum(taken.values())
    for label, count in real.items():
        assert count + taken[label] <= count / 100 * total + 1
    assert sum(taken.values()) > 0


def test_free_text_has_one_quota_and_the_best_of_the_most_different_are_taken() -> None:
    task = TASKS["LaMP_4"]
    real = [Item("1", "the zoo opens", "x")]
    pairs = [("the zoo opens again", "x"), ("rain in the hills", "x"), ("rain in the hill", "x")]
    assert quotas(task, real, 2) == {"": 2}
    assert choose({"": 2}, pairs, [1.0, 0.9, 0.8], real) == [0, 1]
    assert choose({"": 1}, pairs, [0.1, 0.9, 1.0], real) == [2]
    assert choose({"": 2}, [], [], real) == []
