"""Whether one arm is better than another, told from the same users under both.

In: one value a user for each arm. Out: the mean gain, how sure it is, and what could have been
seen. All of it is paired: a user is compared with the same user.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from cloud.metrics import bootstrap_interval

_LEVEL, _POWER = 0.05, 0.8
_Z = statistics.NormalDist().inv_cdf(1 - _LEVEL / 2)
_MIN_USERS = 6
"""Below, even users who all gain are no proof: the sign test's p is above 5%."""


@dataclass(frozen=True)
class Gain:
    """What one arm gains over another; positive is better, whatever the measure.

    low, high: 95% interval of the mean over users. won, lost, tied: users. sign_p: of the sign
    test. detectable: the mean gain that this many such users would have shown with power 80%. None
    where there are too few users: six for an interval, two for what is detectable.
    """

    users: int
    mean: float
    low: float | None
    high: float | None
    won: int
    lost: int
    tied: int
    sign_p: float
    detectable: float | None


def gain(
    ours: Sequence[float], theirs: Sequence[float], lower_is_better: bool = False, seed: int = 0
) -> Gain:
    """The gain of one arm over another, user by user in the same order.

    The interval is the percentile bootstrap's (Efron and Tibshirani 1993, chapter 13) over users,
    stretched for being of few (`narrowness`): they are what was sampled, not their questions.

    Raises:
        ValueError: no users, or not the same number in both.
    """
    sign = -1 if lower_is_better else 1
    differences = [sign * (a - b) for a, b in zip(ours, theirs, strict=True)]
    if not differences:
        raise ValueError("no users to compare")
    low = high = None
    if len(differences) >= _MIN_USERS:
        mean, low, high = bootstrap_interval(differences, seed)
        stretch = narrowness(len(differences))
        low, high = mean - stretch * (mean - low), mean + stretch * (high - mean)
    won, lost = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    return Gain(
        users=len(differences), mean=statistics.fmean(differences), low=low, high=high, won=won,
        lost=lost, tied=len(differences) - won - lost, sign_p=sign_test(won, lost),
        detectable=detectable(differences),
    )  # fmt: skip


def narrowness(users: int) -> float:
    """By how much the percentile bootstrap's interval of a mean of so few is too narrow.

    It reaches about z times the root of the mean squared deviation to either side, where t with
    users - 1 degrees of freedom times the standard deviation would be right: t / z times
    sqrt(users / (users - 1)) (Hesterberg 2015, What Teachers Should Know About the Bootstrap, on
    narrowness; there the percentiles are moved outwards until they stand so far from the mean).
    """
    return _student(users - 1) / _Z * math.sqrt(users / (users - 1))


def _student(freedom: int) -> float:
    """Student's t(0.975), to three decimals from 5 degrees of freedom on.

    Abramowitz and Stegun 1964, 26.7.5: an expansion about the normal quantile z, whose odd powers
    each of these polynomials has.
    """
    terms = (
        (1.0, (1,)), (4.0, (1, 1)), (96.0, (3, 16, 5)), (384.0, (-15, 17, 19, 3)),
        (92160.0, (-945, -1920, 1482, 776, 79)),
    )  # fmt: skip
    return sum(
        sum(factor * _Z ** (2 * power + 1) for power, factor in enumerate(factors))
        / (divisor * freedom**order)
        for order, (divisor, factors) in enumerate(terms)
    )


def sign_test(won: int, lost: int) -> float:
    """Two-sided p of so many wins and losses if both were equally likely; ties are left out.

    Exact: twice the smaller tail of Binomial(won + lost, 1/2), at most 1 (Conover 1999, 3.4).
    """
    trials = won + lost
    tail = sum(math.comb(trials, k) for k in range(min(won, lost) + 1))
    return min(1.0, 2 * tail / 2**trials)


def detectable(differences: Sequence[float]) -> float | None:
    """The least mean difference that a two-sided test at 5% would find with power 80%.

    (z(0.975) + z(0.8)) times the standard error of the mean (Cohen 1988, 2.3, normal form).
    """
    if len(differences) < 2:
        return None
    reach = _Z + statistics.NormalDist().inv_cdf(_POWER)
    return reach * statistics.stdev(differences) / math.sqrt(len(differences))
