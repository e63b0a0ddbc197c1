"""Attention of one new token over all before it, as a language model writes on a CPU.

In: what transformers' `AttentionInterface` gives. Out: what it wants. PyTorch's fused kernel is
made for many queries; for one, two plain products take a fraction of its time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "pocketune_decoding"


def decode_fast(model: PreTrainedModel) -> None:
    """Let a model that uses PyTorch's fused kernel on a CPU use `decoding_attention`."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    config: Any = model.config
    if config._attn_implementation != "sdpa" or model.device.type != "cpu":
        return
    AttentionInterface.register(NAME, decoding_attention)
    AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    model.set_attn_implementation(NAME)


def decoding_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **given: Any,
) -> tuple[torch.Tensor, None]:
    """softmax(scaling · q Kᵀ) V; of more tokens than one by the fused kernel.

    query: `[batch, heads, 1, head_dim]`; key, value: `[batch, kv heads, tokens, head_dim]`;
    attention_mask: `[batch, 1, 1, tokens]`, what is seen. Returns `[batch, 1, heads, head_dim]`.
    """
    if query.shape[2] > 1:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **given
        )
    batch, heads, _, width = query.shape
    shared = key.shape[1]
    grouped = query.view(batch, shared, heads // shared, width)
    scores = (grouped @ key.transpose(2, 3)).float() * (width**-0.5 if scaling is None else scaling)
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, float("-inf"))
    attended = scores.softmax(-1).to(value.dtype) @ value
    return attended.view(batch, 1, heads, width), None
