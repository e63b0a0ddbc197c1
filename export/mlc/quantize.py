"""The weights of an MLC recipe in an eager model: what the library computes with, in float32."""

from __future__ import annotations

import torch
from torch import nn

from export.mlc.parameters import is_quantized, model_dtype
from export.recipes import Recipe
from protos.group_quantization import dequantize
from protos.group_quantization import quantize as quantize_groups


def quantize(model: nn.Module, recipe: Recipe) -> None:
    """Store and read back every parameter, in place; a tied head stays tied to its embedding.

    Groups run along the inputs of a row, so a fused projection holds the same groups as its parts.
    """
    tables = (nn.Linear, nn.Embedding)
    matrices = {id(m.weight) for m in model.modules() if isinstance(m, tables)}
    dtype = model_dtype(recipe)
    with torch.no_grad():
        for parameter in model.parameters():
            array = parameter.numpy()
            if is_quantized(recipe) and id(parameter) in matrices:
                words, scales = quantize_groups(array, dtype)
                parameter.copy_(torch.from_numpy(dequantize(words, scales, array.shape[1])))
            else:
                parameter.copy_(torch.from_numpy(array.astype(dtype).astype("float32")))
