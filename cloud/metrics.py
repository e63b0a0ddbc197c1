"""How an answer is scored: LaMP's own measures, one score an item.

In: a task, predictions and the user's own outputs. Out: a score for each item, higher is better,
and the task's measures by name. Definitions are those of the LaMP evaluator (arXiv 2304.11406).
"""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Sequence
from typing import Any

from cloud.tasks import Task

_RESAMPLES = 2000
_FARTHEST = 1e100
"""Errors up to here have squares that can be added up; what is farther off is no rating."""


def item_scores(task: Task, predictions: Sequence[str], golds: Sequence[str]) -> list[float]:
    """One score an item, higher is better: 0/1 accuracy, minus absolute error, or ROUGE-L F1."""
    pairs = list(zip(predictions, golds, strict=True))
    if task.answer_kind == "classification":
        return [float(said.strip() == gold.strip()) for said, gold in pairs]
    if task.answer_kind == "rating":
        return [-_error(task, said, gold) for said, gold in pairs]
    return [_rouge(said, gold)["rougeL"] for said, gold in pairs]


def score_name(task: Task) -> str:
    """What `item_scores` holds, for people."""
    names = {"classification": "accuracy", "rating": "minus MAE", "generation": "ROUGE-L"}
    return names[task.answer_kind]


def measures(task: Task, predictions: Sequence[str], golds: Sequence[str]) -> dict[str, float]:
    """The task's measures over all items.

    Classification: accuracy, and F1 averaged over all labels of the task, absent ones included.
    Rating: MAE and RMSE; what is no number, or 1e100 or more off, counts as the extreme farthest
    from the user's own.
    Generation: mean F1 of ROUGE-1 and ROUGE-L without stemming.
    """
    pairs = list(zip(predictions, golds, strict=True))
    if task.answer_kind == "classification":
        hits = item_scores(task, predictions, golds)
        return {"accuracy": _mean(hits), "f1": _macro_f1(task, pairs)}
    if task.answer_kind == "rating":
        errors = [_error(task, said, gold) for said, gold in pairs]
        return {"mae": _mean(errors), "rmse": math.sqrt(_mean([e * e for e in errors]))}
    scores = [_rouge(said, gold) for said, gold in pairs]
    return {
        "rouge-1": _mean([score["rouge1"] for score in scores]),
        "rouge-L": _mean([score["rougeL"] for score in scores]),
    }


def bootstrap_interval(differences: Sequence[float], seed: int = 0) -> tuple[float, float, float]:
    """Mean of paired differences and its 95% percentile bootstrap interval (Efron 1979)."""
    rng = random.Random(seed)
    means = sorted(_mean(rng.choices(differences, k=len(differences))) for _ in range(_RESAMPLES))
    low, high = means[round(0.025 * _RESAMPLES)], means[round(0.975 * _RESAMPLES) - 1]
    return _mean(differences), low, high


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _error(task: Task, said: str, gold: str) -> float:
    wanted = float(gold)
    try:
        found = float(said)
    except ValueError:
        found = math.nan
    if not abs(found - wanted) < _FARTHEST:
        found = max((float(label) for label in task.labels), key=lambda label: abs(label - wanted))
    return abs(found - wanted)


def _macro_f1(task: Task, pairs: Sequence[tuple[str, str]]) -> float:
    stripped = [(said.strip(), gold.strip()) for said, gold in pairs]
    scores: list[float] = []
    for label in task.answer_labels:
        hit = sum(said == gold == label for said, gold in stripped)
        said_it = sum(said == label for said, _ in stripped)
        gold_it = sum(gold == label for _, gold in stripped)
        scores.append(2 * hit / (said_it + gold_it) if said_it + gold_it else 0.0)
    return _mean(scores)


@functools.cache
def _scorer() -> Any:
    from rouge_score import rouge_scorer

    return rouge_scorer.RougeScorer(["rouge1", "rougeL"], use_stemmer=False)


def _rouge(said: str, gold: str) -> dict[str, float]:
    return {name: score.fmeasure for name, score in _scorer().score(gold, said).items()}
