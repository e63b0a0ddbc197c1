"""A Hugging Face decoder as the module that ExecuTorch's LLM runners call.

    forward(tokens int64 [1, S], input_pos int64 [1]) -> logits float32 [1, V] of the last token

with 1 <= S < context, and the KV cache kept inside between calls (a call at input_pos p overwrites
positions p..p+S-1 and attends to 0..p+S-1). Attention and cache are `llama::custom_sdpa` and
`llama::update_cache`, which the runtimes of ExecuTorch ship, in place of the model's own. A layer
with a sliding window gets a mask, unless the context is no longer than the window.
"""

from __future__ import annotations

import functools
import math
from typing import Any, cast

import torch
from torch import nn

_ATTENTION = "pocketune_kv_sdpa"
_HIDDEN = -1e30
"""Added to a hidden score. Finite: where a whole block of keys is hidden, infinity gives NaN."""


class CacheOfContext(nn.Module):
    """What transformers asks of a cache, answered for one that has room for the whole context.

    width: elements of a key or a value, in one head.
    """

    is_compileable = True

    def __init__(self, config: Any, context_length: int) -> None:
        super().__init__()
        heads = config.num_attention_heads
        self.width = getattr(config, "head_dim", None) or config.hidden_size // heads
        self.context_length = context_length
        self.is_sliding = [False] * config.num_hidden_layers
        self.layers: list[Any] = []

    def get_seq_length(self, *_: object, **__: object) -> int:
        """Zero: the wrapper gives positions, so the model must not count its own."""
        return 0

    def get_query_offset(self, *_: object, **__: object) -> int:
        return 0

    def get_mask_sizes(self, *_: object, **__: object) -> tuple[int, int]:
        return self.context_length, 0

    def get_max_cache_shape(self, *_: object) -> int:
        return self.context_length


class KvCache(CacheOfContext):
    """What the model's attention calls in place of a transformers cache.

    For each layer keys and values, [1, context, kv_heads, head_dim], float32. `start` is the
    position of the first new token; the wrapper calls `begin` with it before each call.
    """

    def __init__(self, config: Any, context_length: int) -> None:
        super().__init__(config, context_length)
        shape = (1, context_length, config.num_key_value_heads, self.width)
        self.start: Any = 0
        self._masks: dict[int, torch.Tensor] = {}
        for layer in range(config.num_hidden_layers):
            self.register_buffer(f"k_cache_{layer}", torch.zeros(shape), persistent=False)
            self.register_buffer(f"v_cache_{layer}", torch.zeros(shape), persistent=False)

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write key and value, [1, kv_heads, S, head_dim]; gives back the whole caches."""
        keys = cast("torch.Tensor", getattr(self, f"k_cache_{layer_idx}"))
        values = cast("torch.Tensor", getattr(self, f"v_cache_{layer_idx}"))
        torch.ops.llama.update_cache(key.transpose(1, 2), keys, self.start)
        torch.ops.llama.update_cache(value.transpose(1, 2), values, self.start)
        return keys, values

    def begin(self, start: Any) -> None:
        """A call starts at this position."""
        self.start, self._masks = start, {}

    def mask(self, window: int | None, count: int) -> torch.Tensor | None:
        """What to add to the scores of the next `count` positions, [count, context], so that each
        sees itself and the window - 1 positions before it; None: all before it.
        """
        if window is None or window >= self.context_length:
            return None
        if window not in self._masks:
            rows = torch.arange(count)[:, None] + self.start
            distance = rows - torch.arange(self.context_length)[None, :]
            seen = (distance >= 0) & (distance < window)
            self._masks[window] = torch.where(seen, 0.0, _HIDDEN)
        return self._masks[window]


class TanhGelu(nn.Module):
    """GELU by tanh (Hendrycks and Gimpel 2016, section 2), spelled out.

    XNNPACK's lowering drops the argument `approximate="tanh"` of `aten.gelu` and computes the other
    GELU, 5e-4 away, without an error.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = math.sqrt(2 / math.pi) * (x + 0.044715 * (x * x * x))
        return 0.5 * x * (1.0 + torch.tanh(inner))


class RunnerModule(nn.Module):
    """The model with its cache, in the calling convention of the module's docstring.

    It takes the model over: its attention is switched to the exported one for good.
    """

    def __init__(self, model: nn.Module, context_length: int) -> None:
        super().__init__()
        _register_attention()
        cast("Any", model).set_attn_implementation(_ATTENTION)
        _spell_out_gelu(model)
        pin_longrope(model)
        self.model = model
        self.cache = KvCache(model.config, context_length)
        self.context_length = context_length

    def forward(self, tokens: torch.Tensor, input_pos: torch.Tensor) -> torch.Tensor:
        start = cast("int", input_pos[0].item())
        count = tokens.shape[1]
        for known in (
            start >= 0,
            start + count <= self.context_length,
            start < self.context_length,
        ):
            torch._check(known)  # pyright: ignore[reportPrivateUsage] (its public place)
        self.cache.begin(start)
        output = self.model(
            input_ids=tokens,
            position_ids=(torch.arange(count) + input_pos).unsqueeze(0),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
            kv_cache=self.cache,
        )
        return output.logits[:, -1, :]


def pin_longrope(model: nn.Module) -> None:
    """Keep longrope's short factors, with which a model loads.

    transformers chooses between them and the long ones in every call, by its last position; no
    context is so long (`BaseModel.max_context`), and a traced choice would be part of the program.
    """
    for module in model.modules():
        if getattr(module, "rope_type", None) == "longrope":
            cast("Any", module).rope_type = "default"


def _spell_out_gelu(model: nn.Module) -> None:
    from transformers.activations import GELUTanh

    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, GELUTanh):
                setattr(module, name, TanhGelu())


@functools.cache
def _register_attention() -> None:
    """Make `llama::custom_sdpa` known to transformers, without transformers' masks."""
    from executorch.extension.llm.custom_ops import (
        custom_ops,  # noqa: F401  # pyright: ignore[reportUnusedImport] (registers the operators)
    )
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(_ATTENTION, _attention)
    AttentionMaskInterface.register(_ATTENTION, _no_mask)


def _attention(
    module: nn.Module,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    attention_mask: None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    *,
    kv_cache: KvCache,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """One query [1, heads, S, head_dim] against whole caches [1, context, kv_heads, head_dim]."""
    query = query.transpose(1, 2)
    mask = kv_cache.mask(sliding_window, query.shape[1])
    attended = torch.ops.llama.custom_sdpa(
        query, keys, values, kv_cache.start, mask, 0.0, mask is None, scaling
    )
    return attended, None


def _no_mask(*_: object, **__: object) -> None:
    return None
