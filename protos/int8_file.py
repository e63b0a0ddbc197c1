"""Adapters on the wire: an ExecuTorch data file (`.ptd`) with its float32 numbers as bytes.

In: a `.ptd` of float32 tensors that `rounded` has made fit. Out: `.ptd8`, 0.26 of the size; and
back, which any device does in a few lines. What the kernels get is float32.

    8 bytes   b"PTD8\\0\\0\\0\\1"
    8 bytes   length of the head, little-endian
    8 bytes   count of numbers after the head, little-endian
    head      the `.ptd` up to its first tensor's bytes
    scales    for every 64 numbers, the last may be fewer, a bfloat16, little-endian
    numbers   for every number a signed byte; byte x scale of its 64 is the number, exactly

Every tensor begins at a multiple of 64 numbers, so no two tensors share a scale.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK = 64
"""Numbers that share a scale."""
MAGIC = b"PTD8\0\0\0\1"
_START = struct.Struct("<8sQQ")
START_BYTES = _START.size
_PTD_HEADER_AT, _PTD_HEADER = 8, struct.Struct("<4sIQQQQ")
_MOST = 127
_LEAST = 0x0080
"""The least bfloat16 above zero that has all of its digits, 2^-126."""

Floats = NDArray[np.float32]


def rounded(array: Floats) -> Floats:
    """The array as it comes back: each 64 numbers, in the order of memory, rounded to 255 steps
    between plus and minus the largest of them; to zeros where a step is below 2^-126, the least
    number that bfloat16 holds in full. Rounding again changes nothing.
    """
    return _floats(*_quantized(np.ravel(array))).reshape(array.shape)


def pack(ptd: bytes) -> bytes:
    """The wire form of a `.ptd`; its tensors must come from `rounded`.

    Raises:
        ValueError: it is no `.ptd`, or a number in it would change.
    """
    magic, _, _, _, head_bytes, _ = _PTD_HEADER.unpack_from(ptd, _PTD_HEADER_AT)
    if magic != b"FH01" or (len(ptd) - head_bytes) % 4:
        raise ValueError("not a data file of float32 tensors")
    numbers = np.frombuffer(ptd, "<f4", offset=head_bytes)
    scales, steps = _quantized(numbers)
    if not np.array_equal(_floats(scales, steps), numbers):
        raise ValueError(f"{BLOCK} numbers in it are no bytes with one scale")
    start = _START.pack(MAGIC, head_bytes, len(numbers))
    return start + ptd[:head_bytes] + scales.tobytes() + steps.tobytes()


def unpack(data: bytes) -> tuple[bytes, int]:
    """The `.ptd` of a wire form, and the length of its head.

    Raises:
        ValueError: it is truncated or no such file.
    """
    if len(data) < START_BYTES:
        raise ValueError("shorter than its first line")
    magic, head_bytes, count = _START.unpack_from(data)
    scales_at = START_BYTES + head_bytes
    if magic != MAGIC or len(data) != scales_at + scales_bytes(count) + count:
        raise ValueError("not a file of numbers as bytes")
    numbers = floats(data[scales_at : len(data) - count], data[len(data) - count :])
    return data[START_BYTES:scales_at] + numbers.tobytes(), head_bytes


def scales_bytes(count: int) -> int:
    """How many bytes the scales of `count` numbers take."""
    return 2 * -(-count // BLOCK)


def floats(scales: bytes, steps: bytes) -> Floats:
    """The numbers of whole blocks, of which the last may be shorter."""
    return _floats(np.frombuffer(scales, "<u2"), np.frombuffer(steps, "<i1"))


def _quantized(numbers: Floats) -> tuple[NDArray[np.uint16], NDArray[np.int8]]:
    blocks = np.zeros((-(-len(numbers) // BLOCK), BLOCK), np.float32)
    blocks.reshape(-1)[: len(numbers)] = numbers
    scales = _bfloat16(np.abs(blocks).max(1, initial=0.0) / np.float32(_MOST))
    scales[scales < _LEAST] = 0
    wide = _widened(scales)[:, None]
    with np.errstate(over="ignore"):
        steps = np.divide(blocks, wide, out=np.zeros_like(blocks), where=wide > 0)
    steps = np.clip(np.rint(steps), -_MOST, _MOST).astype("<i1")
    return scales, steps.reshape(-1)[: len(numbers)]


def _floats(scales: NDArray[np.uint16], steps: NDArray[np.int8]) -> Floats:
    wide = np.repeat(_widened(scales), BLOCK)[: len(steps)]
    return (wide * steps).astype("<f4")


def _bfloat16(numbers: Floats) -> NDArray[np.uint16]:
    """The nearest: the upper half of a float32, rounded to even."""
    bits = numbers.astype("<f4").view("<u4")
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


def _widened(scales: NDArray[Any]) -> Floats:
    return (scales.astype("<u4") << 16).view("<f4")
