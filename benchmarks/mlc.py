"""MLC's format on the reference runtime, against Hugging Face eager in float32: speed on a CPU.

`python benchmarks/mlc.py [--quantization q4f32_1] [--out results.json]` makes a random Llama like
SmolLM-135M, writes it as MLC's directory, compiles its library, and reads the same tokens with
both, one thread each, by turns. It stops if the answers differ: Hugging Face holds the weights that
stand in the directory. A ratio above 1 says that the runtime is faster; it is the median over the
pairs of turns, so that a busy machine slows both. `compile_cpu_seconds` are those of this process
and of the linker. At the end it packages a user's adapter in both modes. Takes some three minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from protos.artifacts import tool_versions

SHAPE = {
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 2048,
    "tie_word_embeddings": True, "eos_token_id": 2, "bos_token_id": 1,
}  # fmt: skip
CONTEXT, PROMPT = 512, 128
TOLERANCE = 1e-4


def make_model(directory: Path) -> None:
    """A random model of that shape, with the bundled tokenizer: its ids are in the vocabulary."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    import cloud.pocket

    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SHAPE)).save_pretrained(directory)
    bundled = Path(cloud.pocket.__file__).parent / "models" / "base"
    AutoTokenizer.from_pretrained(bundled).save_pretrained(directory)


class Eager:
    """Hugging Face with a cache, as `generate` would call it."""

    def __init__(self, directory: Path, recipe: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        from export.mlc.quantize import quantize
        from export.recipes import find_recipe

        self._torch = torch
        self._model: Any = AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        quantize(self._model, find_recipe(recipe))
        self._cache: Any = None

    def prefill(self, ids: list[int]) -> np.ndarray:
        """Logits after the last of `ids`, and a new cache."""
        self._cache = None
        return self._read(ids)

    def decode(self, token: int) -> np.ndarray:
        return self._read([token])

    def _read(self, ids: list[int]) -> np.ndarray:
        with self._torch.no_grad():
            tokens = self._torch.tensor([ids])
            out = self._model(tokens, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        self._cache = out.past_key_values
        return out.logits[0, -1].numpy()


def measure(work: Path, quantization: str, prompts: int, tokens: int) -> dict[str, Any]:
    """Compile, compare, and time."""
    import torch

    from export.base import export_base
    from mobile_runtime.mlc.engine import TvmEngine

    torch.set_num_threads(1)
    recipe = f"mlc-{quantization}"
    make_model(work / "model")
    base = export_base(str(work / "model"), work / "base", recipe, context_length=CONTEXT)
    started, before = time.perf_counter(), sum(os.times()[:4])
    engine = TvmEngine(base.path, None, 1, work / "libraries")
    opened_s, cpu_s = time.perf_counter() - started, sum(os.times()[:4]) - before
    eager = Eager(work / "model", recipe)
    ids = np.random.default_rng(0).integers(3, SHAPE["vocab_size"], PROMPT + tokens).tolist()
    worst, prefill, decode = 0.0, list[tuple[float, float]](), list[tuple[float, float]]()
    for _ in range(prompts):
        engine.reset()
        worst = max(worst, _turn(prefill, engine.prefill, eager.prefill, ids[:PROMPT]))
        for token in ids[PROMPT:]:
            worst = max(worst, _turn(decode, engine.decode, eager.decode, token))
    return {
        "quantization": quantization,
        "max_abs_logit_difference": worst,
        "compile_seconds": round(engine.cost.join_s, 2),
        "compile_cpu_seconds": round(cpu_s, 2),
        "open_seconds": round(opened_s, 2),
        **_figures(f"prefill_{PROMPT}", prefill),
        **_figures("decode", decode),
    }


def ship(work: Path) -> dict[str, Any]:
    """What a second user of the same base costs: an adapter on q and v, r = 8, in both modes.

    Run twice each, since the first run of a process pays for what it loads; the shares are of all
    shards that the user's directory needs.
    """
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from export.adapter import export_adapter
    from export.base import export_base

    model: Any = AutoModelForCausalLM.from_pretrained(work / "model")
    targets = LoraConfig(r=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(model, targets).save_pretrained(str(work / "adapter"))
    base = export_base(str(work / "model"), work / "shipped", "mlc-q4f16_1", context_length=CONTEXT)
    figures: dict[str, Any] = {}
    for mode in ("lora-parameters", "merged"):
        for turn in ("first", "second"):
            started = time.perf_counter()
            user = export_adapter(
                work / "adapter", base.path, work / f"{mode}-{turn}", base=str(work / "model"),
                mode=mode, goldens=False, trust_base=True, threads=1,
            )  # fmt: skip
            seconds = time.perf_counter() - started
            measured = user.manifest.measured
            mine, shared = measured["user_shard_bytes"], measured["shared_shard_bytes"]
            figures[f"{mode}_{turn}_user_seconds"] = round(seconds, 2)
            figures[f"{mode}_user_bytes"] = mine
            figures[f"{mode}_share"] = round(mine / (mine + shared), 4)
    return figures


def _turn(
    seconds: list[tuple[float, float]],
    ours: Callable[[Any], np.ndarray],
    theirs: Callable[[Any], np.ndarray],
    given: Any,
) -> float:
    """Both read `given`; their seconds are kept, their difference returned and checked."""
    started = time.perf_counter()
    found = ours(given)
    between = time.perf_counter()
    wanted = theirs(given)
    seconds.append((between - started, time.perf_counter() - between))
    difference = float(np.abs(found - wanted).max())
    if difference > TOLERANCE or found.argmax() != wanted.argmax():
        raise SystemExit(f"the runtime and Hugging Face differ by {difference:.2e} in a logit")
    return difference


def _figures(name: str, seconds: list[tuple[float, float]]) -> dict[str, float]:
    ours, theirs = zip(*seconds, strict=True)
    return {
        f"{name}_ms": round(1e3 * statistics.median(ours), 1),
        f"{name}_eager_ms": round(1e3 * statistics.median(theirs), 1),
        f"{name}_eager_over_ours": round(statistics.median(t / o for o, t in seconds), 2),
    }


def main() -> None:
    """Run, print, and write the figures where `--out` says."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--out", type=Path)
    arguments.add_argument("--quantization", default="q4f32_1", choices=["q4f32_1", "q0f32"])
    arguments.add_argument("--prompts", type=int, default=7)
    arguments.add_argument("--tokens", type=int, default=16)
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as work:
        figures = measure(Path(work), given.quantization, given.prompts, given.tokens)
        figures |= ship(Path(work))
    result = {
        "benchmark": "mlc",
        "figures": figures,
        "machine": {"processor": platform.machine(), "threads": 1},
        "versions": tool_versions(),
    }
    print(json.dumps(result, indent=1))
    if given.out:
        given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
