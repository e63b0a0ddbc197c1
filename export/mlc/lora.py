"""LoRA as parameters of an MLC library: y = Wx + B(Ax), A and B loaded by name like any weight.

In: the folded tensors of an adapter, by Hugging Face's projections. Out: the parameters of MLC's
fused ones. Where a projection stacks several outputs, A stacks theirs and B is block-diagonal:

    A = [A_q; A_v]   [2r, in]          B = [B_q  0 ]
                                           [ 0   0 ]   [out, 2r]     (k has no adapter here)
                                           [ 0  B_v]

The same ranks hold in every layer, so that one library serves all adapters of one configuration.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from export.mlc.parameters import FAMILIES, Array, Fused, fused_linears
from export.peft_adapter import Arrays, PeftAdapter, adapted_modules, highest_rank
from protos.base_model import BaseModel

Shapes = Mapping[str, tuple[int, int]]
"""Hugging Face's linear layers: path -> (out, in)."""


@dataclass(frozen=True)
class LoraSlot:
    """A place for one tensor of PEFT's; see `peft_adapter.Slot`."""

    name: str
    shape: tuple[int, int]

    @property
    def module(self) -> str:
        return self.name.rpartition(".")[0]


@dataclass(frozen=True)
class LoraLayout:
    """Where an adapter's tensors go; what `peft_adapter.fold` asks of a layout."""

    rank: int
    slots: Sequence[LoraSlot]

    @property
    def modules(self) -> list[str]:
        """The linear layers that the adapter changes."""
        return list(dict.fromkeys(slot.module for slot in self.slots))


def lora_layout(adapter: PeftAdapter, shapes: Shapes) -> LoraLayout:
    """The layout of an adapter: slots for the layers that its file has tensors of."""
    rank, slots = highest_rank(adapter), list[LoraSlot]()
    for module in adapted_modules(adapter):
        if module in shapes:
            rows, columns = shapes[module]
            slots += [
                LoraSlot(f"{module}.lora_A", (rank, columns)),
                LoraSlot(f"{module}.lora_B", (rows, rank)),
            ]
    return LoraLayout(rank, slots)


def ranks(base: BaseModel, layout: LoraLayout) -> dict[str, int]:
    """Name of each fused projection that has an adapter in any layer -> rows of its A."""
    return {
        fused.name.rpartition(".")[2]: layout.rank * len(parts)
        for fused in fused_linears(FAMILIES[base.architecture])
        if (parts := _adapted_parts(fused, layout))
    }


def lora_parameters(
    base: BaseModel, layout: LoraLayout, folded: Arrays, shapes: Shapes
) -> Iterator[tuple[str, Array]]:
    """`<fused>.lora_a` [rows, in] and `<fused>.lora_b` [out, rows] of every layer, float32."""
    for layer in range(int(base.config["num_hidden_layers"])):
        prefix = f"model.layers.{layer}."
        for fused in fused_linears(FAMILIES[base.architecture]):
            if parts := _adapted_parts(fused, layout):
                a, b = _stack(prefix, fused, parts, layout.rank, folded, shapes)
                yield f"{prefix}{fused.name}.lora_a", a
                yield f"{prefix}{fused.name}.lora_b", b


def _adapted_parts(fused: Fused, layout: LoraLayout) -> list[str]:
    """Parts of a fused projection that have an adapter in any layer."""
    return [part for part in fused.parts if any(m.endswith(f".{part}") for m in layout.modules)]


def _stack(
    prefix: str, fused: Fused, parts: Sequence[str], rank: int, folded: Arrays, shapes: Shapes
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    outs = [shapes[prefix + part][0] for part in fused.parts]
    a = np.zeros((rank * len(parts), shapes[prefix + parts[0]][1]), np.float32)
    b = np.zeros((sum(outs), rank * len(parts)), np.float32)
    for place, part in enumerate(parts):
        if f"{prefix}{part}.lora_A" in folded:
            rows = slice(place * rank, (place + 1) * rank)
            start = sum(outs[: fused.parts.index(part)])
            a[rows] = folded[f"{prefix}{part}.lora_A"]
            b[start : start + shapes[prefix + part][0], rows] = folded[f"{prefix}{part}.lora_B"]
    return a, b
