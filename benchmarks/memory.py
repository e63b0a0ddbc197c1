"""Memory: what exporting takes at its peak, and what answering does, for one user and for two.

Peaks are those of a process of its own, Python and its libraries included. Two users are two
engines alive in one process, over one base or each with a merged model; what counts is the
process's proportional share of memory (PSS) when both have answered. Whatever answers has its
logits held against PEFT with the same adapter in float32. Linux only.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import models
from benchmarks.alone import alone
from benchmarks.rows import Row
from benchmarks.startup import answer, answer_hugging_face, hold, some_ids

MB = 1e6
_TOKENS = 16
PROMPT = 128


def rows(quick: bool, work: Path) -> list[Row]:
    """Exports, then answers."""
    if not Path("/proc/self/smaps_rollup").exists():
        return [Row("memory", None, "MB", note="not measured: there is no /proc here")]
    model = models.model(quick)
    base = models.lowered("base", models.INT4, model)
    merged = models.lowered("merged", models.INT4, model)
    users = [models.exported(user, model, base.path, work / f"user{user}") for user in (0, 1)]
    said = work / "said.npy"
    wanted: list[np.ndarray] = []
    peaks: dict[str, int] = {}
    for user in (1, 0):
        peaks["float32"] = _peft_peak(model, user, "float32", said)
        wanted.insert(0, np.load(said))
    if not quick:
        peaks["bfloat16"] = _peft_peak(model, 0, "bfloat16", said)
        hold("PEFT eager bfloat16", said, wanted[0])
    return [
        *_export_rows(model, base, merged, work),
        *_answer_rows(model, base.path, users[0], peaks, said, wanted[0]),
        *_two_user_rows(model, base.path, users, merged.path, work, wanted),
    ]


def _export_rows(
    model: models.Model, base: models.Lowered, merged: models.Lowered, work: Path
) -> list[Row]:
    peaks = [
        alone(
            export_one, adapter=model.adapters[0], bundle=str(base.path), base=model.base,
            out=str(work / f"exported{goldens}"), goldens=goldens,
        ).peak_bytes
        for goldens in (True, False)
    ]  # fmt: skip
    size = _float32_bytes(model)
    note = f"the model in float32: {size / MB:,.0f} MB"
    return [
        _row(f"peak of export base, 8da4w, {model.name}", base.peak_bytes, note=note),
        _row(f"peak of export adapter, with goldens, 8da4w, {model.name}", peaks[0],
             "export merged, with goldens", merged.peak_bytes),
        _row(f"peak of export adapter, without goldens, 8da4w, {model.name}", peaks[1]),
    ]  # fmt: skip


def _answer_rows(
    model: models.Model, base: Path, user: Path, peaks: dict[str, int], said: Path,
    wanted: np.ndarray,
) -> list[Row]:  # fmt: skip
    ours = alone(
        answer, base=str(base), adapter=str(user), ids=some_ids(model, PROMPT), tokens=_TOKENS,
        save=str(said),
    ).peak_bytes  # fmt: skip
    figure = f"peak of answering, 8da4w base + adapter, {model.name}"
    hold(figure, said, wanted)
    return [_row(figure, ours, f"PEFT eager {dtype}", theirs) for dtype, theirs in peaks.items()]


def _peft_peak(model: models.Model, user: int, dtype: str, said: Path) -> int:
    """What answering takes with PEFT, in bytes; `said` has the logits afterwards."""
    return alone(
        answer_hugging_face, base=model.base, adapter=model.adapters[user], dtype=dtype,
        ids=some_ids(model, PROMPT), tokens=_TOKENS, save=str(said),
    ).peak_bytes  # fmt: skip


def _two_user_rows(
    model: models.Model, base: Path, users: list[Path], merged: Path, work: Path,
    wanted: list[np.ndarray],
) -> list[Row]:  # fmt: skip
    other = work / "merged"
    shutil.copytree(merged, other)  # a second user's model: other files, so that nothing is shared
    saves = [work / f"said{number}.npy" for number in (0, 1)]
    given: dict[str, Any] = {
        "ids": some_ids(model, PROMPT), "cache": str(work / "joined"),
        "saves": [str(save) for save in saves],
    }  # fmt: skip
    separate = alone(
        two_users, bases=[str(base)] * 2, adapters=[str(user) for user in users], **given
    ).result
    figure = f"two users alive at once, 8da4w, {model.name}"
    for user, save in enumerate(saves):
        hold(f"{figure}, user {user}", save, wanted[user])
    whole = alone(two_users, bases=[None, None], adapters=[str(merged), str(other)], **given).result
    for save in saves:
        hold(f"two merged models, {save.name}", save, wanted[0])
    return [
        _row(f"{figure}: memory", separate["pss"], "two merged models", whole["pss"]),
        _row(f"{figure}: what the second one adds", separate["added"], "two merged models",
             whole["added"]),
    ]  # fmt: skip


def export_one(adapter: str, bundle: str, base: str, out: str, goldens: bool) -> None:
    """One export of an adapter, as the command does it."""
    from export.adapter import export_adapter

    export_adapter(Path(adapter), Path(bundle), Path(out), base=base, goldens=goldens,
                   trust_base=True)  # fmt: skip


def two_users(
    bases: list[str | None], adapters: list[str], ids: list[int], cache: str, saves: list[str]
) -> dict[str, int]:
    """Both open and answer in one process; bytes after the second, and what it added.

    saves: where the logits of each go.

    Raises:
        SystemExit: the first user's answers changed when the second was opened.
    """
    from mobile_runtime.engine import Engine, open_engine

    engines: list[Engine] = []
    said: list[Any] = []
    held: list[int] = []
    for base, adapter in zip(bases, adapters, strict=True):
        engine = open_engine(Path(base) if base else None, Path(adapter), 2, Path(cache))
        said.append(engine.prefill(ids))
        engines.append(engine)
        held.append(_pss_bytes())
    engines[0].reset()
    if not np.array_equal(engines[0].prefill(ids), said[0]):
        raise SystemExit("the first user's answers changed when the second was opened")
    for save, logits in zip(saves, said, strict=True):
        np.save(save, logits)
    return {"pss": held[1], "added": held[1] - held[0]}


def _pss_bytes() -> int:
    """This process's share of the memory that it maps, in bytes."""
    found = re.search(r"^Pss:\s+(\d+) kB", Path("/proc/self/smaps_rollup").read_text(), re.M)
    assert found
    return int(found[1]) * 1024


def _float32_bytes(model: models.Model) -> int:
    from protos.base_model import open_base, skeleton

    return sum(4 * each.numel() for each in skeleton(open_base(model.base)).parameters())


def _row(figure: str, ours: int, peer: str = "", theirs: int | None = None, note: str = "") -> Row:
    if theirs is None:
        return Row(figure, ours / MB, "MB", note=note)
    return Row(figure, ours / MB, "MB", peer, theirs / MB, theirs / ours, note=note)
