"""Half-precision adapters: the numbers are those of IEEE 754, and damage is an error."""

import struct

import numpy as np
import pytest

from protos.half_file import MAGIC, START_BYTES, pack, unpack

HEAD = 64


def ptd(*numbers: float) -> bytes:
    """A data file's first bytes as the format has them, padded, and float32 numbers after them."""
    header = struct.pack("<4sIQQQQ", b"FH01", 40, 48, 0, HEAD, 4 * len(numbers))
    return (b"\x08\0\0\0FT01" + header).ljust(HEAD, b"\0") + struct.pack(
        f"<{len(numbers)}f", *numbers
    )


def test_hand_worked_halves() -> None:
    packed = pack(ptd(1.0, -2.0, 0.5, 65504.0))
    assert packed[:8] == MAGIC
    # sign, 5 bits of exponent (bias 15), 10 of mantissa: 1.0 = 0x3c00, -2.0 = 0xc000
    assert packed[START_BYTES + HEAD :] == bytes.fromhex("003c 00c0 0038 ff7b")


def test_what_is_packed_comes_back_byte_for_byte() -> None:
    numbers = np.random.default_rng(0).normal(size=1000).astype(np.float16).astype(float)
    whole = ptd(*numbers)
    assert unpack(pack(whole)) == (whole, HEAD)
    assert len(pack(whole)) < 0.6 * len(whole)


def test_a_number_that_is_no_half_is_refused_rather_than_rounded() -> None:
    with pytest.raises(ValueError, match="no float16"):
        pack(ptd(1.0, 0.1))
    with pytest.raises(ValueError, match="no float16"):
        pack(ptd(1e6))


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:10],
        lambda data: b"X" + data[1:],
        lambda data: data[:-1],
        lambda data: data[:8] + struct.pack("<Q", 1 << 60) + data[16:],
    ],
)
def test_damaged_files_are_refused(damage) -> None:
    with pytest.raises(ValueError, match=r"not a|shorter"):
        unpack(damage(pack(ptd(1.0, 2.0))))
