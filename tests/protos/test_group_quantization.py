"""4-bit groups: digests made by MLC's own arithmetic, a hand-worked group, and every shape."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from protos.group_quantization import GROUP, dequantize, quantize

FROZEN = {
    ((4, 32), "float16"): "6a9947c9d089e538",
    ((4, 32), "float32"): "fe82a0088f5fdb94",
    ((3, 70), "float16"): "abfc14048e781312",
    ((3, 70), "float32"): "08c95793491334cd",
}
"""Of words and scales; the arithmetic that gave them equals mlc_llm's converter bit by bit."""


def sample(shape: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_frozen_digests():
    rng = np.random.default_rng(0)
    for shape in ((4, 32), (3, 70)):
        for dtype in (np.float16, np.float32):
            weight = rng.standard_normal(shape).astype(np.float32)
            weight[0, :8] = 0
            weight[-1] = 0
            words, scales = quantize(weight, dtype)
            digest = hashlib.sha256(words.tobytes() + scales.tobytes()).hexdigest()[:16]
            assert digest == FROZEN[shape, dtype.__name__]


def test_a_group_worked_by_hand():
    """max|w| = 7, so the scale is 1 and q = w + 7; ties go to the even number."""
    weight = np.zeros((1, GROUP), np.float32)
    weight[0, :8] = [7, -7, 1, 0.5, 1.5, -0.5, 2.4, -2.6]
    words, scales = quantize(weight, np.float32)
    assert scales.tolist() == [[1.0]]
    nibbles = [14, 0, 8, 8, 8, 6, 9, 4]
    assert words[0, 0] == sum(q << (4 * i) for i, q in enumerate(nibbles))
    assert dequantize(words, scales, 8).tolist() == [[7, -7, 1, 1, 1, -1, 2, -3]]


def test_a_group_of_zeros_stays_zero():
    words, scales = quantize(np.zeros((2, 40), np.float32), np.float16)
    assert not scales.any()
    assert dequantize(words, scales, 40).tolist() == np.zeros((2, 40)).tolist()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    arrays.arrays(
        np.float32,
        st.tuples(st.integers(1, 5), st.integers(1, 3 * GROUP + 1)),
        elements=st.floats(-100, 100, width=16),
    )
)
def test_what_is_read_back_is_within_half_a_step(weight):
    words, scales = quantize(weight, np.float32)
    rows, groups = len(weight), (weight.shape[1] + 31) // 32
    assert (words.shape, scales.shape) == ((rows, 4 * groups), (rows, groups))
    steps = np.repeat(scales, GROUP, axis=1)[:, : weight.shape[1]]
    off = np.abs(dequantize(words, scales, weight.shape[1]) - weight)
    assert (off <= 0.5001 * steps + 1e-6).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_quantizing_again_changes_nothing(dtype):
    """What is read back is its own quantized form: the largest value of a group keeps its step."""
    words, scales = quantize(sample((6, 96)), dtype)
    again, scales_again = quantize(dequantize(words, scales, 96), dtype)
    same = np.isclose(scales.astype(np.float32), scales_again.astype(np.float32), rtol=1e-3)
    full = same & (np.abs(dequantize(words, scales, 96)).reshape(6, 3, 32).max(-1) > 0)
    assert full.all()
    assert (words == again).mean() > 0.99
