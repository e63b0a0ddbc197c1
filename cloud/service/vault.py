"""A user's own space: their key, and everything that is stored under it.

In: blob store, key store, tenant keys. Out: `Vault`, which opens a `Space` for a user (or the
shared one, for bases). A space seals and unseals values, and stores files by content: a file's
address is a keyed digest of its sha256, so that storing it again changes nothing, equal files of
two users have unrelated addresses, and nobody without the key can tell what is stored.

The wrapped keys live in a store of their own and never in the database: destroying one reaches
dead rows, logs and backups of everything else.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import structlog

from cloud.service import crypto
from cloud.service.blobs import BlobStore, open_store
from cloud.service.errors import Unavailable
from cloud.service.settings import Settings
from protos.errors import ArtifactError, InputError

VERSIONS = (
    "the bucket of the users' keys keeps old versions, which no erasure reaches: let "
    "POCKETUNE_KEYS_URL name one that was made without versioning"
)
_CACHED_S = 60.0
_BLOCK = 1 << 20
_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class StoredFile:
    """Where a file's content is. size: of the content. address: the blob's name in its space."""

    path: str
    size: int
    sha256: str
    address: str


class Space:
    """One namespace of the blob store, with the key of whoever owns it; None: not encrypted."""

    def __init__(self, blobs: BlobStore, prefix: str, key: bytes | None) -> None:
        self._blobs = blobs
        self.prefix = prefix
        self._values = crypto.derive(key, b"pocketune values") if key else None
        self._digests = crypto.derive(key, b"pocketune digests") if key else None
        self._files = crypto.derive(key, b"pocketune files") if key else None

    @property
    def is_near(self) -> bool:
        """Whether files are read in microseconds, see `BlobStore`."""
        return self._blobs.is_near

    def seal(self, data: bytes, context: str) -> bytes:
        """Encrypt a value for a column. context: table, row and column it belongs to."""
        return crypto.seal(self._values, data, context.encode()) if self._values else data

    def unseal(self, sealed: bytes, context: str) -> bytes:
        """The inverse of `seal`.

        Raises:
            ArtifactError: altered, or moved from another row.
        """
        return crypto.unseal(self._values, sealed, context.encode()) if self._values else sealed

    def digest(self, data: bytes) -> str:
        """A digest that is the same for equal data of this user only, 64 hex characters."""
        if self._digests is None:
            return hashlib.sha256(data).hexdigest()
        return crypto.keyed_digest(self._digests, data)

    def store(
        self, path: str, source: Path, sha256: str, check: Callable[[], None] = lambda: None
    ) -> StoredFile:
        """Store a file whose sha256 is known; one that is stored already is left as it is.

        check: called before each MiB; what it raises leaves nothing behind.
        """
        address = self.digest(bytes.fromhex(sha256))
        stored = StoredFile(path, source.stat().st_size, sha256, address)
        key = f"{self.prefix}/{address}"
        if not self._blobs.exists(key):
            context = key.encode()
            chunks = _file_blocks(source, check)
            sealed = crypto.seal_stream(self._files, chunks, context) if self._files else chunks
            self._blobs.put(key, sealed)
        return stored

    def read(self, file: StoredFile, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Bytes of a stored file, in pieces of at most 1 MiB.

        Raises:
            ArtifactError: it is gone, altered or cut off.
        """
        key = f"{self.prefix}/{file.address}"
        wanted = file.size - offset if length is None else min(length, file.size - offset)
        if wanted <= 0:
            return
        try:
            if self._files is None:
                yield from self._blobs.read(key, offset, wanted)
                return
            yield from crypto.open_range(
                self._files, lambda at, count: self._blobs.read(key, at, count),
                file.size, key.encode(), offset, wanted,
            )  # fmt: skip
        except FileNotFoundError:
            raise ArtifactError(f"{file.path}: its content is gone from the blob store") from None


