"""What a teacher is shown covers the user evenly; what it is asked keeps their mix of labels."""

from collections import Counter
from itertools import islice

import pytest

from cloud import selection
from cloud.profiles import Item
from cloud.seeds import choose_shots, parse_strategies, requests, shares_for, showable
from cloud.tasks import TASKS, custom_task
from protos.errors import InputError

SPAM = custom_task("mails", "classification", "{input}", ("ham", "spam", "eggs"))
MAILS = [
    Item(str(n), f"{text} number {n}", "ham" if n < 6 else "spam")
    for n, text in enumerate(["meeting notes"] * 6 + ["cheap pills"] * 2)
]


def test_every_item_is_shown_equally_often() -> None:
    items = [Item(str(n), f"text {n}", "y") for n in range(7)]
    hands = choose_shots(items, 3, seed=1)
    chosen = [next(hands) for _ in range(70)]
    assert all(len({item.id for item in hand}) == 3 for hand in chosen)
    counts = [sum(item in hand for hand in chosen) for item in items]
    assert max(counts) - min(counts) <= 1
    again = choose_shots(items, 3, seed=1)
    assert [next(again) for _ in range(70)] == chosen
    assert [next(choose_shots(items, 3, seed=2)) for _ in range(3)] != chosen[:3]
    assert len(next(choose_shots(items[:2], 8, seed=0))) == 2


def test_a_selection_spans_what_the_user_writes() -> None:
    # two topics, six items each: by chance alone 3 of 10 hands of two would hold one topic only
    topics = ["the football match ended with", "my grandmother bakes a cake of"]
    items = [Item(f"{t}{n}", f"{topic} {n * 7}", "x") for t, topic in enumerate(topics)
             for n in range(6)]  # fmt: skip
    for hand in islice(choose_shots(items, 2, seed=3), 6):
        assert {item.id[0] for item in hand} == {"0", "1"}


def test_no_more_is_shown_than_fits() -> None:
    items = [Item("a", "x" * 50, "y"), Item("b", "z" * 50, "y"), Item("long", "w" * 50_000, "y")]
    shown = showable(items, 110)
    assert [item.id for item in shown] == ["a", "b"]
    assert all(sum(len(i.input) for i in hand) <= 110
               for hand in islice(choose_shots(shown, 8, 0, 110), 5))  # fmt: skip
    assert [len(h) for h in islice(choose_shots(shown, 8, 0, 60), 4)] == [1, 1, 1, 1]
    with pytest.raises(InputError, match="shortest item has 50,001 characters, and at most 110"):
        showable(items[2:], 110)


def test_strategies_come_in_their_shares_and_labels_in_the_users_own() -> None:
    shares = parse_strategies("new=2, paraphrase, label=1")
    asked = list(islice(requests(SPAM, MAILS, shares, 3, 1000, 5, 0, lambda _: True), 32))
    kinds = Counter(ask.kind for ask in asked)
    assert kinds == {"new": 16, "paraphrase": 8, "label": 8}
    # a label asked for comes from the users' own deck: 6 ham and 2 spam in eight, and never eggs
    assert Counter(a.output for a in asked if a.kind == "label") == {"ham": 6, "spam": 2}
    subjects = [(a.text, a.output) for a in asked if a.kind == "paraphrase"]
    assert sorted(subjects) == sorted((item.input, item.output) for item in MAILS)
    assert {a.count for a in asked if a.kind == "paraphrase"} == {1}
    assert len({a.seed for a in asked}) == 32
    shown = Counter(shot.id for ask in asked for shot in ask.shots)
    assert max(shown.values()) - min(shown.values()) <= 1


def test_labels_of_which_there_are_enough_are_no_longer_asked_for() -> None:
    missing = {"ham", "spam"}
    asks = requests(SPAM, MAILS, {"label": 1.0}, 3, 1000, 5, 0, missing.__contains__)
    assert {next(asks).output for _ in range(16)} == {"ham", "spam"}
    missing.remove("ham")
    assert {next(asks).output for _ in range(16)} == {"spam"}


@pytest.mark.parametrize(
    ("text", "says"),
    [("old", "'old', expected auto, or each of"), ("new=0", "above 0"), ("new,new", "at most once"),
     ("new=x", "'new=x'"), ("", "''"), ("new=nan", "above 0")],
)  # fmt: skip
def test_strategies_that_make_no_sense_are_refused(text: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        parse_strategies(text)


def test_strategies_that_do_not_suit_a_task_are_refused() -> None:
    with pytest.raises(InputError, match="LaMP_4 has no labels"):
        shares_for(TASKS["LaMP_4"], "label")
    with pytest.raises(InputError, match="LaMP_7 is the beginning of its output"):
        shares_for(TASKS["LaMP_7"], "paraphrase")


def test_auto_asks_for_labels_where_there_are_any() -> None:
    assert shares_for(TASKS["LaMP_2"], "label=3,paraphrase") == {"label": 3.0, "paraphrase": 1.0}
    assert shares_for(TASKS["LaMP_2"], "auto") == {"label": 1.0}
    assert shares_for(TASKS["LaMP_2"], "auto", keeps_labels=False) == {"new": 1.0}
    assert shares_for(TASKS["LaMP_4"], "auto") == {"new": 1.0}


def test_quotas_keep_the_users_distribution_of_labels() -> None:
    # 6 ham and 2 spam: of 10 that is 7.5 and 2.5; the larger remainder is a draw, ham came first
    assert selection.quotas(SPAM, MAILS, 10) == {"ham": 8, "spam": 2}
    assert selection.quotas(SPAM, MAILS, 8) == {"ham": 6, "spam": 2}
    assert selection.quotas(SPAM, MAILS[:6], 4) == {"ham": 4}, "all labels equal"
    assert selection.quotas(TASKS["LaMP_4"], MAILS, 4) == {"": 4}
    pairs = [("a", "ham"), ("b", "ham"), ("c", "eggs")]
    assert selection.missing({"ham": 1, "spam": 2}, pairs) == {"ham": 0, "spam": 2}


def test_the_best_and_most_different_are_chosen_within_the_quotas() -> None:
    real = [Item("1", "the harbour is closed", "x")]
    pairs = [
        ("the harbour is closed now", "x"),      # 0: as good as the rest, but like a real one
        ("a fox lives in our garden", "x"),      # 1
        ("a fox lives in your garden", "x"),     # 2: like 1
        ("bread costs more since spring", "x"),  # 3
    ]  # fmt: skip
    assert selection.choose({"": 2}, pairs, [1.0, 1.0, 0.9, 1.0], real) == [1, 3]
    assert selection.choose({"": 2}, pairs, [1.0, 0.1, 1.0, 1.0], real) == [2, 3]
    assert selection.choose({"": 9}, pairs, [1.0] * 4, real) == [0, 1, 2, 3]
    labelled = [(text, label) for (text, _), label in zip(pairs, "aabb", strict=True)]
    assert selection.choose({"a": 0, "b": 1}, labelled, [1.0] * 4, real) in ([2], [3])
    assert selection.choose({"": 2}, [], [], real) == []
