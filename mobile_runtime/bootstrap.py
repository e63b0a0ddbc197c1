"""How far a figure could have come out otherwise: 95% intervals, by drawing prompts again.

In: a value for each of a golden's rows. Out: the figure for each of many draws, and its interval.
Prompts are drawn with replacement, whole: rows of one prompt are alike, so drawing single rows
would make every interval too narrow (the cluster bootstrap; Davison and Hinkley, Bootstrap Methods
and their Application, section 3.8). Draws are seeded, so a report is the same on each run.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]
Interval = tuple[float, float]
DRAWS = 500
SEED = 0


class Bootstrap:
    """Draws over prompts with these many rows. Legend: D draws, N rows."""

    def __init__(self, lengths: Sequence[int]) -> None:
        count = len(lengths)
        drawn = np.random.default_rng(SEED).multinomial(count, [1 / count] * count, DRAWS)
        self._prompts = np.repeat(np.arange(count), lengths)
        self._drawn = drawn.astype(np.int32)

    def totals(self, values: Doubles) -> Doubles:
        """Sums of `values` [N] in each draw, [D]."""
        sums = np.bincount(self._prompts, weights=values, minlength=self._drawn.shape[1])
        return np.asarray(self._drawn @ sums, np.float64)

    def mean(self, values: Doubles, counted: Doubles | None = None) -> Doubles:
        """Means of `values` [N] in each draw, [D]; only over rows where `counted` [N] is 1."""
        weights = np.ones(len(values)) if counted is None else counted
        return self.totals(values) / np.maximum(self.totals(weights), 1.0)

    def quantiles(self, values: Doubles, shares: Sequence[float]) -> list[Doubles]:
        """For each share the least value that so many of a draw's rows do not exceed, [D]."""
        order = np.argsort(values, kind="stable")
        reached = np.cumsum(self._drawn[:, self._prompts[order]], axis=1)
        wanted = reached[:, -1:]
        return [values[order[(reached >= share * wanted).argmax(axis=1)]] for share in shares]

    def interval(self, samples: Doubles) -> Interval:
        """The middle 95% of the draws."""
        low, high = np.quantile(samples, [0.025, 0.975])
        return float(low), float(high)
