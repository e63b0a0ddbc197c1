"""Lowering: where its seconds go, what a repeated one costs, and how much memory exporting takes.

`export base`, 8da4w, each time in a process of its own. The phases are those that the export itself
reports. The same export again copies the lowering from the cache; its bundle must have the same id.
The peak is the process's, Python and libraries included, and is held against the model in float32:
of `export base` and `export merged` at the shape of Qwen2-0.5B with random weights, in the context
that both have by default, in the full run only. A quick one lowers one small layer: the seconds are
those of operators, not of weights.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from benchmarks import models
from benchmarks.alone import alone
from benchmarks.rows import Row
from benchmarks.turns import limited

PEAK_LIMIT = 2.0
"""Times the model in float32."""
HALF_BILLION = {
    "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
    "num_attention_heads": 14, "num_key_value_heads": 2, "max_position_embeddings": 2048,
    "tie_word_embeddings": True, "eos_token_id": 2, "bos_token_id": 1,
}  # fmt: skip
"""Qwen2-0.5B's."""
ONE_LAYER = {
    **HALF_BILLION, "vocab_size": 4096, "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
}  # fmt: skip


def rows(quick: bool, work: Path) -> list[Row]:
    """Lower, lower again, and lower something larger."""
    if quick:
        base, name = str(work / "small"), "one small layer"
        alone(make_qwen2, out=base, shape=ONE_LAYER)
    else:
        model = models.model(quick)
        base, name = model.base, model.name
    kept = {"context": models.CONTEXT, "cache": str(work / "cache")}
    first = _export(base, work / "first", **kept)
    again = _export(base, work / "again", **kept)
    if (first["id"], first["cache"], again["cache"]) != (again["id"], "kept", "copied"):
        raise SystemExit("the copied lowering is not the one that was made")
    what = f"export base, 8da4w, {name}"
    found = [
        Row(f"{what}: {phase}", seconds, "s", note=f"{peak / 1e6:,.0f} MB at most until its end")
        for phase, (seconds, peak) in first["phases"].items()
    ]
    whole, copy = first["lowering_seconds"], again["lowering_seconds"]
    found.append(
        Row(
            f"{what}: lowering that was kept", copy, "s", "lowering", whole, whole / copy,
            note="each measured once",
        )
    )  # fmt: skip
    if not quick:
        half, adapter = str(work / "half"), str(work / "adapter")
        alone(make_qwen2, out=half, shape=HALF_BILLION)
        alone(models.make_adapter, base=half, directory=adapter, seed=0)
        found += [
            _peak("base", _export(half, work / "large")),
            _peak("merged", _export(half, work / "merged", adapter=adapter)),
        ]
    return found


def _peak(what: str, done: dict[str, Any]) -> Row:
    size, seconds = done["float32_bytes"], done["lowering_seconds"]
    phase = max(done["phases"], key=lambda name: done["phases"][name][1])
    return limited(
        f"export {what}, 8da4w, 0.5B shape, context {done['context']:,}: peak of memory",
        done["peak"] / size, "times float32", PEAK_LIMIT,
        note=f"{size / 1e6:,.0f} MB in float32; reached in: {phase}; {seconds:,.0f} s of lowering",
    )  # fmt: skip


def _export(base: str, out: Path, **given: Any) -> dict[str, Any]:
    done = alone(export_one, base=base, out=str(out), **given)
    return {**done.result, "peak": done.peak_bytes}


def export_one(
    base: str,
    out: str,
    context: int | None = None,
    cache: str | None = None,
    adapter: str | None = None,
) -> dict[str, Any]:
    """One export, merged if there is an adapter; phase -> seconds and the most memory held until
    its end.
    """
    from benchmarks.alone import peak_bytes
    from export.base import export_base
    from export.lowerings import LoweringCache
    from export.merged import export_merged
    from protos.base_model import open_base, skeleton

    phases: dict[str, tuple[float, int]] = {}
    began: list[tuple[str, float]] = [("reading the base", time.perf_counter())]

    def progress(message: str, _: float) -> None:
        name, started = began[-1]
        now = time.perf_counter()
        phases[name] = (phases.get(name, (0.0, 0))[0] + now - started, peak_bytes())
        began.append((message, now))

    given: dict[str, Any] = {
        "context_length": context, "progress": progress,
        "cache": LoweringCache(Path(cache)) if cache else None,
    }  # fmt: skip
    if adapter is None:
        bundle = export_base(base, Path(out), models.INT4, **given)
    else:
        bundle = export_merged(
            Path(adapter), Path(out), models.INT4, base=base, trust_base=True, **given
        )
    progress("", 1.0)
    measured = bundle.manifest.measured
    return {
        "id": bundle.id,
        "context": bundle.config["context_length"],
        "cache": measured["lowering_cache"],
        "lowering_seconds": measured["lowering_seconds"],
        "phases": phases,
        "float32_bytes": sum(4 * each.numel() for each in skeleton(open_base(base)).parameters()),
    }


def make_qwen2(out: str, shape: dict[str, Any]) -> None:
    """A random Qwen2 with the bundled tokenizer."""
    import torch
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    Qwen2ForCausalLM(Qwen2Config(**shape)).save_pretrained(out)
    AutoTokenizer.from_pretrained(models.BUNDLED).save_pretrained(out)
