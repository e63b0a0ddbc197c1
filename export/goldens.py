"""Making the goldens of a base and of an adapter (format: `protos/golden.py`).

In: reference models and prompts. Out: a `Golden`. Rungs, each eager PyTorch:
    peft        the float32 base; PEFT itself for "on", so our own LoRA layers are not their judge
    merged      PEFT's own merge into the float32 base
    fake_quant  the quantized base with our LoRA layers; for a merged bundle, merged and quantized
One model is in memory at a time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from export.backend import find_backend
from export.libraries import quiet
from export.lora import fill, insert_lora
from export.peft_adapter import Arrays
from export.prompts import CONTINUATION
from export.recipes import Recipe
from export.reference import Recorder, Reference, continuations
from protos.artifacts import tool_versions
from protos.base_model import BaseModel, load_model
from protos.errors import UnsupportedError
from protos.golden import Golden, GoldenPrompt, NoiseFloor, Operators, Rung
from protos.progress import Progress, silent

SEED = 0
_MERGE_TOLERANCE = 1e-3
"""Largest |logit difference| between PEFT and its merge; measured: below 1e-5 on trained models."""
_FOLD_TOLERANCE = 1e-5
"""Largest relative difference of an element of a folded B."""
_OFF_TOLERANCE = 1e-5
"""Largest |difference| between the base and PEFT's model without its adapter, as a share of the
largest number; measured: none.
"""


@dataclass(frozen=True)
class GoldenMaker:
    """What all goldens of one export have in common. prompts: still without continuations.

    eos_ids: where the model ends an answer. rendered_at: see `Golden`.
    """

    base: BaseModel
    recipe: Recipe
    prompts: Sequence[GoldenPrompt]
    eos_ids: Sequence[int]
    rendered_at: datetime | None
    progress: Progress = silent

    def load(self) -> nn.Module:
        """The float32 base, afresh. Models hold themselves in cycles: the last one goes first."""
        gc.collect()
        return load_model(self.base, torch.float32)

    def quantized(self, model: nn.Module) -> nn.Module:
        """A float32 model, changed to hold the weights that the recipe ships."""
        find_backend(self.recipe).quantize(model, self.recipe)
        return model

    def continued(
        self, model: nn.Module
    ) -> tuple[list[GoldenPrompt], list[torch.Tensor], Operators]:
        """The prompts with what a float model goes on with; what its head was given on the way, for
        each prompt [rows, H]; and its operators as in `Rung`.
        """
        ids = [prompt.ids for prompt in self.prompts]
        found, operators = continuations(model, ids, CONTINUATION, self.vocab_size)
        prompts = [
            dataclasses.replace(prompt, continuation=continued.ids)
            for prompt, continued in zip(self.prompts, found, strict=True)
        ]
        return prompts, [continued.states for continued in found], operators

    @property
    def vocab_size(self) -> int:
        return int(self.base.config["vocab_size"])

    def recorder(self, prompts: Sequence[GoldenPrompt]) -> Recorder:
        return Recorder([[*p.ids, *p.continuation] for p in prompts], self.vocab_size)

    def golden(
        self,
        prompts: Sequence[GoldenPrompt],
        recorder: Recorder,
        rungs: dict[str, Rung],
        noise: NoiseFloor,
    ) -> Golden:
        return Golden(
            prompts=list(prompts),
            ids=recorder.ids,
            full_rows=recorder.full_rows,
            rungs=rungs,
            noise_floor=noise,
            thresholds=dict(self.recipe.thresholds),
            seed=SEED,
            versions=tool_versions(),
            eos_ids=list(self.eos_ids),
            rendered_at=self.rendered_at,
        )


def base_golden(make: GoldenMaker) -> Golden:
    """Goldens of a base alone: what it says in float, and with the weights that are lowered."""
    model = make.load()
    make.progress("the base's answers", 0.0)
    prompts, _, _ = make.continued(model)
    recorder = make.recorder(prompts)
    (plain,) = recorder.record_float([Reference(model)])
    make.progress("the quantized base's answers", 0.5)
    shipped, noise = recorder.record_with_noise(make.quantized(model), SEED)
    return make.golden(prompts, recorder, {"peft.off": plain, "fake_quant.off": shipped}, noise)


def adapter_golden(
    make: GoldenMaker, adapter: Path, folded: Arrays, shipped: Arrays, rank: int
) -> Golden:
    """Goldens of a separate adapter.

    folded: slot name -> array, which are held against PEFT's own change. shipped: the same as the
    phone gets them, rounded to their type on the wire.

    Raises:
        UnsupportedError: PEFT changes a weight in another way than the folded tensors do.
    """
    prompts, recorder, rungs = _float_rungs(make, adapter, folded)
    make.progress("the quantized base's answers", 0.6)
    model = make.quantized(make.load())
    if make.recipe.quantization is None:
        rungs["fake_quant.off"] = rungs["peft.off"]
    else:
        rungs["fake_quant.off"] = recorder.record(Reference(model))
    tensors = {name: torch.from_numpy(array) for name, array in shipped.items()}
    fill(insert_lora(model, rank), tensors)
    rungs["fake_quant.on"], noise = recorder.record_with_noise(model, SEED)
    return make.golden(prompts, recorder, rungs, noise)


def merged_golden(make: GoldenMaker, adapter: Path) -> Golden:
    """Goldens of a merged bundle: its fake_quant.on is merged first, then quantized.

    Raises:
        UnsupportedError: PEFT cannot merge this adapter without changing its answers.
    """
    prompts, recorder, rungs = _float_rungs(make, adapter)
    make.progress("the quantized models' answers", 0.6)
    if make.recipe.quantization is None:
        rungs["fake_quant.off"] = rungs["peft.off"]
    else:
        rungs["fake_quant.off"] = recorder.record(Reference(make.quantized(make.load())))
    shipped = make.quantized(merge(load_peft(make.load(), adapter), adapter))
    rungs["fake_quant.on"], noise = recorder.record_with_noise(shipped, SEED)
    return make.golden(prompts, recorder, rungs, noise)


def _float_rungs(
    make: GoldenMaker, adapter: Path, folded: Arrays | None = None
) -> tuple[list[GoldenPrompt], Recorder, dict[str, Rung]]:
    """The rungs of peft and merged, off and on. folded: see `adapter_golden`.

    The continuations come from the merged model: it says the same and decodes twice as fast.
    """
    make.progress("the merged model's answers", 0.0)
    merged = merge(load_peft(make.load(), adapter), adapter)
    prompts, states, operators = make.continued(merged)
    del merged  # what its head says is recorded at the end, at the ids that PEFT's answers choose
    make.progress("PEFT's answers", 0.3)
    base = make.load()
    shortest = torch.tensor([min((prompt.ids for prompt in prompts), key=len)])
    biases, plain = _biases(base), Reference(base).states(shortest)
    tuned = load_peft(base, adapter)
    if folded is not None:
        check_fold(tuned, folded)
    without = Reference(tuned, lambda: _without(tuned, biases))
    _check_off(plain, without.states(shortest), adapter)
    recorder = make.recorder(prompts)
    off, on = recorder.record_float([without, Reference(tuned)])
    kept = recorder.keep(Reference(merge(tuned, adapter)), states)
    merged_on = dataclasses.replace(kept, operators=operators)
    _check_merge(on, merged_on)
    # Without the adapter the merged model is the base itself: the same answers, not run again.
    rungs = {"peft.off": off, "peft.on": on, "merged.off": off, "merged.on": merged_on}
    return prompts, recorder, rungs


def _biases(model: nn.Module) -> list[tuple[nn.Parameter, torch.Tensor]]:
    """A base's biases, each with a copy of what is in it: where an adapter's config says `bias=`,
    PEFT loads its own into the base.
    """
    named = model.named_parameters()
    return [(bias, bias.detach().clone()) for name, bias in named if "bias" in name]


@contextlib.contextmanager
def _without(tuned: Any, biases: Sequence[tuple[nn.Parameter, torch.Tensor]]) -> Generator[None]:
    """The base itself inside the `with`: PEFT switches an adapter off, but not its biases."""
    trained = [bias.data for bias, _ in biases]
    for bias, own in biases:
        bias.data = own
    try:
        with quiet(), tuned.disable_adapter():
            yield
    finally:
        for (bias, _), values in zip(biases, trained, strict=True):
            bias.data = values


def load_peft(model: nn.Module, adapter: Path) -> Any:
    """A PEFT model of a base and the adapter in a directory, in evaluation mode.

    Raises:
        UnsupportedError: PEFT itself cannot load it.
    """
    from peft import PeftModel

    try:
        with quiet():
            tuned = PeftModel.from_pretrained(cast("Any", model), str(adapter), torch_device="cpu")
            return tuned.eval()
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        line = " ".join(str(error).split())[:300]
        raise UnsupportedError(f"{adapter}: PEFT cannot load it onto this base: {line}") from None


def merge(tuned: Any, adapter: Path) -> nn.Module:
    """PEFT's own merge, in float32; `tuned` is used up.

    Raises:
        UnsupportedError: it has no merge for this kind of adapter.
    """
    with _refused_by_name(adapter):
        return tuned.merge_and_unload(safe_merge=False).eval()


@contextlib.contextmanager
def _refused_by_name(adapter: Path) -> Generator[None]:
    try:
        yield
    except (ValueError, RuntimeError, AttributeError) as error:
        raise UnsupportedError(f"{adapter}: PEFT cannot merge it: {error}") from None


def check_fold(tuned: Any, folded: Arrays) -> None:
    """Hold every folded pair against what PEFT loaded and the scale that it computes itself.

    Raises:
        UnsupportedError: they differ; this PEFT does something that `peft_adapter` does not know.
    """
    from peft.tuners.lora import LoraLayer

    inner = tuned.get_base_model()
    for module in dict.fromkeys(name.rpartition(".")[0] for name in folded):
        down, up = (torch.from_numpy(folded[f"{module}.lora_{side}"]) for side in "AB")
        layer = inner.get_submodule(module)
        rank = layer.r["default"] if isinstance(layer, LoraLayer) else 0
        same = not up[:, rank:].any()
        if rank:
            scaled = cast("Any", layer.lora_B["default"]).weight * layer.scaling["default"]
            same &= torch.equal(down[:rank], cast("Any", layer.lora_A["default"]).weight)
            same &= torch.allclose(up[:, :rank], scaled, rtol=_FOLD_TOLERANCE, atol=0.0)
        if not same:
            raise UnsupportedError(
                f"{module}: PEFT's weight change differs from the exported one; this adapter uses "
                "something that a separate adapter cannot represent"
            )


def _check_off(base: torch.Tensor, without: torch.Tensor, adapter: Path) -> None:
    apart = float((base - without).abs().max())
    if not apart <= _OFF_TOLERANCE * float(base.abs().max()):
        raise UnsupportedError(
            f"{adapter}: PEFT's model without this adapter differs from the base by {apart:.2g}: "
            "it changes the base in a way that cannot be told from it"
        )


def _check_merge(peft: Rung, merged: Rung) -> None:
    off = abs(peft.logits - merged.logits).max()
    if not off <= _MERGE_TOLERANCE * max(1.0, abs(peft.logits).max()):
        raise UnsupportedError(
            f"PEFT's merged model differs from its adapter by {off:.2g} in a logit: it has "
            "no exact merged form"
        )
