"""Where a base's weights lie in `foundation.ptd`, for whoever reads them back.

Lowering names a constant as it likes, so each one is found again by its content: what is stored of
a parameter is known before. What lowering rewrote is not listed; a reader says what is missing.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any, cast

import torch
from torch import nn

from export.executorch.data_file import read_data_file
from protos.shipped_weights import StoredWeight


def weight_digests(model: nn.Module) -> list[StoredWeight]:
    """Every parameter of a quantized model; key and scales are the sha256 of what will be stored.

    They are taken before lowering, which uses the model up; no weight is kept.
    """
    return [_digests(name, parameter) for name, parameter in model.named_parameters()]


def locate(digests: list[StoredWeight], foundation: bytes) -> list[StoredWeight]:
    """The parameters that are in a data file, with their keys in it."""
    keys = {_sha256(data): key for key, data in read_data_file(foundation).items()}
    return [
        dataclasses.replace(weight, key=keys[weight.key], scales=keys.get(weight.scales, ""))
        for weight in digests
        if weight.key in keys and (not weight.scales or weight.scales in keys)
    ]


def _digests(name: str, parameter: torch.Tensor) -> StoredWeight:
    shape = tuple(parameter.shape)
    if not hasattr(parameter, "qdata"):
        return StoredWeight(name, shape, "float", _sha256(_bytes(parameter)))
    quantized = cast("Any", parameter)
    scales = _sha256(_bytes(quantized.scale))
    if quantized.target_dtype == torch.int8:
        return StoredWeight(name, shape, "int8", _sha256(_bytes(quantized.qdata)), scales)
    halves = (quantized.qdata + 8).to(torch.uint8).flatten()
    packed = halves[0::2] | halves[1::2] << 4
    return StoredWeight(name, shape, "int4", _sha256(_bytes(packed)), scales)


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
