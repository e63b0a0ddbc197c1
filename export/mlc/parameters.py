"""Which parameters an MLC library asks for, and how they come from a Hugging Face state dict.

MLC keeps Hugging Face's names but for two: the rows of q, k and v stand in one fused projection
(`qkv_proj`; Qwen's is `c_attn`), and those of gate and up in `gate_up_proj`. A group of parameters
goes to shards of its own, so that a user whose adapter changes one group shares all the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from export.recipes import Recipe
from protos import group_quantization
from protos.base_model import BaseModel
from protos.errors import UnsupportedError
from protos.shipped_weights import StoredWeight

GROUPS = ("embed", "qkv", "o", "gate_up", "down", "norm", "head")

Array = NDArray[Any]
State = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Family:
    """How MLC calls a Hugging Face architecture. qkv: its fused projection. qkv_bias and o_bias:
    whether MLC's model has them; "config" if its `attention_bias` says so.
    """

    model_type: str
    qkv: str
    qkv_bias: bool | str
    o_bias: bool | str
    head_norms: bool


FAMILIES: Mapping[str, Family] = {
    "LlamaForCausalLM": Family("llama", "qkv_proj", False, False, head_norms=False),
    "Qwen2ForCausalLM": Family("qwen2", "c_attn", True, False, head_norms=False),
    "Qwen3ForCausalLM": Family("qwen3", "c_attn", "config", "config", head_norms=True),
}


@dataclass(frozen=True)
class Fused:
    """A linear layer of MLC's. name: within its decoder layer. parts: Hugging Face's, in order."""

    name: str
    group: str
    parts: tuple[str, ...]


@dataclass(frozen=True)
class Parameter:
    """One parameter of the library. parts: the Hugging Face tensors whose rows it stacks."""

    name: str
    group: str
    parts: tuple[str, ...]

    @property
    def is_matrix(self) -> bool:
        """Whether a quantized recipe quantizes it: linear weights and the embedding."""
        return self.name.endswith(".weight") and "norm" not in self.name


def fused_linears(family: Family) -> tuple[Fused, ...]:
    """The linear layers of a decoder layer."""
    attention = tuple(f"self_attn.{x}_proj" for x in "qkv")
    return (
        Fused(f"self_attn.{family.qkv}", "qkv", attention),
        Fused("self_attn.o_proj", "o", ("self_attn.o_proj",)),
        Fused("mlp.gate_up_proj", "gate_up", ("mlp.gate_proj", "mlp.up_proj")),
        Fused("mlp.down_proj", "down", ("mlp.down_proj",)),
    )


def parameters(base: BaseModel) -> list[Parameter]:
    """All parameters of the library of this base, in the order in which they are written."""
    config, family = base.config, FAMILIES[base.architecture]
    found = [_single("model.embed_tokens.weight", "embed")]
    for layer in range(int(config["num_hidden_layers"])):
        found += _layer_parameters(f"model.layers.{layer}.", family, config)
    found.append(_single("model.norm.weight", "norm"))
    if not config.get("tie_word_embeddings", False):
        found.append(_single("lm_head.weight", "head"))
    return sorted(found, key=lambda parameter: GROUPS.index(parameter.group))


def _layer_parameters(
    prefix: str, family: Family, config: Mapping[str, Any]
) -> Iterator[Parameter]:
    biased = {"qkv": family.qkv_bias, "o": family.o_bias}
    for fused in fused_linears(family):
        kinds = ["weight"]
        bias = biased.get(fused.group, False)
        if bias is True or (bias == "config" and config.get("attention_bias", False)):
            kinds.append("bias")
        for kind in kinds:
            parts = tuple(f"{prefix}{part}.{kind}" for part in fused.parts)
            yield Parameter(f"{prefix}{fused.name}.{kind}", fused.group, parts)
    norms = ["input_layernorm", "post_attention_layernorm"]
    norms += ["self_attn.q_norm", "self_attn.k_norm"] if family.head_norms else []
    for norm in norms:
        yield _single(f"{prefix}{norm}.weight", "norm")


def _single(name: str, group: str) -> Parameter:
    return Parameter(name, group, (name,))


def check_state(base: BaseModel, state: State) -> None:
    """Make sure that the library's parameters are the model's, all of them and nothing else.

    Raises:
        UnsupportedError: names what MLC's model of this family has no place for, or misses.
    """
    wanted = {part for parameter in parameters(base) for part in parameter.parts}
    tied = {"lm_head.weight"} if base.config.get("tie_word_embeddings", False) else set[str]()
    homeless, missing = sorted(set(state) - wanted - tied), sorted(wanted - set(state))
    if homeless or missing:
        said = [f"no place for {name}" for name in homeless[:3]]
        said += [f"{name} is missing" for name in missing[:3]]
        raise UnsupportedError(
            f"{base.directory}: does not fit MLC's {FAMILIES[base.architecture].model_type} model: "
            f"{'; '.join(said)}"
        )


def encoded(
    chosen: Iterable[Parameter], state: State, recipe: Recipe
) -> Iterator[tuple[str, Array]]:
    """Names and arrays as the recipe stores them; one parameter is made at a time."""
    for parameter in chosen:
        weight = stacked(parameter, state)
        if is_quantized(recipe) and parameter.is_matrix:
            words, scales = group_quantization.quantize(weight, model_dtype(recipe))
            stem = parameter.name.removesuffix("weight")
            yield f"{stem}q_weight", words
            yield f"{stem}q_scale", scales
        else:
            yield parameter.name, weight.astype(model_dtype(recipe))


def stored_weights(base: BaseModel, state: State, recipe: Recipe) -> Iterator[StoredWeight]:
    """Where each Hugging Face tensor lies in what `encoded` gives of all parameters."""
    for parameter in parameters(base):
        first_row = 0
        stem = parameter.name.removesuffix("weight")
        for name in parameter.parts:
            shape = tuple(state[name].shape)
            if is_quantized(recipe) and parameter.is_matrix:
                key, scales = f"{stem}q_weight", f"{stem}q_scale"
                yield StoredWeight(name, shape, "q4", key, scales, first_row)
            else:
                yield StoredWeight(name, shape, "float", parameter.name, "", first_row)
            first_row += shape[0]


def stacked(parameter: Parameter, state: State) -> NDArray[np.float32]:
    """The parameter in float32: its parts, one below the other."""
    return np.concatenate([state[part].detach().float().numpy() for part in parameter.parts])


def decoded(
    parameter: Parameter, tensors: Mapping[str, Array], columns: int
) -> NDArray[np.float32]:
    """A matrix [N, columns] as a device sees it that computes in float32, from what is stored."""
    stem = parameter.name.removesuffix("weight")
    if f"{stem}q_weight" not in tensors:
        return tensors[parameter.name].astype(np.float32)
    words, scales = tensors[f"{stem}q_weight"], tensors[f"{stem}q_scale"]
    return group_quantization.dequantize(words, scales, columns)


def mlc_name(recipe: Recipe) -> str:
    """MLC's own name of the recipe's quantization: `q4f16_1` of `mlc-q4f16_1`."""
    return recipe.name.removeprefix("mlc-")


def is_quantized(recipe: Recipe) -> bool:
    """Whether matrices are stored in groups of 4 bits."""
    return mlc_name(recipe).startswith("q4")


def model_dtype(recipe: Recipe) -> type[np.float16] | type[np.float32]:
    """Type of scales, norms and biases, and of whole weights where nothing is quantized."""
    return np.float16 if "f16" in mlc_name(recipe) else np.float32
