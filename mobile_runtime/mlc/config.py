"""What `mlc-chat-config.json` says about the model: the part that decides its library.

In: the parsed file. Out: `ModelConfig`. Two users of one base differ in weights only, so nothing
here names a user; `LoraRanks` says which projections an adapter adds to, never what it adds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from protos.errors import UnsupportedError

FAMILIES = ("llama", "qwen2", "qwen3")
QUANTIZATIONS = ("q0f32", "q0f16", "q4f32_1", "q4f16_1")
_ROPE_KEYS = ("position_embedding_base", "rope_theta")
_LLAMA3_KEYS = (
    "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings",
)  # fmt: skip

LoraRanks = Mapping[str, int]
"""Projection ("model.layers.0.self_attn.o_proj") to rows of its `lora_a`; empty: no adapter."""


@dataclass(frozen=True)
class ModelConfig:
    """A decoder of one of the families, at one quantization.

    context_length: the most tokens of a conversation; chunk: the most that are read at once.
    rope_llama3: `rope_scaling` of Llama 3 as (name, value) pairs, empty without.
    """

    family: str
    quantization: str
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    norm_eps: float
    rope_theta: float
    rope_llama3: tuple[tuple[str, float], ...]
    tied: bool
    attention_bias: bool
    context_length: int
    chunk: int

    @property
    def quantized(self) -> bool:
        """Whether projections and embeddings are 4-bit words with a scale for every 32."""
        return self.quantization.startswith("q4")

    @property
    def stored_dtype(self) -> str:
        """How floats stand on disk: `float16` or `float32`. (The engine computes in float32.)"""
        return "float16" if "f16" in self.quantization else "float32"

    @property
    def fused_qkv(self) -> str:
        """What MLC calls the projection that makes queries, keys and values."""
        return "qkv_proj" if self.family == "llama" else "c_attn"

    @property
    def qkv_bias(self) -> bool:
        """Qwen2 always has it; in Qwen3 the config says; MLC's Llama has none."""
        return self.family == "qwen2" or (self.family == "qwen3" and self.attention_bias)

    @property
    def output_bias(self) -> bool:
        return self.family == "qwen3" and self.attention_bias

    @property
    def qk_norm(self) -> bool:
        """Whether each head's queries and keys are normalized before they are rotated."""
        return self.family == "qwen3"


def parse_config(chat: Mapping[str, Any]) -> ModelConfig:
    """The config that a `mlc-chat-config.json` holds.

    Raises:
        UnsupportedError: another family, quantization or rope scaling than the runtime has.
        KeyError, TypeError, ValueError: it is malformed.
    """
    family, quantization = str(chat["model_type"]), str(chat["quantization"])
    if family not in FAMILIES:
        raise UnsupportedError(f"model_type is {family!r}, this runtime has {', '.join(FAMILIES)}")
    if quantization not in QUANTIZATIONS:
        raise UnsupportedError(
            f"quantization is {quantization!r}, this runtime has {', '.join(QUANTIZATIONS)}"
        )
    raw = chat["model_config"]
    heads, hidden = int(raw["num_attention_heads"]), int(raw["hidden_size"])
    config = ModelConfig(
        family=family,
        quantization=quantization,
        hidden_size=hidden,
        intermediate_size=int(raw["intermediate_size"]),
        layers=int(raw["num_hidden_layers"]),
        heads=heads,
        kv_heads=int(raw.get("num_key_value_heads") or heads),
        head_dim=int(raw.get("head_dim") or hidden // heads),
        vocab_size=int(raw["vocab_size"]),
        norm_eps=float(raw["rms_norm_eps"]),
        rope_theta=_rope_theta(raw),
        rope_llama3=_rope_llama3(raw.get("rope_scaling")),
        tied=bool(raw["tie_word_embeddings"]),
        attention_bias=bool(raw.get("attention_bias", False)),
        context_length=int(raw["context_window_size"]),
        chunk=min(int(raw["prefill_chunk_size"]), int(raw["context_window_size"])),
    )
    _check(config)
    return config


def _rope_theta(raw: Mapping[str, Any]) -> float:
    """MLC's Llama reads one name, its Qwen the other; without either both would guess 10000."""
    values = {float(raw[key]) for key in _ROPE_KEYS if raw.get(key)}
    if len(values) != 1:
        raise ValueError(f"{' or '.join(_ROPE_KEYS)} must be given, and say one thing")
    return values.pop()


def _rope_llama3(raw: Mapping[str, Any] | None) -> tuple[tuple[str, float], ...]:
    if not raw:
        return ()
    if raw.get("rope_type") != "llama3":
        raise UnsupportedError(f"rope_scaling is {raw.get('rope_type')!r}, this runtime has llama3")
    return tuple((key, float(raw[key])) for key in _LLAMA3_KEYS)


def _check(config: ModelConfig) -> None:
    numbers = {name: value for name, value in vars(config).items() if type(value) in (int, float)}
    if wrong := [f"{name} = {value}" for name, value in numbers.items() if value <= 0]:
        raise ValueError(f"{', '.join(wrong)}: must be positive")
    if config.heads % config.kv_heads:
        raise ValueError(f"{config.heads} heads cannot share {config.kv_heads} key-value heads")
    if config.head_dim % 2:
        raise ValueError(f"head_dim is {config.head_dim}: rotation needs an even number")
    if config.attention_bias and config.family == "llama":
        raise UnsupportedError("attention_bias is true, but MLC's Llama has no bias")
    if config.rope_llama3 and config.family != "llama":
        raise UnsupportedError(f"rope_scaling is given, but MLC's {config.family} ignores it")
