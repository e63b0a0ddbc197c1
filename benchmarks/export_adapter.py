"""What a user costs: `export adapter` against `export merged`, in seconds and in bytes on the wire.

8da4w, r = 8 on all linear layers. Before the separate form is timed, parity is run on it, and both
forms are held against PyTorch with the very same weights, as in benchmarks/inference.py: parity's
gates of the effect ask of the merged form what four bits leave of an adapter, which is no fault of
the export. Of random weights, the 135M shape's, rounding flips near ties: there the gates of the
first token may fail. Any other failure ends it, and with quick, which takes trained weights, any at
all. What is timed must be what was checked. That the weights are random does not matter for sizes
and times.
"""

from __future__ import annotations

import shutil
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from benchmarks import inference, models
from benchmarks.answers import NEAR_TIES, hold, hold_same
from benchmarks.rows import Row

WAYS: tuple[Literal["base"], Literal["merged"]] = ("base", "merged")
REPEATS = 5
THREADS = 2
PEER = "export merged"


def rows(quick: bool, work: Path) -> list[Row]:
    """Export both ways; `quick` lowers both at once, which costs each some of its seconds."""
    model = models.model(quick)
    with ThreadPoolExecutor(2 if quick else 1) as pool:
        base, merged = pool.map(models.lowered, WAYS, [models.INT4] * 2, [model] * 2)
    checked = models.exported(0, model, base.path, work / "checked", goldens=True)
    may_fail = () if quick else NEAR_TIES
    note = hold("the separate form", base.path, checked, THREADS, may_fail=may_fail)
    inference.hold_exports(model, THREADS, work)
    seconds: list[float] = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        out = models.exported(0, model, base.path, work / "again")
        seconds.append(time.perf_counter() - started)
        hold_same("the separate form", checked, out)
        size = _wire_bytes(out)
        shutil.rmtree(out)
    figure = f"a user, 8da4w, r = 8 on all linear layers, {model.name}"
    whole = merged.measured["lowering_seconds"]
    median = statistics.median(seconds)
    return [
        Row(
            f"{figure}: seconds, without goldens", median, "s", PEER, whole, whole / median,
            note=f"parity: {note}; median of {REPEATS}, the peer measured once",
        ),
        _bytes_row(f"{figure}: bytes", size, _wire_bytes(merged.path)),
        Row(
            f"the base, once for all users, 8da4w, {model.name}: seconds",
            base.measured["lowering_seconds"], "s",
            note=f"{base.measured['golden_seconds']:.0f} s more for goldens",
        ),
        Row(
            f"the base, once for all users, 8da4w, {model.name}: bytes",
            _wire_bytes(base.path) / 1e6, "MB",
        ),
    ]  # fmt: skip


def _wire_bytes(bundle: Path) -> int:
    from protos.artifacts import open_artifact

    return int(open_artifact(bundle).manifest.measured["wire_bytes"])


def _bytes_row(figure: str, ours: int, theirs: int) -> Row:
    return Row(figure, ours / 1e6, "MB", PEER, theirs / 1e6, theirs / ours)
