"""Recipes: how a model is lowered, and what parity asks of the result. Data, no code.

A recipe's name is backend-variant. Its thresholds go into every golden made with it, so that a
runtime needs no recipe to judge. They are compared with the numbers of `pocketune parity`:

    lowering_max_abs        largest |logit difference| to the eager model of the same weights
    lowering_top1           share of positions with the same most likely token
    lowering_kl_mean        nats; with `lowering_noise_factor` the larger of this and factor x floor
    lowering_noise_factor   how many times the golden's noise floor the mean KL may reach
    effect_cosine           direction of (adapted - base) logits, device against PEFT
    effect_norm_low, _high  length of the same vectors, device over PEFT
    quantization_kl_mean    nats between quantized and float; generous, it informs about quality
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from protos.errors import InputError, UnsupportedError

_EFFECT_NORM = {"effect_norm_low": 0.8, "effect_norm_high": 1.25}
_FLOAT32_LIMITS = {
    "lowering_max_abs": 1e-4, "lowering_top1": 1.0, "lowering_kl_mean": 1e-3, **_EFFECT_NORM,
}  # fmt: skip
_FLOAT16_LIMITS = {**_FLOAT32_LIMITS, "lowering_max_abs": 3e-2, "lowering_top1": 0.99}
_DYNAMIC_LIMITS = {
    "lowering_top1": 0.99, "lowering_kl_mean": 1e-3, "lowering_noise_factor": 2.0,
    "effect_cosine": 0.9, "quantization_kl_mean": 0.5, **_EFFECT_NORM,
}  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """One way to lower a model.

    weights: what is made of the base's, for people. quantization: None for float32 weights, else
    the scheme's name. group_size: weights that share a scale, 0 for whole rows or without
    quantization. adapter_dtype: of adapters on the wire; ExecuTorch's kernels compute with them in
    float32. thresholds: see the module's docstring. adapter: whether one can be a file of its own.
    runs_here: whether the reference runtime runs the result; what it does not is lowered and never
    called sound. needs: what it takes beyond Pocketune. context_length: positions of the KV cache,
    if the model has as many and the export asks for no others.
    """

    name: str
    backend: str
    form: str
    weights: str
    quantization: str | None
    group_size: int
    adapter_dtype: Literal["float32", "float16", "int8"]
    thresholds: Mapping[str, float]
    notes: str
    adapter: Literal["separate or merged", "merged"] = "separate or merged"
    runs_here: bool = True
    needs: str = ""
    context_length: int = 2048

    @property
    def adapter_form(self) -> str:
        """How an adapter goes to a phone, for people."""
        apart = self.adapter != "merged"
        return f"{self.adapter}, {self.adapter_dtype} on the wire" if apart else self.adapter


_XNNPACK_FORM = "program and data files, for the CPU of Android and iOS"
_MLC_FORM = "weights and config, for MLC's apps on Android and iOS"


def _dynamic(variant: str, group_size: int, weights: str) -> Recipe:
    """A recipe whose activations are quantized at run time. group_size: 0 for int8 by rows."""
    return Recipe(
        name=f"executorch-xnnpack-{variant}",
        backend="executorch-xnnpack",
        form=_XNNPACK_FORM,
        weights=f"{weights}, int8 activations, int8 embedding",
        quantization=variant.partition("-")[0],
        group_size=group_size,
        adapter_dtype="int8",
        thresholds=_DYNAMIC_LIMITS,
        notes="LoRA computes in float32"
        + ("; bfloat16 scales, as XNNPACK rounds them" if group_size else ""),
    )


def _mlc(
    name: str, quantization: str | None, dtype: Literal["float32", "float16"], weights: str
) -> Recipe:
    """A recipe of MLC's, under MLC's own name. dtype: what a device computes in."""
    half, four_bits = dtype == "float16", name.startswith("q4")
    return Recipe(
        name=f"mlc-{name}",
        backend="mlc",
        form=_MLC_FORM,
        weights=weights,
        quantization=quantization,
        group_size=32 if four_bits else 0,
        adapter_dtype=dtype,
        thresholds={
            **(_FLOAT16_LIMITS if half else _FLOAT32_LIMITS),
            "effect_cosine": 0.9 if half or four_bits else 0.99,
            **({"quantization_kl_mean": 0.5} if four_bits else {}),
        },
        notes="limits of the float16 recipes leave room for devices that compute in float16"
        if half
        else "embedding and head are quantized too"
        if four_bits
        else "four bytes a weight, for tests of the way there",
        needs="MLC's tools to build its library, pocketune[mlc] to run here",
    )


RECIPES: Mapping[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="executorch-xnnpack-fp32",
            backend="executorch-xnnpack",
            form=_XNNPACK_FORM,
            weights="float32",
            quantization=None,
            group_size=0,
            adapter_dtype="float32",
            thresholds={**_FLOAT32_LIMITS, "effect_cosine": 0.99},
            notes="exact; tied embeddings are stored twice: once to look up, once to multiply",
        ),
        _dynamic("8da4w", 32, "int4 in groups of 32"),
        _dynamic("8da4w-g64", 64, "int4 in groups of 64"),
        _dynamic("8da4w-g128", 128, "int4 in groups of 128"),
        _dynamic("8da8w", 0, "int8 with a scale per row"),
        Recipe(
            name="executorch-coreml",
            backend="executorch-coreml",
            form="one program for Core ML, iOS 18 and later; one token a call",
            weights="float16",
            quantization="float16",
            group_size=0,
            adapter_dtype="float16",
            thresholds={**_FLOAT16_LIMITS, "effect_cosine": 0.9},
            notes="limits leave room for a device that computes in float16",
            adapter="merged",
            runs_here=False,
            needs="a Mac or iPhone to run",
        ),
        Recipe(
            name="executorch-vulkan",
            backend="executorch-vulkan",
            form="one program for GPUs of Android by Vulkan",
            weights="int4 in groups of 32, int8 activations, float32 embedding",
            quantization="8da4w",
            group_size=32,
            adapter_dtype="float32",
            thresholds=_DYNAMIC_LIMITS,
            notes="float32 scales; activations are float32 between layers",
            adapter="merged",
            runs_here=False,
            needs="a device with a Vulkan driver to run",
        ),
        _mlc("q0f32", None, "float32", "float32"),
        _mlc("q0f16", "q0f16", "float16", "float16"),
        _mlc("q4f32_1", "q4f32_1", "float32", "int4 in groups of 32, computes in float32"),
        _mlc("q4f16_1", "q4f16_1", "float16", "int4 in groups of 32, computes in float16"),
    )
}


NOT_OFFERED: Mapping[str, str] = {
    "qnn": "Qualcomm's AI Engine Direct SDK",
    "mlx": "Apple's MLX, on a Mac with Apple silicon",
    "mediatek": "MediaTek's NeuroPilot SDK",
    "samsung": "Samsung's Exynos AI LiteCore SDK",
    "openvino": "Intel's OpenVINO toolkit",
    "ethos": "Arm's Vela compiler",
    "executorch-xnnpack-bf16": "bfloat16 linear layers in ExecuTorch's XNNPACK backend; 1.4.1 has "
    "them computed by portable kernels, 240 times slower than float32",
}
"""Backends of ExecuTorch, or one recipe, that nothing here lowers to -> what it would need."""


def find_recipe(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        UnsupportedError: its backend cannot be had here; the message says what it needs.
        InputError: there is none; the message lists those that exist.
    """
    backend = name.removeprefix("executorch-").split("-")[0]
    if needs := NOT_OFFERED.get(name) or NOT_OFFERED.get(backend):
        raise UnsupportedError(
            f"recipe {name!r} is not offered, it needs {needs}; the recipes for "
            f"phones' CPUs are {', '.join(n for n in RECIPES if n.startswith('executorch'))}"
        )
    if name not in RECIPES:
        raise InputError(f"recipe {name!r} is unknown; the known ones are {', '.join(RECIPES)}")
    return RECIPES[name]
