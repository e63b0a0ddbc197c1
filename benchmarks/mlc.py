"""MLC's format on the reference runtime, against Hugging Face eager in float32: speed on a CPU.

The base is written as MLC's directory, its library compiled, and the same tokens are read with
both, one thread each, by turns. It stops if the answers differ: Hugging Face holds the weights that
stand in the directory. At the end a second user's adapter is packaged in both modes, after parity
of each: of random weights, the 135M shape's, the gates may fail that say what four bits do to it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import models
from benchmarks.answers import FOUR_BITS, hold, hold_same
from benchmarks.rows import Row
from benchmarks.turns import compared, limited
from protos.artifacts import Artifact

SPEED, SHIPPED = "mlc-q4f32_1", "mlc-q4f16_1"
TOLERANCE = 1e-4
EAGER = "Hugging Face eager, float32"
AIMS = {"prefill": 1.0, "decode": 2.0}
COMPILE_S, SHIP_S, SHARES = 10.0, 2.0, {"lora-parameters": 0.03, "merged": 0.15}
"""What a library, and a second user, may cost; the shares are of all shards that a user needs."""


@dataclass(frozen=True)
class Sizes:
    """Prompts of so many tokens, then so many one by one."""

    prompts: int = 7
    prompt: int = 128
    tokens: int = 16


QUICK = Sizes(prompts=2, tokens=4)


def rows(quick: bool, work: Path) -> list[Row]:
    """Compile, compare and time; then what a second user costs."""
    model = models.model(quick)
    may_fail = () if quick else FOUR_BITS
    return speed(model, QUICK if quick else Sizes(), work) + ship(model, work, may_fail)


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


def speed(model: models.Model, sizes: Sizes, work: Path) -> list[Row]:
    """Both read the same, by turns."""
    import torch

    from export.base import export_base
    from mobile_runtime.mlc.engine import TvmEngine

    torch.set_num_threads(1)
    base = export_base(model.base, work / "base", SPEED, context_length=models.CONTEXT)
    engine = TvmEngine(base.path, None, 1, work / "libraries")
    eager = Eager(Path(model.base), SPEED)
    count = sizes.prompt + sizes.tokens
    ids = np.random.default_rng(0).integers(3, engine.vocab_size, count).tolist()
    seconds: dict[str, list[tuple[float, float]]] = {"prefill": [], "decode": []}
    for _ in range(sizes.prompts):
        engine.reset()
        _turn(seconds["prefill"], engine.prefill, eager.prefill, ids[: sizes.prompt])
        for token in ids[sizes.prompt :]:
            _turn(seconds["decode"], engine.decode, eager.decode, token)
    figure = f"compile the library, once for all users, {SPEED}, {model.name}"
    found = [limited(figure, engine.cost.join_s, "s", COMPILE_S)]
    for phase, tokens in (("prefill", sizes.prompt), ("decode", 1)):
        ours, theirs = ([tokens / s for s in each] for each in zip(*seconds[phase], strict=True))
        found.append(
            compared(
                f"{phase}, {SPEED} on TVM, 1 thread, {model.name}", "tokens/s", EAGER, ours,
                theirs, less_is_better=False, aim=AIMS[phase],
            )
        )  # fmt: skip
    return found


def ship(model: models.Model, work: Path, may_fail: tuple[str, ...]) -> list[Row]:
    """What a second user of the same base costs: an adapter on q and v, r = 8, in both modes.

    The one that is timed is not the first, which pays for what the process loads, and has goldens,
    whose parity is measured. may_fail: see `benchmarks.answers`.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from export.adapter import export_adapter
    from export.base import export_base

    torch.manual_seed(0)
    loaded: Any = AutoModelForCausalLM.from_pretrained(model.base)
    targets = LoraConfig(
        r=models.RANK, lora_alpha=models.ALPHA, target_modules=["q_proj", "v_proj"],
        init_lora_weights=False,
    )  # fmt: skip
    get_peft_model(loaded, targets).save_pretrained(str(work / "adapter"))
    base = export_base(model.base, work / "shipped", SHIPPED, context_length=models.CONTEXT)
    found: list[Row] = []
    for mode, share in SHARES.items():

        def export(name: str, *, goldens: bool, mode: str = mode) -> Artifact:
            return export_adapter(
                work / "adapter", base.path, work / f"{mode}-{name}", base=model.base, mode=mode,
                goldens=goldens, trust_base=True, threads=1,
            )  # fmt: skip

        checked = export("checked", goldens=True).path
        note = hold(mode, base.path, checked, 1, may_fail=may_fail, cache=work / "libraries")
        started = time.perf_counter()
        user = export("timed", goldens=False)
        seconds = time.perf_counter() - started
        hold_same(mode, checked, user.path)
        measured = user.manifest.measured
        mine, shared = measured["user_shard_bytes"], measured["shared_shard_bytes"]
        figure = f"a second user, q and v, r = 8, {SHIPPED} {mode}, {model.name}"
        own = 100 * mine / (mine + shared)
        found += [
            limited(f"{figure}: export", seconds, "s", SHIP_S, f"parity: {note}"),
            limited(f"{figure}: share of all shards", own, "%", 100 * share, f"{mine:,} bytes"),
        ]
    return found


def _turn(
    seconds: list[tuple[float, float]],
    ours: Callable[[Any], np.ndarray],
    theirs: Callable[[Any], np.ndarray],
    given: Any,
) -> None:
    """Both read `given`; their answers must agree, their seconds are kept."""
    started = time.perf_counter()
    found = ours(given)
    between = time.perf_counter()
    wanted = theirs(given)
    seconds.append((between - started, time.perf_counter() - between))
    difference = float(np.abs(found - wanted).max())
    if not (difference <= TOLERANCE and found.argmax() == wanted.argmax()):
        raise SystemExit(f"the runtime and Hugging Face differ by {difference:.2e} in a logit")
