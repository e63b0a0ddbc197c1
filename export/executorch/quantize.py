"""Weight quantization of a base model, in place, before LoRA layers are inserted.

8da4w: every linear layer int4 with one bfloat16 scale per group of `group_size` inputs, activations
int8 per token at run time; the embedding int8 with one scale per row. XNNPACK rounds the scales of
groups to bfloat16, so they are made in bfloat16: a layer then equals its eager form to 1e-6, else
to 5e-3. 8da8w: the same with int8 weights and one float32 scale per row.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from export.recipes import Recipe
from protos.errors import UnsupportedError

_AT_ONCE = 2**24
"""Numbers that are rounded at once."""
_TENSORS = ("qdata", "scale", "zero_point")


def quantize(model: nn.Module, recipe: Recipe) -> None:
    """Replace the weights by what the recipe ships; the eager model then computes with those.

    Raises:
        UnsupportedError: a layer's inputs are no multiple of the group, so it has no int4 form.
    """
    if recipe.quantization is None:
        return
    from torchao.quantization.granularity import PerAxis
    from torchao.quantization.quant_api import IntxWeightOnlyConfig

    quantize_linear(model, recipe.group_size)
    embedding = IntxWeightOnlyConfig(weight_dtype=torch.int8, granularity=PerAxis(0))
    _round_all(model, nn.Embedding, embedding)
    _let_go_of_files(model)


def _check_groups(model: nn.Module, group_size: int) -> None:
    wrong = [
        f"{name} has {module.in_features}"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.in_features % group_size
    ]
    if wrong:
        raise UnsupportedError(
            f"int4 needs inputs in multiples of {group_size}: {', '.join(wrong[:4])}"
            f"{f' and {len(wrong) - 4} more' if len(wrong) > 4 else ''}; use a recipe with smaller "
            "groups, or 8da8w or float32, which have none"
        )


def _untie(model: nn.Module) -> None:
    """Make the head a parameter of its own: it is quantized like a linear layer, not like the
    embedding. Neither is changed in place, so they read the same memory until then.
    """
    language_model = cast("Any", model)
    head, embedding = language_model.get_output_embeddings(), language_model.get_input_embeddings()
    if head.weight is embedding.weight:
        head.weight = nn.Parameter(embedding.weight.detach())


def quantize_linear(
    model: nn.Module, group_size: int, scale_dtype: torch.dtype = torch.bfloat16
) -> None:
    """The linear layers only. group_size: int4 in groups of that many inputs, with scales of that
    type; 0: int8 by rows. Raises as `quantize` does.
    """
    from torchao.quantization.granularity import PerAxis, PerGroup
    from torchao.quantization.quant_api import Int8DynamicActivationIntxWeightConfig

    if group_size:
        _check_groups(model, group_size)
    _untie(model)
    if group_size:
        linear = Int8DynamicActivationIntxWeightConfig(
            weight_dtype=torch.int4,  # pyright: ignore[reportAttributeAccessIssue]
            weight_granularity=PerGroup(group_size),
            weight_scale_dtype=scale_dtype,
        )
    else:
        linear = Int8DynamicActivationIntxWeightConfig(
            weight_dtype=torch.int8, weight_granularity=PerAxis(0)
        )
    _round_all(model, nn.Linear, linear)


def _round_all(model: nn.Module, kind: type[nn.Module], config: Any) -> None:
    for module in model.modules():
        if isinstance(module, kind):
            weight = _rounded(cast("torch.Tensor", module.weight), config)
            module.weight = nn.Parameter(weight, requires_grad=False)


def _rounded(weight: torch.Tensor, config: Any) -> torch.Tensor:
    """What torchao makes of a weight [out, in], some rows at a time: rows are rounded on their own,
    and it needs several times the memory of what it is given.
    """
    from torchao.quantization import IntxUnpackedToInt8Tensor
    from torchao.quantization.quant_api import quantize_

    parts: list[Any] = []
    for rows in weight.detach().split(max(1, _AT_ONCE // weight.shape[1])):
        carrier = nn.Linear(1, 1, bias=False)
        carrier.weight = nn.Parameter(rows)
        quantize_(carrier, config)
        parts.append(carrier.weight)
    tensors = (torch.cat([getattr(part, name) for part in parts]) for name in _TENSORS)
    first = parts[0]
    return IntxUnpackedToInt8Tensor(
        *tensors,
        target_dtype=first.target_dtype,
        block_size=first.block_size,
        dtype=first.dtype,
        activation_quantization=first.activation_quantization,
    )


def _let_go_of_files(model: nn.Module) -> None:
    """Copy what stayed float, norms and biases: each holds the whole file of weights in memory."""
    for parameter in model.parameters():
        if not hasattr(parameter, "qdata"):
            parameter.data = parameter.data.clone()
