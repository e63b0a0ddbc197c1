"""LoRA as parameters in mlc_llm's own models: y = Wx + B(Ax), for every family that we export.

Run in place of `python -m mlc_llm`, in the environment of mlc_llm; it needs nothing of Pocketune:

    python lora_model.py compile MODEL_DIR --device android --output model.tar

It registers `llama_lora`, `qwen2_lora` and `qwen3_lora`, then hands over to mlc_llm. Such a model
is the family's own with A and B beside its linear layers, so mlc_llm's engine loads them by name
like any weight: one library and one set of base shards for all users, a small shard for each.
`lora_ranks` of the model's config tells which layers have them, and how many rows A has there.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping
from typing import Any

FAMILIES = ("llama", "qwen2", "qwen3")
_LINEARS = (
    ("self_attn", "qkv_proj"), ("self_attn", "c_attn"), ("self_attn", "o_proj"),
    ("mlp", "gate_up_proj"), ("mlp", "down_proj"),
)  # fmt: skip


def attach(model: Any, ranks: Mapping[str, int], dtype: str) -> int:
    """Give the linear layers that `ranks` names their A [rows, in] and B [out, rows], in place.

    Returns how many layers have them now.

    Raises:
        ValueError: `ranks` names a layer that the model does not have.
    """
    missing, attached = set(ranks), 0
    for layer in model.model.layers:
        for block, name in _LINEARS:
            linear = getattr(getattr(layer, block), name, None)
            if linear is not None and name in ranks:
                _attach(linear, ranks[name], dtype)
                attached += 1
                missing.discard(name)
    if missing:
        raise ValueError(f"lora_ranks names {sorted(missing)}, which this model does not have")
    return attached


def _attach(linear: Any, rows: int, dtype: str) -> None:
    from tvm.relax.frontend import nn

    linear.lora_a = nn.Parameter((rows, linear.in_features), dtype)
    linear.lora_b = nn.Parameter((linear.out_features, rows), dtype)
    linear.__class__ = _with_lora(type(linear))


def _with_lora(kind: type[Any]) -> type[Any]:
    from tvm.relax.frontend.nn import op

    class WithLora(kind):
        """The same layer, and its low-rank change."""

        def forward(self, x: Any) -> Any:
            down = op.matmul(x, op.permute_dims(self.lora_a))
            return super().forward(x) + op.matmul(down, op.permute_dims(self.lora_b))

    return WithLora


def register() -> None:
    """Add the families' LoRA models to mlc_llm's registry."""
    from mlc_llm.model import MODELS  # pyright: ignore[reportMissingImports]

    for family in FAMILIES:
        base = MODELS[family]
        config = dataclasses.make_dataclass(
            f"{base.config.__name__}WithLora",
            [("lora_ranks", dict, dataclasses.field(default_factory=dict))],
            bases=(base.config,),
        )
        kinds = {k: _quantized(make) for k, make in base.quantize.items()
                 if k in ("no-quant", "group-quant")}  # fmt: skip
        MODELS[f"{family}_lora"] = dataclasses.replace(
            base, name=f"{family}_lora", config=config, quantize=kinds
        )


def _quantized(make: Callable[[Any, Any], tuple[Any, Any]]) -> Callable[[Any, Any], Any]:
    def with_lora(config: Any, quantization: Any) -> tuple[Any, Any]:
        model, mapping = make(config, quantization)
        attach(model, config.lora_ranks, quantization.model_dtype)
        return model, mapping

    return with_lora


if __name__ == "__main__":
    register()
    from mlc_llm.__main__ import main  # pyright: ignore[reportMissingImports]

    sys.exit(main())
