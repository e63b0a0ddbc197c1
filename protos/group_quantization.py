"""MLC's group quantization `q4f16_1` and `q4f32_1`: 4 bits a weight, a scale for every 32 of a row.

In: float weights [N, K]. Out: words and scales, and back. The arithmetic is MLC's own, step by step
in the scales' type, so that the bits are those of `mlc_llm convert_weight`:

    scale = max|w| / 7          of a group of 32 along K; a group of zeros has scale 0
    q     = clip(round(w / scale + 7), 0, 14)
    w     ≈ (q - 7) x scale

Eight q are packed into a 32-bit word, the first in its lowest four bits. A last group that is not
full is filled with zeros, whose q stand in the words and are never read.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

GROUP = 32
_PER_WORD = 8
_BITS = 4
_MAX = 7

Words = NDArray[np.uint32]
Floats = NDArray[np.floating[Any]]


def quantize(weight: Floats, dtype: type[np.float16] | type[np.float32]) -> tuple[Words, Floats]:
    """Words [N, ceil(K/32) x 4] and scales [N, ceil(K/32)] of a weight [N, K].

    dtype: of the scales, and of the arithmetic. Rounding is to the nearest, ties to even.
    """
    rows, columns = weight.shape
    groups = -(-columns // GROUP)
    padded = np.zeros((rows, groups * GROUP), dtype)
    padded[:, :columns] = weight
    grouped = padded.reshape(rows, groups, GROUP)
    scales = (np.abs(grouped).max(-1) / dtype(_MAX)).astype(dtype)
    with np.errstate(invalid="ignore", divide="ignore"):
        scaled = np.rint((grouped / scales[..., None]).astype(dtype) + dtype(_MAX))
    scaled[scales == 0] = 0  # 0 / 0: any q gives zero again; MLC's comes out as 0
    nibbles = np.clip(scaled, 0, 2 * _MAX).astype(np.uint32)
    return _pack(nibbles.reshape(rows, groups * GROUP)), scales


def dequantize(words: Words, scales: Floats, columns: int) -> NDArray[np.float32]:
    """Weights [N, columns] in float32, as a device that computes in float32 sees them."""
    nibbles = _unpack(words)[:, :columns].astype(np.float32) - np.float32(_MAX)
    return nibbles * np.repeat(scales.astype(np.float32), GROUP, axis=1)[:, :columns]


def _pack(nibbles: Words) -> Words:
    eights = nibbles.reshape(len(nibbles), -1, _PER_WORD)
    shifts = np.arange(_PER_WORD, dtype=np.uint32) * np.uint32(_BITS)
    return np.bitwise_or.reduce(eights << shifts, axis=-1)


def _unpack(words: Words) -> Words:
    shifts = np.arange(_PER_WORD, dtype=np.uint32) * np.uint32(_BITS)
    return ((words[..., None] >> shifts) & np.uint32(15)).reshape(len(words), -1)
