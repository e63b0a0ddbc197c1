"""Scores are LaMP's, on rows worked by hand; predictions have the shape its evaluator reads."""

import json
from pathlib import Path

import pytest

from cloud.lamp import write_predictions
from cloud.metrics import bootstrap_interval, item_scores, measures, score_name
from cloud.tasks import MOVIE_TAGS, NEWS_CATEGORIES, TASKS, custom_task

RATING, HEADLINE = TASKS["LaMP_3"], TASKS["LaMP_4"]
# task -> (predictions, golds, measures worked by hand)
GOLDENS = {
    "LaMP_1": (
        ["[1]", " [2] ", "[2]", "2"],
        ["[1]", "[2]", "[1]", "[2]"],
        # [1]: said 1, gold 2, hit 1 -> 2/3; [2]: said 2, gold 2, hit 1 -> 2/4
        {"accuracy": 2 / 4, "f1": (2 / 3 + 1 / 2) / 2},
    ),
    # comedy: said 1, gold 2, hit 1 -> 2/3; action: 1, 1, 1 -> 1; "Comedy" is no label; the 13
    # absent tags count 0
    "LaMP_2": (
        ["comedy", "Comedy", "action"],
        ["comedy", "comedy", "action"],
        {"accuracy": 2 / 3, "f1": (2 / 3 + 1) / 15},
    ),
    # sports: said 2, gold 1, hit 1 -> 2/3; travel: said 0, gold 1 -> 0; 13 absent
    "LaMP_2N": (["sports", "sports"], ["sports", "travel"], {"accuracy": 0.5, "f1": 2 / 3 / 15}),
    # errors |4-5| 1; "good" for 2 becomes 5: 3; "inf" for 3 becomes an end: 2; "3.5" for 3: 0.5
    "LaMP_3": (
        ["4", "good", "inf", " 3.5 "],
        ["5", "2", "3", "3"],
        {"mae": 6.5 / 4, "rmse": ((1 + 9 + 4 + 0.25) / 4) ** 0.5},
    ),
    # words of gold "fire takes mill": 2 of 3 said, longest common subsequence 1; second row exact
    "LaMP_4": (
        ["Mill on fire", "Snow, snow!"],
        ["fire takes mill", "snow snow"],
        {"rouge-1": (2 / 3 + 1) / 2, "rouge-L": (1 / 3 + 1) / 2},
    ),
    # no stemming: "nets" is not "net": 2 of 3 and 2 of 3
    "LaMP_5": (["on sparse nets"], ["On Sparse Net"], {"rouge-1": 2 / 3, "rouge-L": 2 / 3}),
    "LaMP_6": ([""], ["Meeting at ten"], {"rouge-1": 0, "rouge-L": 0}),
    # precision 2/2, recall 2/4: F 2/3
    "LaMP_7": (["hello there"], ["hello there my friend"], {"rouge-1": 2 / 3, "rouge-L": 2 / 3}),
    # 3 of 4 and 3 of 5 words
    "POCKET_0": (
        ["Rain in Oslo today"],
        ["Rain in Oslo on Monday"],
        {"rouge-1": 2 / 3, "rouge-L": 2 / 3},
    ),
}


@pytest.mark.parametrize("name", TASKS)
def test_every_task_is_measured_as_lamp_measures_it(name: str) -> None:
    said, golds, expected = GOLDENS[name]
    assert measures(TASKS[name], said, golds) == pytest.approx(expected)


def test_labels_are_those_of_both_variants_of_lamp_2() -> None:
    assert len(MOVIE_TAGS) == len(set(MOVIE_TAGS)) == 15
    assert len(NEWS_CATEGORIES) == len(set(NEWS_CATEGORIES)) == 15


def test_scores_of_single_items_are_higher_where_an_answer_is_better() -> None:
    assert item_scores(RATING, ["4", "good", "3"], ["5", "2", "3"]) == [-1.0, -3.0, 0.0]
    assert item_scores(TASKS["LaMP_1"], ["[1]", "[1]"], ["[1]", "[2]"]) == [1.0, 0.0]
    assert score_name(TASKS["LaMP_1"]) == "accuracy"
    abc = custom_task("x", "classification", "{input}", ("a", "b", "c"))
    found = measures(abc, [" a ", "a", "b"], ["a", "b", "b"])
    assert found == {"accuracy": pytest.approx(2 / 3), "f1": pytest.approx(4 / 9)}
    assert measures(abc, ["A"], ["a"])["accuracy"] == 0.0


def test_ratings_of_a_scale_of_ones_own_have_their_own_extremes() -> None:
    ten = custom_task("x", "rating", "{input}", ("1", "10"))
    assert measures(ten, ["nothing"], ["4"])["mae"] == 6.0


@pytest.mark.parametrize("said", ["9" * 155, "1" * 308, "-" + "4" * 200, "1e101", "-1e101"])
def test_a_number_beyond_all_bounds_is_no_rating(said: str) -> None:
    """The square of an error of 155 digits is more than a float holds."""
    assert measures(RATING, [said, "5"], ["2", "5"]) == {
        "mae": 3 / 2, "rmse": pytest.approx((9 / 2) ** 0.5)
    }  # fmt: skip
    assert item_scores(RATING, [said], ["4"]) == [-3.0]
    assert measures(RATING, ["100"], ["5"]) == {"mae": 95.0, "rmse": 95.0}, "as LaMP does"


def test_predictions_are_written_as_lamps_evaluator_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "predictions.json"
    write_predictions(path, TASKS["LaMP_2N"], {"7": "sports", "9": "läuft"})
    assert json.loads(path.read_text("utf-8")) == {
        "task": "LaMP_2", "golds": [{"id": "7", "output": "sports"}, {"id": "9", "output": "läuft"}]
    }  # fmt: skip
    write_predictions(path, HEADLINE, {})
    assert json.loads(path.read_text("utf-8")) == {"task": "LaMP_4", "golds": []}


def test_the_bootstrap_interval_covers_the_mean_and_narrows_with_the_spread() -> None:
    mean, low, high = bootstrap_interval([0.0, 1.0] * 50)
    # normal approximation: 0.5 ± 1.96 * 0.5 / sqrt(100)
    assert (mean, low, high) == (
        0.5,
        pytest.approx(0.402, abs=0.02),
        pytest.approx(0.598, abs=0.02),
    )
    assert bootstrap_interval([0.25] * 10) == (0.25, 0.25, 0.25)
