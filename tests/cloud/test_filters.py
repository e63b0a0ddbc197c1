"""Each filter rejects what it is for, by name, and lets the rest through; scores are LaMP's."""

import pytest
from rouge_score import rouge_scorer

from cloud.augment import choose_shots, split
from cloud.filters import Filters, rouge_l, words
from cloud.metrics import bootstrap_interval, item_scores, measures
from cloud.profiles import Item
from cloud.prompts import chat_prompt, continuation_prompt, parse_chat, parse_continuation
from cloud.tasks import TASKS, custom_task

HEADLINE, RATING = TASKS["LaMP_4"], TASKS["LaMP_3"]
REAL = [
    Item("1", "The old mill by the river burned down on Monday night.", "Fire takes the old mill"),
    Item("2", "Two schools in the valley close because of heavy snow.", "Snow shuts two schools"),
]
FRESH = ("A lorry full of oranges lost its load on the coast road.", "Oranges all over the road")


def filters() -> Filters:
    held_inputs = ["The swimming pool opens a week early thanks to the sun."]
    return Filters(HEADLINE, REAL, held_inputs, ["Pool opens early this year"])


@pytest.mark.parametrize(
    ("pair", "reason"),
    [
        (FRESH, None),
        ((REAL[0].input.upper() + " ", REAL[0].output), "duplicate"),
        (("The old mill by the lake burned down on Monday night.", "Mill gone"), "near-duplicate"),
        (("Short one.", "Oranges on the road"), "length"),
        ((FRESH[0], "A"), "length"),
        ((FRESH[0], "Pool opens early, this year!"), "leakage"),
        (
            ("The swimming pool opens a week late, no thanks to the sun.", "Pool opens very late"),
            "leakage",
        ),
    ],
)
def test_each_filter_has_its_name(pair: tuple[str, str], reason: str | None) -> None:
    assert filters().rejects(pair) == reason


def test_what_was_kept_counts_from_then_on_and_of_a_pair_one_stays() -> None:
    chosen = filters()
    assert chosen.rejects(FRESH) is None
    assert chosen.rejects(FRESH) == "duplicate"
    assert chosen.rejects((FRESH[0].replace("coast", "hill"), "Fruit")) == "near-duplicate"


def test_a_label_outside_the_tasks_own_is_rejected_and_labels_never_count_as_leaks() -> None:
    chosen = Filters(RATING, [Item("1", "Fine soup and kind waiters.", "4")], ["x y z"], ["4"])
    assert chosen.rejects(("Cold fish, loud music, rude man.", "six")) == "label"
    assert chosen.rejects(("Cold fish, loud music, rude man.", "4")) is None


def test_rouge_l_is_that_of_the_rouge_score_package() -> None:
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)
    for a, b in [(REAL[0].input, REAL[1].input), (FRESH[0], REAL[0].input), ("a b c", "a c d b")]:
        assert rouge_l(words(a), words(b)) == pytest.approx(scorer.score(a, b)["rougeL"].fmeasure)


def test_scripts_without_spaces_are_compared_too() -> None:
    assert words("今天天气很好 ok") == ("今", "天", "天", "气", "很", "好", "ok")
    assert words("صباح الخير") == ("صباح", "الخير")
    assert rouge_l(words("今天天气很好"), words("今天天气不好")) > 0.7
    assert rouge_l((), ()) == 1.0


def test_the_newest_items_validate() -> None:
    items = [Item(str(n), "x", "y") for n in range(12)]
    train, valid = split(items)
    assert [i.id for i in valid] == ["10", "11"]
    assert len(train) == 10
    assert [len(part) for part in split(items[:2])] == [1, 1]


def test_every_item_is_shown_equally_often() -> None:
    items = [Item(str(n), "x", "y") for n in range(7)]
    hands = choose_shots(items, 3, seed=1)
    chosen = [next(hands) for _ in range(70)]
    assert all(len({item.id for item in hand}) == 3 for hand in chosen)
    counts = [sum(item in hand for hand in chosen) for item in items]
    assert max(counts) - min(counts) <= 2
    again = choose_shots(items, 3, seed=1)
    assert [next(again) for _ in range(70)] == chosen
    assert len(next(choose_shots(items[:2], 8, seed=0))) == 2


def test_a_continuation_is_read_back_strictly() -> None:
    prompt = continuation_prompt(HEADLINE, REAL)
    assert prompt.endswith("Headline: Snow shuts two schools\n\nArticle:")
    assert parse_continuation(HEADLINE, " a\nHeadline: b\n\n") == [("a", "b")]
    for garbage in ("", " a\n\n", " a\nHeadline: b", " a\nHeadline: \n\n", " a\nScore: 3\n\n"):
        assert parse_continuation(HEADLINE, garbage) == [None]


def test_a_chat_answer_is_read_line_by_line_and_never_repaired() -> None:
    messages = chat_prompt(RATING, [Item("1", "Nice.", "4")], 3)
    assert '{"input": "Nice.", "output": "4"}' in messages[1]["content"]
    answer = '```json\n{"input": "a", "output": 5}\n{"input": "b"}\nsorry\n```'
    assert parse_chat(answer) == [("a", "5"), None, None]
    assert parse_chat("") == [None]
    assert parse_chat('[{"input": "a", "output": "b"}]') == [None]


def test_measures_are_lamps_own_on_hand_worked_rows() -> None:
    # MAE: |4-5| = 1, unparsable against 2 counts as 5: 3, |3-3| = 0 -> 4/3; RMSE sqrt(10/3)
    said, gold = ["4", "good", "3"], ["5", "2", "3"]
    assert measures(RATING, said, gold)["mae"] == pytest.approx(4 / 3)
    assert measures(RATING, said, gold)["rmse"] == pytest.approx((10 / 3) ** 0.5)
    assert item_scores(RATING, said, gold) == [-1.0, -3.0, 0.0]
    # F1: a: 2*1/(2+1) = 2/3, b: 2*1/(1+2) = 2/3, c is absent: 0 -> 4/9
    abc = custom_task("x", "classification", "{input}", ("a", "b", "c"))
    found = measures(abc, [" a ", "a", "b"], ["a", "b", "b"])
    assert found == {"accuracy": pytest.approx(2 / 3), "f1": pytest.approx(4 / 9)}
    assert measures(abc, ["A"], ["a"])["accuracy"] == 0.0
    # ROUGE-1 of "Mill on fire" against "fire takes mill": 2 of 3 words; ROUGE-L: 1 of 3
    assert measures(HEADLINE, ["Mill on fire"], ["fire takes mill"]) == {
        "rouge-1": pytest.approx(2 / 3), "rouge-L": pytest.approx(1 / 3),
    }  # fmt: skip


def test_the_bootstrap_interval_covers_the_mean_and_narrows_with_the_spread() -> None:
    mean, low, high = bootstrap_interval([0.0, 1.0] * 50)
    # normal approximation: 0.5 ± 1.96 * 0.5 / sqrt(100)
    assert (mean, low, high) == (
        0.5,
        pytest.approx(0.402, abs=0.02),
        pytest.approx(0.598, abs=0.02),
    )
    assert bootstrap_interval([0.25] * 10) == (0.25, 0.25, 0.25)
