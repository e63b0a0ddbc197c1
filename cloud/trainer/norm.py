"""RMSNorm (arXiv 1910.07467) in fewer passes over memory than the models' own, and keeping less.

In: a frozen model. Out: the same model, whose RMSNorms keep their input and one number a token for
the backward pass, instead of float32 copies. The forward pass rounds as the models' own does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from functools import partial
from typing import Any

import torch


@contextlib.contextmanager
def lean(model: torch.nn.Module) -> Generator[None]:
    """Within, all norms of the form w · x / sqrt(mean(x²) + eps) run lean; others are left alone.

    Gemma's, which multiplies by 1 + w, names its eps otherwise.
    """
    norms: list[Any] = [
        module for module in model.modules()
        if type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon")
    ]  # fmt: skip
    for norm in norms:
        norm.forward = partial(_forward, norm.weight, norm.variance_epsilon)
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward


def _forward(weight: torch.Tensor, eps: float, x: torch.Tensor) -> torch.Tensor:
    made: Any = _Norm.apply(x, weight, eps)
    return made


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        wide = x.float()
        length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        inverse = length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        scaled = wide * inverse if wide is x else wide.mul_(inverse)
        return scaled.to(x.dtype).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        x, weight, inverse = ctx.saved_tensors
        wide, change = x.float(), (grads[0] * weight).float()
        # dx = d / rms - x · mean(d · x) / rms³, with d = dy · w
        shared = torch.einsum("...i,...i->...", change, wide)[..., None]
        shared = shared.div_(x.shape[-1]).mul_(inverse**3)
        return change.mul_(inverse).addcmul_(wide, shared, value=-1).to(x.dtype), None, None
