"""Intervals by drawing prompts again, against scipy-free formulas and cases worked by hand."""

import numpy as np
import pytest

from mobile_runtime.bootstrap import DRAWS, Bootstrap


def test_one_prompt_leaves_nothing_to_chance() -> None:
    draws = Bootstrap([4])
    values = np.array([1.0, 2.0, 3.0, 10.0])
    assert draws.interval(draws.mean(values)) == (4.0, 4.0)
    (median,) = draws.quantiles(values, [0.5])
    assert draws.interval(median) == (2.0, 2.0)


def test_the_spread_of_a_mean_is_the_textbooks() -> None:
    """Prompts of one row each: standard error = standard deviation / sqrt(n)."""
    values = np.random.default_rng(1).normal(5, 2, 400)
    draws = Bootstrap([1] * 400)
    samples = draws.mean(values)
    assert samples.std() == pytest.approx(values.std() / 20, rel=0.1)
    low, high = draws.interval(samples)
    assert low == pytest.approx(values.mean() - 1.96 * values.std() / 20, abs=0.05)
    assert high == pytest.approx(values.mean() + 1.96 * values.std() / 20, abs=0.05)


def test_rows_of_one_prompt_are_drawn_together() -> None:
    """Ten copies of each row inside a prompt tell no more than one."""
    values = np.random.default_rng(2).normal(0, 1, 30)
    single = Bootstrap([1] * 30)
    copied = Bootstrap([10] * 30)
    assert copied.mean(np.repeat(values, 10)) == pytest.approx(single.mean(values))


def test_quantiles_are_numpys_of_the_rows_that_were_drawn() -> None:
    rng = np.random.default_rng(3)
    lengths = [3, 7, 2, 9]
    values = rng.normal(size=sum(lengths))
    draws = Bootstrap(lengths)
    found = draws.quantiles(values, [0.5, 0.99, 1.0])
    prompts = np.repeat(np.arange(4), lengths)
    for draw in range(0, DRAWS, 50):
        rows = np.repeat(values, draws._drawn[draw][prompts])
        for samples, share in zip(found, [0.5, 0.99, 1.0], strict=True):
            assert samples[draw] == np.quantile(rows, share, method="inverted_cdf")


def test_draws_are_the_same_on_each_run() -> None:
    values = np.arange(6.0)
    assert (Bootstrap([2, 4]).mean(values) == Bootstrap([2, 4]).mean(values)).all()
