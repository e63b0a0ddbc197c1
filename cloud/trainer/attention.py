"""Attention in a packed row: every sequence sees itself and nothing else.

In: queries, keys and values of a row, and the lengths of its sequences. Out: as transformers'
`AttentionInterface` wants it. A causal mask needs no tensor; a sliding window does, but only for
sequences that are longer than it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

NAME = "pocketune_packed"


def register() -> str:
    """Make `packed_attention` known to transformers; its name there."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, packed_attention)
    return NAME


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    lengths: Sequence[int],
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of each sequence in a row over itself.

    query: `[1, heads, tokens, head_dim]`; key, value: the same with fewer heads where they are
    shared. Returns `[1, tokens, heads, head_dim]`.
    """
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    sizes = list(lengths)
    parts = zip(query.split(sizes, 2), key.split(sizes, 2), value.split(sizes, 2), strict=True)
    shared = query.shape[1] != key.shape[1]
    out: list[torch.Tensor] = []
    for q, k, v in parts:
        mask = _window(q.shape[2], sliding_window, q.device)
        attended = scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=shared
        )
        out.append(attended.transpose(1, 2))
    return torch.cat(out, 1), None


def _window(length: int, window: int | None, device: torch.device) -> torch.Tensor | None:
    """Which keys a query sees, `[length, length]`: itself and the `window` - 1 before it."""
    import torch

    if window is None or length <= window:
        return None
    seen = torch.ones(length, length, dtype=torch.bool, device=device)
    return seen.tril().triu(1 - window)
