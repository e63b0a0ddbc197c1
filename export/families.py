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
_LONGROPE = ("Phi3ForCausalLM",)
"""Those with longrope, up to the length beyond which it changes: `BaseModel.max_context`."""


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
        for rope in (rope["rope_type"] for rope in base.ropes)
        if rope == "dynamic" or (rope == "longrope" and base.architecture not in _LONGROPE)
    ]
    if config.get("quantization_config"):
        missing.append("weights that are quantized already; export the float model")
    if missing:
        raise UnsupportedError(f"{base.directory}: cannot be exported: {'; '.join(missing)}")


def choose_context(base: BaseModel, recipe: Recipe, wanted: int | None) -> int:
    """Positions that the program's KV cache holds: `wanted`, else the recipe's, or the model's if
    it has fewer.

    Raises:
        UnsupportedError: more than one cache can hold. InputError: too few for the goldens.
    """
    chosen = min(base.max_context, recipe.context_length) if wanted is None else wanted
    if chosen > base.max_context:
        why = ""
        if base.max_context < base.max_positions:
            why = (
                f" (of {base.max_positions}) up to which its longrope has one set of factors; "
                "beyond them the keys in the KV cache would be wrong"
            )
        raise UnsupportedError(
            f"context length {chosen} is more than the {base.max_context} positions of {base.name}"
            f"{why}"
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
