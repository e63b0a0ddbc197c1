"""Encryption at rest: a key for each user, wrapped by the key of their tenant.

    root key (file, or a KMS) -> tenant key -> user's data key (wrapped) -> one key for each file

A file is sealed in chunks of 64 KiB with AES-256-GCM, in the manner of STREAM (Hoang, Reyhanitabar,
Rogaway, Vizar 2015): a chunk's nonce holds its number and whether it is the last, so that chunks
cannot be swapped, dropped or cut off, and a range is read without what comes before it. Every
sealed thing is bound to a context (where it belongs), so it opens nowhere else.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from protos.errors import ArtifactError, InputError

KEY_BYTES = 32
CHUNK = 64 * 1024
_TAG, _NONCE, _SALT = 16, 12, 32
_MAGIC = b"PKT1"
HEADER = len(_MAGIC) + _SALT
SEALED_CHUNK = CHUNK + _TAG


class TenantKeys(Protocol):
    """The tenants' keys, which never leave: a file, or a key management service."""

    def wrap(self, tenant: str, key: bytes, context: bytes) -> bytes: ...

    def unwrap(self, tenant: str, wrapped: bytes, context: bytes) -> bytes:
        """The key again.

        Raises:
            ArtifactError: it was wrapped by another tenant, for another user, or was altered.
        """
        ...


class FileTenantKeys:
    """Tenant keys derived (HKDF-SHA256) from one root key in a file of 32 bytes, mode 0600."""

    def __init__(self, path: Path) -> None:
        self._root = read_root_key(path)

    def wrap(self, tenant: str, key: bytes, context: bytes) -> bytes:
        return seal(self._tenant_key(tenant), key, context)

    def unwrap(self, tenant: str, wrapped: bytes, context: bytes) -> bytes:
        return unseal(self._tenant_key(tenant), wrapped, context)

    def _tenant_key(self, tenant: str) -> bytes:
        return derive(self._root, f"pocketune tenant {tenant}".encode())


def make_root_key(path: Path) -> None:
    """Write a new root key, unless there is one."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(secrets.token_bytes(KEY_BYTES))
            stream.flush()
            os.fsync(stream.fileno())
        try:
            os.link(partial, path)  # fails where another process was faster: its key counts
        except FileExistsError:
            return
    finally:
        partial.unlink(missing_ok=True)


def derive(key: bytes, purpose: bytes, salt: bytes | None = None) -> bytes:
    """A key for one purpose (HKDF-SHA256)."""
    return HKDF(SHA256(), KEY_BYTES, salt, purpose).derive(key)


def keyed_digest(key: bytes, data: bytes) -> str:
    """HMAC-SHA256, 64 hex characters: tells equal things apart for nobody but the key's owner."""
    return hmac.new(key, data, hashlib.sha256).hexdigest()


def seal(key: bytes, data: bytes, context: bytes) -> bytes:
    """Encrypt a small value: nonce, ciphertext, tag."""
    nonce = secrets.token_bytes(_NONCE)
    return nonce + AESGCM(key).encrypt(nonce, data, context)


def unseal(key: bytes, sealed: bytes, context: bytes) -> bytes:
    """The inverse of `seal`.

    Raises:
        ArtifactError: another key, another context, or altered.
    """
    try:
        return AESGCM(key).decrypt(sealed[:_NONCE], sealed[_NONCE:], context)
    except (InvalidTag, ValueError):
        raise ArtifactError("a stored value was altered, or is not where it belongs") from None


def seal_stream(key: bytes, data: Iterable[bytes], context: bytes) -> Iterator[bytes]:
    """Encrypt a file as it passes: header, then chunks of 64 KiB and their tags."""
    salt = secrets.token_bytes(_SALT)
    cipher = AESGCM(derive(key, b"pocketune file", salt))
    yield _MAGIC + salt
    index, pending = 0, b""
    for chunk in rechunk(data, CHUNK):
        if index or pending:
            yield cipher.encrypt(_chunk_nonce(index, False), pending, context)
            index += 1
        pending = chunk
    yield cipher.encrypt(_chunk_nonce(index, True), pending, context)


Read = Callable[[int, int], Iterable[bytes]]
"""(offset, length) of the sealed file -> its bytes."""


def open_range(
    key: bytes, read: Read, size: int, context: bytes, offset: int, length: int
) -> Iterator[bytes]:
    """Decrypt `length` bytes from `offset` of a file whose content has `size` bytes.

    Reads the header and the chunks that hold the range, nothing else.

    Raises:
        ArtifactError: what is stored was altered, cut off, or belongs elsewhere.
    """
    first, end = offset // CHUNK, min(offset + length, size)
    last_chunk = max(0, -(-size // CHUNK) - 1)
    last = min(last_chunk, max(0, end - 1) // CHUNK)
    header = b"".join(read(0, HEADER))
    if not header.startswith(_MAGIC) or len(header) != HEADER:
        raise ArtifactError("a stored file has no valid header")
    cipher = AESGCM(derive(key, b"pocketune file", header[len(_MAGIC) :]))
    sealed_size = (last - first + 1) * SEALED_CHUNK
    blocks = rechunk(read(HEADER + first * SEALED_CHUNK, sealed_size), SEALED_CHUNK)
    for index in range(first, last + 1):
        block = next(blocks, b"")
        try:
            chunk = cipher.decrypt(_chunk_nonce(index, index == last_chunk), block, context)
        except (InvalidTag, ValueError):
            raise ArtifactError("a stored file was altered, or is not where it belongs") from None
        start = index * CHUNK
        yield chunk[max(0, offset - start) : end - start]


def rechunk(data: Iterable[bytes], size: int) -> Iterator[bytes]:
    """The same bytes in pieces of exactly `size`, the last one maybe shorter."""
    left = b""
    for piece in data:
        at = min(size - len(left), len(piece)) if left else 0
        left += piece[:at]
        if left and len(left) < size:
            continue
        if left:
            yield left
        end = at + (len(piece) - at) // size * size
        yield from (piece[start : start + size] for start in range(at, end, size))
        left = piece[end:]
    if left:
        yield left


def _chunk_nonce(index: int, is_last: bool) -> bytes:
    return index.to_bytes(_NONCE - 1, "big") + bytes([is_last])


def read_root_key(path: Path) -> bytes:
    """The key in a file of 32 bytes that only its owner may read.

    Raises:
        InputError: it is missing, of another size, or others may read it.
    """
    try:
        key = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: no such key file") from None
    if len(key) != KEY_BYTES:
        raise InputError(f"{path}: {len(key)} bytes, expected a key of {KEY_BYTES}")
    if path.stat().st_mode & 0o077:
        raise InputError(f"{path}: others may read it; chmod 600 it")
    return key
