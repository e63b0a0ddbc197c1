"""Adapters on the wire: an ExecuTorch data file (`.ptd`) with its float32 numbers as float16.

In: a `.ptd` of float32 tensors. Out: `.ptd16`, half the size; and back, which any device does in a
few lines: write the head as it is, then every half as a float. What the kernels get is float32.

    8 bytes   b"PTD16\\0\\0\\1"
    8 bytes   length of the head, little-endian
    head      the `.ptd` up to its first tensor's bytes
    rest      everything after it, each little-endian float32 as a little-endian float16
"""

from __future__ import annotations

import struct

import numpy as np

MAGIC = b"PTD16\0\0\1"
_START = struct.Struct("<8sQ")
START_BYTES = _START.size
_PTD_HEADER_AT, _PTD_HEADER = 8, struct.Struct("<4sIQQQQ")


def pack(ptd: bytes) -> bytes:
    """The wire form of a `.ptd`; its numbers must be values of float16 already.

    Raises:
        ValueError: it is no `.ptd`, or a number in it is no float16.
    """
    magic, _, _, _, head_bytes, _ = _PTD_HEADER.unpack_from(ptd, _PTD_HEADER_AT)
    if magic != b"FH01" or (len(ptd) - head_bytes) % 4:
        raise ValueError("not a data file of float32 tensors")
    numbers = np.frombuffer(ptd, "<f4", offset=head_bytes)
    with np.errstate(over="ignore"):
        halves = numbers.astype("<f2")
    if not np.array_equal(halves.astype("<f4"), numbers):
        raise ValueError("a number in it is no float16")
    return _START.pack(MAGIC, head_bytes) + ptd[:head_bytes] + halves.tobytes()


def unpack(data: bytes) -> tuple[bytes, int]:
    """The `.ptd` of a wire form, and the length of its head.

    Raises:
        ValueError: it is truncated or no such file.
    """
    if len(data) < START_BYTES:
        raise ValueError("shorter than its first line")
    magic, head_bytes = _START.unpack_from(data)
    body = len(data) - START_BYTES - head_bytes
    if magic != MAGIC or body < 0 or body % 2:
        raise ValueError("not a file of half-precision tensors")
    numbers = np.frombuffer(data, "<f2", offset=START_BYTES + head_bytes).astype("<f4")
    return data[START_BYTES : START_BYTES + head_bytes] + numbers.tobytes(), head_bytes
