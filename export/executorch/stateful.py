"""A Hugging Face decoder in plain operators, for backends that know none of ExecuTorch's own.

    forward(tokens int64 [1, 1], input_pos int64 [1]) -> logits float32 [1, V]

One token a call, at any position: Core ML keeps a cache only in a program of fixed shapes. The KV
cache is a buffer that the program changes; attention is transformers' own over all of it, with what
lies after the token hidden.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from export.executorch.wrapper import CacheOfContext, pin_longrope

_HIDDEN = -1e4
"""Added to a hidden score: within float16, and exp of it is zero."""


class StatefulModule(CacheOfContext):
    """The model, which it takes over, and the cache that its attention calls in place of one of
    transformers: for each layer keys and values, [1, kv_heads, context, head_dim].
    """

    def __init__(self, model: nn.Module, context_length: int) -> None:
        config = cast("Any", model).config
        super().__init__(config, context_length)
        cast("Any", model).set_attn_implementation("sdpa")
        pin_longrope(model)
        shape = (1, config.num_key_value_heads, context_length, self.width)
        for layer in range(config.num_hidden_layers):
            self.register_buffer(f"k_cache_{layer}", torch.zeros(shape))
            self.register_buffer(f"v_cache_{layer}", torch.zeros(shape))
        self.model = model
        self.position: Any = 0

    def forward(self, tokens: torch.Tensor, input_pos: torch.Tensor) -> torch.Tensor:
        self.position = input_pos
        seen = torch.arange(self.context_length)[None, :] <= input_pos[:, None]
        output = self.model(
            input_ids=tokens,
            position_ids=input_pos[None],
            past_key_values=self,
            use_cache=True,
            attention_mask=torch.where(seen, 0.0, _HIDDEN)[None, None],
        )
        return output.logits[:, -1, :]

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write key and value, [1, kv_heads, 1, head_dim]; gives back the whole caches."""
        keys = cast("torch.Tensor", getattr(self, f"k_cache_{layer_idx}"))
        values = cast("torch.Tensor", getattr(self, f"v_cache_{layer_idx}"))
        keys[:, :, self.position] = key
        values[:, :, self.position] = value
        return keys, values
