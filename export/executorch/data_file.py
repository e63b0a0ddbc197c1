"""Data files (`.ptd`, ExecuTorch's FlatTensor): named byte buffers beside a program."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

ALIGNMENT = 256
"""Bytes: XNNPACK asks for 16, and 64 numbers that share a scale on the wire are of one tensor."""


def data_file(arrays: Mapping[str, NDArray[np.float32]]) -> bytes:
    """A `.ptd` of arrays under their keys, as XNNPACK reads constants: bytes without a layout."""
    from executorch.exir._serialize.data_serializer import DataEntry, DataPayload
    from executorch.extension.flat_tensor.serialize.serialize import FlatTensorSerializer

    payload = DataPayload(
        buffers=[np.ascontiguousarray(array).tobytes() for array in arrays.values()],
        named_data={
            key: DataEntry(buffer_index=index, alignment=ALIGNMENT, tensor_layout=None)
            for index, key in enumerate(arrays)
        },
    )
    return bytes(FlatTensorSerializer().serialize(payload))


def read_data_file(blob: bytes) -> dict[str, bytes]:
    """The buffers of a `.ptd` by key."""
    from executorch.exir._serialize._cord import Cord
    from executorch.extension.flat_tensor.serialize.serialize import FlatTensorSerializer

    payload = FlatTensorSerializer().deserialize(Cord(blob))
    return {key: payload.buffers[entry.buffer_index] for key, entry in payload.named_data.items()}
