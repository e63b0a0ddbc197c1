"""Sealed values and files: they open in their place, with their key, whole; and nowhere else."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud.service import crypto
from cloud.service.crypto import CHUNK, HEADER, SEALED_CHUNK
from protos.errors import ArtifactError, InputError

KEY = bytes(range(32))


def sealed(data: bytes, context: bytes = b"c") -> bytes:
    return b"".join(crypto.seal_stream(KEY, [data], context))


def opened(
    stored: bytes, size: int, offset: int = 0, length: int = 1 << 30, context: bytes = b"c"
) -> bytes:
    reads: list[tuple[int, int]] = []

    def read(at: int, count: int) -> list[bytes]:
        reads.append((at, count))
        return [stored[at : at + count]]

    found = b"".join(crypto.open_range(KEY, read, size, context, offset, length))
    assert sum(count for _, count in reads) <= HEADER + (length // CHUNK + 2) * SEALED_CHUNK
    return found


@settings(max_examples=60, deadline=None)
@given(
    size=st.sampled_from([1, 100, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 3 * CHUNK + 5]),
    offset=st.integers(0, 4 * CHUNK), length=st.integers(1, 2 * CHUNK),
)  # fmt: skip
def test_any_range_of_a_file_opens_without_reading_what_is_before_it(size, offset, length):
    data = bytes(i * 7 % 251 for i in range(size))
    if offset < size:
        assert opened(sealed(data), size, offset, length) == data[offset : offset + length]


def test_chunks_cannot_be_swapped_dropped_cut_or_moved():
    data = bytes(3 * CHUNK)
    stored = sealed(data)
    body = stored[HEADER:]
    chunks = [body[i : i + SEALED_CHUNK] for i in range(0, len(body), SEALED_CHUNK)]
    for order in permutations(chunks):
        if list(order) != chunks:
            with pytest.raises(ArtifactError):
                opened(stored[:HEADER] + b"".join(order), len(data))
    with pytest.raises(ArtifactError):  # cut at a chunk's end, and said to be shorter
        opened(stored[:-SEALED_CHUNK], 2 * CHUNK)
    with pytest.raises(ArtifactError):
        opened(stored[:-1], len(data))
    with pytest.raises(ArtifactError):
        opened(stored, len(data), context=b"another user's")
    for at in (0, 5, HEADER, HEADER + CHUNK, len(stored) - 1):
        altered = bytearray(stored)
        altered[at] ^= 1
        with pytest.raises(ArtifactError):
            opened(bytes(altered), len(data))


def test_an_empty_file_is_one_sealed_chunk_of_nothing():
    assert len(sealed(b"")) == HEADER + 16


def test_a_value_opens_in_its_row_only():
    stored = crypto.seal(KEY, b"text", b"items/p/1")
    assert crypto.unseal(KEY, stored, b"items/p/1") == b"text"
    for wrong in (stored[:5], stored[:-1], b"", bytes(len(stored))):
        with pytest.raises(ArtifactError):
            crypto.unseal(KEY, wrong, b"items/p/1")
    with pytest.raises(ArtifactError):
        crypto.unseal(KEY, stored, b"items/p/2")


def test_a_user_s_key_opens_for_the_tenant_and_the_user_it_was_wrapped_for(tmp_path: Path):
    path = tmp_path / "root.key"
    crypto.make_root_key(path)
    before = path.read_bytes()
    crypto.make_root_key(path)
    assert path.read_bytes() == before
    assert path.stat().st_mode & 0o777 == 0o600
    tenants = crypto.FileTenantKeys(path)
    wrapped = tenants.wrap("a", KEY, b"uid")
    assert tenants.unwrap("a", wrapped, b"uid") == KEY
    for tenant, context in (("b", b"uid"), ("a", b"other")):
        with pytest.raises(ArtifactError):
            tenants.unwrap(tenant, wrapped, context)


def test_a_root_key_that_others_may_read_is_refused(tmp_path: Path):
    path = tmp_path / "root.key"
    path.write_bytes(bytes(32))
    path.chmod(0o644)
    with pytest.raises(InputError, match="chmod 600"):
        crypto.FileTenantKeys(path)