class Vault:
    """All spaces. Data keys are remembered for a minute, so that a call needs no key store."""

    def __init__(
        self, blobs: BlobStore, keys: BlobStore, tenants: crypto.TenantKeys | None
    ) -> None:
        self.blobs = blobs
        self._keys = keys
        self._tenants = tenants
        self._cache: dict[str, tuple[float, Space]] = {}
        self.shared = Space(blobs, "shared", None)

    def create(self, tenant: str, uid: str) -> Space:
        """Make the key of a new user."""
        if self._tenants:
            key = secrets.token_bytes(crypto.KEY_BYTES)
            wrapped = self._tenants.wrap(tenant, key, uid.encode())
            self._keys.put(_key_name(tenant, uid), [wrapped])
        return self.space(tenant, uid)

    def space(self, tenant: str, uid: str) -> Space:
        """The space of a user.

        Raises:
            ArtifactError: the user's key was destroyed, or is not the tenant's.
        """
        found = self._cache.get(uid)
        if found and found[0] > time.monotonic():
            return found[1]
        space = Space(self.blobs, f"users/{tenant}/{uid}", self._data_key(tenant, uid))
        if len(self._cache) >= 10_000:
            self._cache.clear()
        self._cache[uid] = (time.monotonic() + _CACHED_S, space)
        return space

    async def open(self, tenant: str, uid: str) -> Space:
        """`space`, without holding up the event loop where the key store must be asked."""
        found = self._cache.get(uid)
        if found and found[0] > time.monotonic():
            return found[1]
        return await asyncio.to_thread(self.space, tenant, uid)

    def destroy(self, tenant: str, uid: str) -> int:
        """Destroy a user's key, then remove their blobs; returns how many blobs there were."""
        self._cache.pop(uid, None)
        self._keys.delete(_key_name(tenant, uid))
        return self.blobs.delete_all(f"users/{tenant}/{uid}")

    def clean(self) -> int:
        """Remove what killed writers have left half written; returns how much there was."""
        return self.blobs.clean() + self._keys.clean()

    def owners(self, tenant: str) -> Iterator[str]:
        """The uids of a tenant's users who have a key."""
        for name in self._keys.keys(tenant):
            yield name.removeprefix(f"{tenant}/")

    def _data_key(self, tenant: str, uid: str) -> bytes | None:
        if self._tenants is None:
            return None
        try:
            wrapped = b"".join(self._keys.read(_key_name(tenant, uid)))
        except FileNotFoundError:
            raise ArtifactError("the user's key was destroyed") from None
        except OSError as error:
            raise Unavailable("the key store does not answer; try again") from error
        return self._tenants.unwrap(tenant, wrapped, uid.encode())


def open_vault(settings: Settings) -> Vault:
    """The vault that the settings describe; makes a root key where the default is used."""
    blobs = open_store(settings.resolved_blobs_url, settings.s3_endpoint_url)
    keys = open_store(settings.resolved_keys_url, settings.s3_endpoint_url)
    _refuse_versions(keys if settings.encrypt else blobs)
    if not settings.encrypt:
        return Vault(blobs, keys, None)
    path = settings.root_key_file
    if path is None:
        path = settings.data_dir / "root.key"
        crypto.make_root_key(path)
    return Vault(blobs, keys, crypto.FileTenantKeys(path))


def _refuse_versions(store: BlobStore) -> None:
    """What makes users' data unreadable when it is deleted must be gone when it is deleted."""
    try:
        keeps = store.keeps_versions()
    except OSError as error:  # it is away, or nobody may ask: `doctor` says so, too
        _log.warning("unknown whether deleted keys stay", error=type(error).__name__)
        return
    if keeps:
        raise InputError(VERSIONS)


def _key_name(tenant: str, uid: str) -> str:
    return f"{tenant}/{uid}"


def _file_blocks(path: Path, check: Callable[[], None]) -> Iterable[bytes]:
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            check()
            yield block
