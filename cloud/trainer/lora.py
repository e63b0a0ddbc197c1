"""LoRA (arXiv 2106.09685) for a row of several users: a token goes through its own user's A and B.

In: the frozen model's linear layers and a row's segments. Out: y = W x + (alpha / rank) B A x,
where W runs once over all tokens. Gradients are added to each user's own buffers during the
backward pass; what is kept for it is x, which the frozen layers share, and A x.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch

from cloud.trainer.packing import Segment

if TYPE_CHECKING:
    from torch.nn import Linear, Module


@dataclass(frozen=True)
class Factors:
    """One user's A and B of one linear layer, and where their gradients are gathered.

    a: `[rank, in]`, b: `[out, rank]`, both in the dtype that the base is computed in; the gradients
    are float32. drop: gives the mask of a dropout for a segment, None without.
    """

    a: torch.Tensor
    b: torch.Tensor
    grad_a: torch.Tensor
    grad_b: torch.Tensor
    scale: float
    drop: Callable[[Segment, int], torch.Tensor] | None = None

    def inputs(self, x: torch.Tensor, segment: Segment) -> torch.Tensor:
        """What A sees: the segment's tokens, less what is dropped."""
        own = x[segment.start : segment.stop]
        return own if self.drop is None else own * self.drop(segment, x.shape[1]).to(x)


@dataclass
class Routing:
    """Whose tokens a forward pass holds; `hooked` layers read it.

    factors: by owner, then layer. sparse: layers that are computed at the tokens `needed` only,
    whose segments are `needed_segments`; elsewhere nobody reads what they give.
    """

    factors: Sequence[Mapping[str, Factors]] = ()
    segments: Sequence[Segment] = ()
    needed: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    needed_segments: Sequence[Segment] = ()
    sparse: Collection[str] = ()
    anchor: torch.Tensor = field(default_factory=lambda: torch.zeros(0, requires_grad=True))

    def of(self, layer: str, segments: Sequence[Segment]) -> list[tuple[Segment, Factors]]:
        """The segments whose users adapt this layer."""
        return [
            (segment, own)
            for segment in segments
            if (own := self.factors[segment.owner].get(layer))
        ]


@contextlib.contextmanager
def hooked(model: Module, layers: Iterable[str], routing: Routing) -> Generator[None]:
    """Within, these linear layers of the model add what `routing` says; weights stay untouched."""
    linears = [(name, model.get_submodule(name)) for name in layers]
    for name, linear in linears:
        linear.forward = partial(_forward, cast("Linear", linear), name, routing)
    try:
        yield
    finally:
        for _, linear in linears:
            del linear.forward


def _forward(linear: Linear, name: str, routing: Routing, x: torch.Tensor) -> torch.Tensor:
    tokens = x.reshape(-1, x.shape[-1])
    parts = routing.of(name, routing.segments)
    made: Any
    if name in routing.sparse and not any(own.drop for _, own in parts):
        parts = routing.of(name, routing.needed_segments)
        few = tokens.index_select(0, routing.needed)
        made = _Lora.apply(few, routing.anchor, linear, parts)
        blank = made.new_zeros(len(tokens), made.shape[1])
        made = blank.index_copy(0, routing.needed, made)
    else:
        made = _Lora.apply(tokens, routing.anchor, linear, parts)
    return made.view(*x.shape[:-1], -1)


class _Lora(torch.autograd.Function):
    """anchor: empty; it makes autograd come by even where no input needs a gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        anchor: torch.Tensor,
        linear: Linear,
        parts: list[tuple[Segment, Factors]],
    ) -> torch.Tensor:
        y = torch.nn.functional.linear(x, linear.weight, linear.bias)
        middles: list[torch.Tensor] = []
        for segment, own in parts:
            middle = own.inputs(x, segment) @ own.a.T
            y[segment.start : segment.stop].addmm_(middle, own.b.T, alpha=own.scale)
            middles.append(middle)
        ctx.save_for_backward(x, *middles)
        ctx.linear, ctx.parts = linear, parts
        return y

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        (dy,) = grads
        x, *middles = ctx.saved_tensors
        dx = dy @ ctx.linear.weight if ctx.needs_input_grad[0] else None
        for (segment, own), middle in zip(ctx.parts, middles, strict=True):
            part = dy[segment.start : segment.stop]
            back = part @ own.b
            own.grad_b.add_((middle.T @ part).T, alpha=own.scale)
            own.grad_a.add_(back.T @ own.inputs(x, segment), alpha=own.scale)
            if dx is None:
                continue
            if own.drop is None:
                dx[segment.start : segment.stop].addmm_(back, own.a, alpha=own.scale)
            else:
                through = (back @ own.a) * own.drop(segment, x.shape[1]).to(x)
                dx[segment.start : segment.stop].add_(through, alpha=own.scale)
        return dx, None, None, None
