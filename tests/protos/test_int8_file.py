"""Adapters as bytes: numbers as worked by hand, nothing changes twice, and damage is an error."""

import struct

import numpy as np
import pytest

from protos.int8_file import BLOCK, MAGIC, START_BYTES, pack, rounded, unpack

HEAD = 64


def ptd(numbers) -> bytes:
    """A data file's first bytes as the format has them, padded, and float32 numbers after them."""
    header = struct.pack("<4sIQQQQ", b"FH01", 40, 48, 0, HEAD, 4 * len(numbers))
    return (b"\x08\0\0\0FT01" + header).ljust(HEAD, b"\0") + struct.pack(
        f"<{len(numbers)}f", *numbers
    )


def test_hand_worked_bytes() -> None:
    first = [127.0, -64.0, 1.0, 0.0] + [0.0] * (BLOCK - 4)  # a scale of 1: bfloat16 0x3f80
    second = [-0.5 * 127, 0.5]  # a scale of 0.5: 0x3f00
    packed = pack(ptd(first + second))
    assert packed[:8] == MAGIC
    assert struct.unpack_from("<QQ", packed, 8) == (HEAD, BLOCK + 2)
    body = packed[START_BYTES + HEAD :]
    assert body[:4] == bytes.fromhex("803f 003f")
    assert body[4:8] == bytes([127, 256 - 64, 1, 0])
    assert body[-2:] == bytes([256 - 127, 1])


def test_a_number_is_off_by_half_a_step_of_the_largest_of_its_64_at_most() -> None:
    numbers = np.random.default_rng(0).normal(size=(10, 96)).astype(np.float32)
    steps = np.abs(numbers.reshape(-1, BLOCK)).max(1) / 127
    off = np.abs(rounded(numbers) - numbers).reshape(-1, BLOCK).max(1)
    assert (off <= steps * 0.5 * 1.02 + steps * 127 * 2**-9).all()  # the scale is rounded as well
    assert off.max() > 0


@pytest.mark.parametrize("size", [1e-45, 1e-40, 2e-37, 5e-37, 2e-36, 1e-30, 1e-4, 1.0, 3e38])
def test_rounding_again_changes_nothing_and_packing_loses_nothing(size) -> None:
    numbers = np.random.default_rng(1).uniform(-1, 1, 20 * BLOCK + 7) * size
    once = rounded(numbers.astype(np.float32))
    assert np.isfinite(once).all()
    assert np.array_equal(rounded(once), once)
    whole = ptd(once.tolist())
    assert unpack(pack(whole)) == (whole, HEAD)
    assert len(pack(whole)) < 0.32 * len(whole)


def test_blocks_whose_step_is_below_the_normal_numbers_are_zeros() -> None:
    """127 steps of 2^-126 are the least block that stays."""
    normal = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32) * np.float32(2e-37)
    assert np.array_equal(rounded(rounded(normal)), rounded(normal))
    least = np.zeros(2 * BLOCK, np.float32)
    least[0], least[BLOCK] = 127 * 2.0**-126, 126 * 2.0**-126
    once = rounded(least)
    assert once[0] == least[0]
    assert not once[1:].any()
    unpack(pack(ptd(rounded(normal).ravel().tolist())))


def test_zeros_stay_zeros() -> None:
    assert not rounded(np.zeros((3, 5), np.float32)).any()
    assert rounded(np.zeros((0, 5), np.float32)).shape == (0, 5)


def test_numbers_that_are_no_bytes_are_refused_rather_than_rounded() -> None:
    with pytest.raises(ValueError, match="no bytes with one scale"):
        pack(ptd([1.0, 0.1]))


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:10],
        lambda data: b"X" + data[1:],
        lambda data: data[:-1],
        lambda data: data[:8] + struct.pack("<Q", 1 << 60) + data[16:],
        lambda data: data[:16] + struct.pack("<Q", 1 << 60) + data[24:],
    ],
)
def test_damaged_files_are_refused(damage) -> None:
    with pytest.raises(ValueError, match=r"not a|shorter"):
        unpack(damage(pack(ptd([1.0, 127.0]))))
