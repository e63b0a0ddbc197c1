"""Gains against values worked by hand, and against scipy where it has the same test."""

import math
import random

import pytest

from cloud.evaluation.statistics import detectable, gain, narrowness, sign_test


def test_a_gain_is_paired_and_worked_by_hand() -> None:
    ours, theirs = [0.5, 0.7, 0.4, 0.6], [0.4, 0.4, 0.5, 0.6]  # differences 0.1 0.3 -0.1 0.0
    found = gain(ours, theirs)
    assert (found.users, found.won, found.lost, found.tied) == (4, 2, 1, 1)
    assert found.mean == pytest.approx(0.075)
    # squares of the deviations: 0.025² + 0.225² + 0.175² + 0.075² = 0.0875; / 3, root: 0.170783
    assert found.detectable == pytest.approx((1.959964 + 0.841621) * 0.170783 / 2, rel=1e-5)
    assert found.sign_p == pytest.approx(1.0)  # 2 · (1 + 3) / 8


def test_where_lower_is_better_a_smaller_error_is_a_gain() -> None:
    found = gain([0.2, 0.3], [0.6, 0.4], lower_is_better=True)
    assert found.mean == pytest.approx(0.25)
    assert (found.won, found.lost) == (2, 0)


@pytest.mark.parametrize(
    ("won", "lost", "p"),
    [(0, 0, 1.0), (1, 0, 1.0), (5, 0, 2 / 32), (9, 1, 22 / 1024), (1, 9, 22 / 1024), (5, 5, 1.0)],
)
def test_the_sign_test_is_exact(won: int, lost: int, p: float) -> None:
    assert sign_test(won, lost) == pytest.approx(p)


def test_sign_test_interval_and_effect_agree_with_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = random.Random(3)
    ours = [rng.gauss(0.55, 0.1) for _ in range(40)]
    theirs = [rng.gauss(0.5, 0.1) for _ in range(40)]
    found = gain(ours, theirs)
    p = stats.binomtest(found.won, found.won + found.lost).pvalue
    assert found.sign_p == pytest.approx(float(p))
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    ends = stats.bootstrap(
        (differences,), lambda x, axis: x.mean(axis), method="percentile", rng=1
    ).confidence_interval
    width, mean = ends.high - ends.low, sum(differences) / 40
    stretch = stats.t.ppf(0.975, 39) / stats.norm.ppf(0.975) * math.sqrt(40 / 39)
    assert found.low == pytest.approx(mean + stretch * (ends.low - mean), abs=width / 20)
    assert found.high == pytest.approx(mean + stretch * (ends.high - mean), abs=width / 20)


@pytest.mark.parametrize(
    ("users", "t"), [(6, 2.5706), (8, 2.3646), (20, 2.0930), (121, 1.9799)]
)  # of a printed table, with users - 1 degrees of freedom
def test_an_interval_is_stretched_to_what_students_t_would_reach(users: int, t: float) -> None:
    wanted = t / 1.959964 * math.sqrt(users / (users - 1))
    assert narrowness(users) == pytest.approx(wanted, rel=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("users", [6, 8, 20])
def test_the_interval_of_few_users_leaves_out_the_truth_one_time_in_twenty(users: int) -> None:
    """The percentile bootstrap alone leaves it out in 14.6%, 10.3% and 7.9% of such draws."""
    rng, runs, held = random.Random(users), 1000, 0
    for run in range(runs):
        found = gain([rng.gauss(0, 1) for _ in range(users)], [0.0] * users, seed=run)
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 0 <= found.high
    assert held / runs == pytest.approx(0.95, abs=0.015)  # two standard errors of such a share


def test_the_detectable_effect_would_be_detected_in_four_of_five_experiments() -> None:
    rng = random.Random(0)
    users, spread, detected, runs = 40, 0.2, 0, 2000
    effect = detectable([spread * math.sqrt(39 / 40) * (-1) ** n for n in range(users)])
    assert effect is not None
    for _ in range(runs):
        drawn = [rng.gauss(effect, spread) for _ in range(users)]
        mean = sum(drawn) / users
        detected += abs(mean) / (spread / math.sqrt(users)) > 1.959964
    assert detected / runs == pytest.approx(0.8, abs=0.03)


def test_a_handful_of_users_has_a_mean_and_no_interval() -> None:
    assert gain([1.0] * 5, [0.5, 0.4, 0.3, 0.2, 0.1]).low is None, "they might all win by chance"
    six = gain([1.0] * 6, [0.5, 0.4, 0.3, 0.2, 0.1, 0.0])
    assert six.low is not None
    assert six.high is not None
    assert 0.5 <= six.low < six.mean < six.high <= 1.0
    found = gain([1.0], [0.25])
    assert found.mean == 0.75
    assert (found.low, found.high, found.detectable) == (None, None, None)
    assert found.sign_p == 1.0


def test_equal_arms_gain_exactly_nothing() -> None:
    found = gain([0.5] * 6, [0.5] * 6)
    assert (found.mean, found.low, found.high, found.detectable) == (0, 0, 0, 0)
    assert (found.tied, found.sign_p) == (6, 1.0)


def test_arms_of_different_users_are_refused() -> None:
    with pytest.raises(ValueError, match="longer"):
        gain([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="no users"):
        gain([], [])
