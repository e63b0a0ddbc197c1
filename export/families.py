"""Which models the wrapper reproduces exactly; the others are refused by name.

A family is added when a test holds its lowered program against eager PyTorch.
"""

from __future__ import annotations

from typing import Any

from export.recipes import Recipe
from protos.base_model import BaseModel
from protos.errors import InputError, UnsupportedError

ARCHITECTURES = (
    "LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "SmolLM3ForCausalLM",
    "Gemma3ForCausalLM", "Phi3ForCausalLM",
)  # fmt: skip
_WINDOWED = frozenset(ARCHITECTURES) - {"LlamaForCausalLM"}
"""Those whose model code has sliding windows."""
MIN_CONTEXT = 64
"""A golden's continuation takes 32 positions, and a prompt has to fit before it."""
_LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")


def check_family(base: BaseModel) -> None:
    """Refuse what cannot be exported exactly.

    Raises:
        UnsupportedError: the message names everything that is missing.
    """
    config = base.config
    missing: list[str] = []
    if base.architecture not in ARCHITECTURES:
        missing.append(f"architecture {base.architecture} (known: {', '.join(ARCHITECTURES)})")
    if slides(config) and base.architecture not in _WINDOWED:
        missing.append("sliding window attention")
    if config.get("attn_logit_softcapping"):
        missing.append("soft caps on attention scores")
    if config.get("use_bidirectional_attention"):
        missing.append("attention to what comes later")
    missing += [
        f"rope type {rope!r}, which depends on the length of the text"
        for rope in _rope_types(config)
        if rope in _LENGTH_DEPENDENT_ROPE
    ]
    if config.get("quantization_config"):
        missing.append("weights that are quantized already; export the float model")
    if missing:
        raise UnsupportedError(f"{base.directory}: cannot be exported: {'; '.join(missing)}")


def choose_context(base: BaseModel, recipe: Recipe, wanted: int | None) -> int:
    """Positions that the program's KV cache holds: `wanted`, else the recipe's, or the model's if
    it has fewer.

    Raises:
        UnsupportedError: more than the model was made for. InputError: too few for the goldens.
    """
    chosen = min(base.max_context, recipe.context_length) if wanted is None else wanted
    if chosen > base.max_context:
        raise UnsupportedError(
            f"context length {chosen} is more than the {base.max_context} positions of {base.name}"
        )
    if chosen < MIN_CONTEXT:
        raise InputError(f"context length {chosen} is too short, at least {MIN_CONTEXT} is needed")
    return chosen


def slides(config: dict[str, Any]) -> bool:
    """Whether any layer sees a window only.

    Qwen's configs name a window that `use_sliding_window` leaves unused.
    """
    window = config.get("sliding_window")
    used = config.get("use_sliding_window", window is not None)
    return bool(window and used) or "sliding_attention" in (config.get("layer_types") or [])


def _rope_types(config: dict[str, Any]) -> list[str]:
    """In transformers 5 it is `rope_parameters`, also one for each type of layer; before it was
    `rope_scaling` with `type`.
    """
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    layered = [value for value in rope.values() if isinstance(value, dict)]
    named = [part.get("rope_type", part.get("type")) for part in layered or [rope]]
    return [name for name in named if name]
