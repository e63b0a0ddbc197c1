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

    The interval is the percentile bootstrap's (Efron and Tibshirani 1993, chapter 13) over users:
    they are what was sampled, not their questions.

    Raises:
        ValueError: no users, or not the same number in both.
    """
    sign = -1 if lower_is_better else 1
    differences = [sign * (a - b) for a, b in zip(ours, theirs, strict=True)]
    if not differences:
        raise ValueError("no users to compare")
    low = high = None
    if len(differences) >= _MIN_USERS:
        _, low, high = bootstrap_interval(differences, seed)
    won, lost = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    return Gain(
        users=len(differences), mean=statistics.fmean(differences), low=low, high=high, won=won,
        lost=lost, tied=len(differences) - won - lost, sign_p=sign_test(won, lost),
        detectable=detectable(differences),
    )  # fmt: skip


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
    normal = statistics.NormalDist()
    reach = normal.inv_cdf(1 - _LEVEL / 2) + normal.inv_cdf(_POWER)
    return reach * statistics.stdev(differences) / math.sqrt(len(differences))
