"""Comparing by turns: ours and a peer's, again and again, so that both meet the same load.

In: figures of interleaved repeats. Out: rows with medians, the ratios' median and their spread.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from benchmarks.rows import Row


def compared(
    figure: str,
    unit: str,
    peer: str,
    ours: Sequence[float],
    theirs: Sequence[float],
    *,
    less_is_better: bool,
    aim: float | None = None,
    note: str = "",
) -> Row:
    """A row of repeats taken in turn: `ours[i]` and `theirs[i]` belong together."""
    ratios = [t / o if less_is_better else o / t for o, t in zip(ours, theirs, strict=True)]
    spread = (min(ratios), max(ratios)) if len(ratios) > 1 else None
    return Row(
        figure, statistics.median(ours), unit, peer, statistics.median(theirs),
        statistics.median(ratios), spread, aim, note,
    )  # fmt: skip


def limited(figure: str, value: float, unit: str, limit: float, note: str = "") -> Row:
    """A row of one figure that is to stay below a limit that we set."""
    return Row(figure, value, unit, "our limit", limit, limit / value, aim=1.0, note=note)
