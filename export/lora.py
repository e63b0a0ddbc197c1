"""LoRA as two plain linear layers, as the phone computes it; XNNPACK takes them like any other.

    y = base(x) + B(A(x))        A: [rank, in], B: [out, rank], alpha / rank already folded into B

(Hu et al. 2021, equation 3, with the scale folded). Zeros in B are exactly no adapter, and zero
rows of A with zero columns of B are exactly a lower rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import nn


class LoraLinear(nn.Module):
    """A linear layer and its low-rank change."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base
        self.lora_A = nn.Linear(base.in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.lora_B(self.lora_A(x))


def projections(model: nn.Module) -> dict[str, nn.Linear]:
    """Every linear layer of the decoder layers by its path in the model, such as
    `model.layers.0.self_attn.q_proj`; not the embedding and not the head.
    """
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and ".layers." in name
    }


def insert_lora(model: nn.Module, rank: int) -> dict[str, LoraLinear]:
    """Put a `LoraLinear` without effect around every projection, in place; path -> layer."""
    inserted: dict[str, LoraLinear] = {}
    for path, linear in projections(model).items():
        parent, _, name = path.rpartition(".")
        inserted[path] = LoraLinear(linear, rank).eval()
        setattr(model.get_submodule(parent), name, inserted[path])
    return inserted


def slot_tensors(layers: Mapping[str, LoraLinear]) -> dict[str, torch.Tensor]:
    """The tensors by slot name: `<path>.lora_A` [rank, in] and `<path>.lora_B` [out, rank]."""
    tensors: dict[str, torch.Tensor] = {}
    for path, layer in layers.items():
        tensors[f"{path}.lora_A"] = layer.lora_A.weight
        tensors[f"{path}.lora_B"] = layer.lora_B.weight
    return tensors


def fill(layers: Mapping[str, LoraLinear], tensors: Mapping[str, torch.Tensor]) -> None:
    """Copy slot tensors, float32, into the layers; a layer without any stays without effect."""
    with torch.no_grad():
        for name, parameter in slot_tensors(layers).items():
            if name in tensors:
                parameter.copy_(tensors[name])


def fill_template(layers: Mapping[str, LoraLinear], digest: str) -> None:
    """Fill with random numbers that depend on `digest` (hex) only: reproducible and unique.

    Lowering names a constant by its content, so equal tensors would share one name.
    """
    generator = torch.Generator().manual_seed(int(digest[:15], 16))
    with torch.no_grad():
        for parameter in slot_tensors(layers).values():
            parameter.copy_(
                torch.randn(cast("tuple[int, int]", parameter.shape), generator=generator)
            )
