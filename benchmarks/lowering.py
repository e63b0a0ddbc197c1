"""Lowering: where its seconds go, what a repeated one costs, and how much memory exporting takes.

`export base`, 8da4w, each time in a process of its own. The phases are those that the export itself
reports, of the one lowering that all benchmarks share. The same export again copies it from the
cache; its bundle must have the same id. The peak is the process's, Python and libraries included,
and is held against the model in float32: of `export base` and `export merged` at the shape of
Qwen2-0.5B with random weights, in the context that both have by default, in the full run only.
"""

from __future__ import annotations

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


def rows(quick: bool, work: Path) -> list[Row]:
    """Lower, lower again, and lower something larger."""
    model = models.model(quick)
    first = models.lowered("base", models.INT4, model)
    again = _export(model.base, work / "again", context=models.CONTEXT, cache=str(first.cache))
    caches = [each["lowering_cache"] for each in (first.measured, again["measured"])]
    if (first.id, caches) != (again["id"], ["kept", "copied"]):
        raise SystemExit("the copied lowering is not the one that was made")
    what = f"export base, 8da4w, {model.name}"
    found = [
        Row(f"{what}: {phase}", seconds, "s", note=f"{peak / 1e6:,.0f} MB at most until its end")
        for phase, (seconds, peak) in first.phases.items()
    ]
    whole, copy = (each["lowering_seconds"] for each in (first.measured, again["measured"]))
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
    size, seconds = done["float32_bytes"], done["measured"]["lowering_seconds"]
    phase = max(done["phases"], key=lambda name: done["phases"][name][1])
    return limited(
        f"export {what}, 8da4w, 0.5B shape, context {done['context']:,}: peak of memory",
        done["peak"] / size, "times float32", PEAK_LIMIT,
        note=f"{size / 1e6:,.0f} MB in float32; reached in: {phase}; {seconds:,.0f} s of lowering",
    )  # fmt: skip


def _export(base: str, out: Path, **given: Any) -> dict[str, Any]:
    done = alone(models.export_one, base=base, out=str(out), recipe=models.INT4, **given)
    return {**done.result, "peak": done.peak_bytes}


def make_qwen2(out: str, shape: dict[str, Any]) -> None:
    """A random Qwen2 with the bundled tokenizer."""
    import torch
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    Qwen2ForCausalLM(Qwen2Config(**shape)).save_pretrained(out)
    AutoTokenizer.from_pretrained(models.BUNDLED).save_pretrained(out)
