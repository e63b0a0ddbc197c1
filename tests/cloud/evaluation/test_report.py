"""What the pages say, of Evaluations whose scores are chosen by hand."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from cloud.evaluation.report import gap_closed, markdown, summary
from cloud.evaluation.results import read_results
from cloud.evaluation.statistics import gain
from protos.artifacts import Artifact, create, open_artifact, write_json


def evaluation(folder: Path, task: str, scores: dict[str, list[float]], **given: Any) -> Artifact:
    """An Evaluation with these scores of each user by arm, all of users with four items."""
    names = [f"u{place}" for place in range(len(scores["real"]))]
    found = {
        "task": task, "main": "rouge-L", "lower_is_better": [], "base": "b", "teacher": "t",
        "config": {"seed": 0, "ratios": ""}, "left_out": {}, "odd": {},
        "arms": {
            arm: {"about": "", "pooled": {"rouge-L": sum(values) / len(values)}}
            for arm, values in scores.items()
        },
        "gains": {"rouge-L": {
            arm: {"real": asdict(gain(values, scores["real"]))} if arm != "real" else {}
            for arm, values in scores.items()
        }},
        "users": [
            {
                "user": name, "items": 4, "trained_on": 3, "fell_back": [],
                "values": {arm: {"rouge-L": values[at]} for arm, values in scores.items()},
                "rows": dict.fromkeys(scores, 3), "synthetic": dict.fromkeys(scores, 0),
            }
            for at, name in enumerate(names)
        ],
    }  # fmt: skip
    nothing = dict.fromkeys((
        "adapter_bytes", "train_seconds", "train_steps", "teacher_prompt_tokens", "teacher_tokens",
        "teacher_cost", "device_ms",
    ))  # fmt: skip
    with create(folder / task, "Evaluation", {}, {}) as draft:
        write_json(draft.path / "evaluation.json", {**found, **given})
        draft.measured.update(users=len(names), questions=6, costs=dict.fromkeys(scores, nothing))
    return open_artifact(folder / task, "Evaluation")


REAL = [0.4] * 6
UNSURE = [0.2, 0.2, 0.3, 0.3, 0.3, 2.0]
"""Better than REAL on average, by one user alone."""


def test_a_share_of_the_gap_is_told_only_where_there_surely_is_one(tmp_path: Path) -> None:
    half = {"real": REAL, "mixed": [0.6] * 6, "teacher": [0.8] * 6}
    sure = evaluation(tmp_path, "LaMP_4", half)
    more = evaluation(tmp_path, "LaMP_5", {**half, "mixed": [0.68] * 6})
    unsure = evaluation(tmp_path, "LaMP_7", {**half, "teacher": UNSURE})
    few = evaluation(tmp_path, "LaMP_3", {arm: values[:5] for arm, values in half.items()})
    assert gap_closed(read_results(sure)) == pytest.approx(0.5)
    over = read_results(unsure)["gains"]["rouge-L"]["teacher"]["real"]
    assert over["low"] < 0 < over["mean"]
    assert gap_closed(read_results(unsure)) is None
    assert gap_closed(read_results(few)) is None
    assert "- mixed closes 50% of the gap between real and the teacher." in markdown(sure)
    assert "of the gap" not in markdown(unsure)
    page = summary([read_results(each) for each in (sure, more, unsure, few)])
    assert (
        "mixed closes 60% of the gap, the mean over the 2 of 4 tasks whose interval of teacher "
        "over real lies above zero: LaMP_4 50%, LaMP_5 70%."
    ) in page
    assert page.count("%") == 2 + 3 + 1  # two rows, that line, and "95% intervals"
    assert "of no gap can be told" in summary([read_results(each) for each in (unsure, few)])
    without = evaluation(tmp_path, "LaMP_2", {"real": REAL, "mixed": REAL})
    assert "the gap can" not in summary([read_results(without)])


def test_over_tasks_gains_stand_side_by_side_by_the_number_of_items(tmp_path: Path) -> None:
    mixed = [0.5, 0.5, 0.6, 0.9, 0.5, 0.5, 0.5]
    scores = {"real": [0.4] * 7, "mixed": mixed}
    one, two = (read_results(evaluation(tmp_path, task, scores)) for task in ("LaMP_4", "LaMP_5"))
    for user, items in zip(one["users"], (4, 7, 8, 64, 64, 64, 64), strict=True):
        user["items"] = items
    lines = summary([one, two]).splitlines()
    table = lines[lines.index("| items | LaMP_4 | LaMP_5 |") :]
    assert table[2] == "| 4 to 7 | +0.100 | " + table[2].split(" | ")[2]
    assert table[2].split(" | ")[2].startswith("+0.171 (+")  # of all seven, who have four items
    assert table[3:] == ["| 8 to 15 | +0.200 |  |", "| 64 to 127 | +0.200 |  |"]


def test_over_tasks_ratios_stand_below_each_other(tmp_path: Path) -> None:
    scores = {"real": [0.4] * 5, "ratio-0": [0.4] * 5, "ratio-0.5": [0.5] * 5, "ratio-2": [0.7] * 5}
    asked = {"config": {"seed": 0, "ratios": "0,2,0.5"}}
    found = read_results(evaluation(tmp_path, "LaMP_4", scores, **asked))
    worse = read_results(evaluation(tmp_path, "LaMP_5", {**scores, "ratio-2": [0.3] * 5}, **asked))
    page = summary([found, worse])
    lines = page.splitlines()
    assert lines[lines.index("| ratio | LaMP_4 | LaMP_5 |") + 2 :] == [
        "| 0 | +0.000 | +0.000 |", "| 0.5 | +0.100 | +0.100 |", "| 2 | +0.300 | -0.100 |",
    ]  # fmt: skip
    assert "| task | users | measure | real |" in lines
    assert "gap" not in page
