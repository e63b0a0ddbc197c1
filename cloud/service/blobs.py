"""The blob store: named byte strings, written once and whole, read from anywhere.

In: a URL, `file:///folder` or `s3://bucket/prefix`. Out: a `BlobStore`. Names are made by
`vault.py` alone, such as `users/{tenant}/{uid}/{digest}`; this module knows nothing of what they
mean. A blob appears complete or not at all, also when the writer is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import os
import re
import secrets
import shutil
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol
from urllib.parse import urlparse

import structlog

from protos.errors import InputError

_BLOCK = 1 << 20
_READ = 64 * 1024
_S3_PART = 8 << 20
_S3_BATCH = 1000  # S3 takes no more in one call
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*", re.ASCII)
_PARTIAL = ".partial"
_ABANDONED_S = 3600.0
_S3_PATIENCE = {"connect_timeout": 5, "read_timeout": 20, "retries": {"max_attempts": 1}}
_S3_TRIES = 3
_log = structlog.get_logger(__name__)


class BlobStore(Protocol):
    """Where bytes are kept. Keys are ASCII, parts separated by `/`.

    is_near: 64 KiB are read in microseconds, so that it needs no thread.
    """

    @property
    def is_near(self) -> bool: ...

    def put(self, key: str, chunks: Iterable[bytes]) -> int:
        """Store a blob and return its size; one that is there already is replaced."""
        ...

    def read(self, key: str, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        """The bytes from `offset`, in blocks of at most 1 MiB.

        Raises:
            FileNotFoundError: there is no such blob.
        """
        ...

    def exists(self, key: str) -> bool: ...

    def keys(self, prefix: str) -> Iterator[str]:
        """Every key that begins with `prefix` and a slash."""
        ...

    def delete(self, key: str) -> None:
        """Remove a blob; one that is not there is no error."""
        ...

    def delete_all(self, prefix: str) -> int:
        """Remove every blob below `prefix` and return how many there were.

        Raises:
            OSError: some of them could not be removed.
        """
        ...

    def keeps_versions(self) -> bool:
        """Whether what is deleted or replaced here stays readable as an old version."""
        ...

    def clean(self) -> int:
        """Remove what was begun an hour ago and is not finished: its writer was killed."""
        ...


def open_store(url: str, endpoint_url: str = "") -> BlobStore:
    """The store that a URL names.

    Raises:
        InputError: the URL is none of ours.
    """
    parsed = urlparse(url)
    if parsed.scheme == "file" and parsed.path:
        return LocalBlobs(Path(parsed.path))
    if parsed.scheme == "s3" and parsed.netloc:
        return S3Blobs(f"{parsed.netloc}{parsed.path}".rstrip("/"), endpoint_url)
    raise InputError(f"blob store {url!r}: expected file:///folder or s3://bucket/prefix")


class LocalBlobs:
    """A folder. Blobs are written beside their place, synced, and renamed into it."""

    is_near = True

    def __init__(self, root: Path) -> None:
        self._root = root
        root.mkdir(parents=True, exist_ok=True, mode=0o700)

    def put(self, key: str, chunks: Iterable[bytes]) -> int:
        path = self._path(key)
        partial = path.parent / f".{path.name}.{secrets.token_hex(4)}{_PARTIAL}"
        size = 0
        try:
            with self._create(partial) as stream:
                for chunk in chunks:
                    size += stream.write(chunk)
                stream.flush()
                os.fsync(stream.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        _sync_folder(path.parent)
        return size

    def read(self, key: str, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        with self._path(key).open("rb") as stream:
            stream.seek(offset)
            left = length
            while left is None or left > 0:
                block = stream.read(_READ if left is None else min(_READ, left))
                if not block:
                    return
                left = None if left is None else left - len(block)
                yield block

    def exists(self, key: str) -> bool:
        return self._path(key).is_file()

    def keys(self, prefix: str) -> Iterator[str]:
        for path in self._path(prefix).rglob("*"):
            if path.is_file() and not path.name.endswith(_PARTIAL):
                yield path.relative_to(self._root).as_posix()

    def delete(self, key: str) -> None:
        self._path(key).unlink(missing_ok=True)

    def delete_all(self, prefix: str) -> int:
        count = sum(1 for _ in self.keys(prefix))
        shutil.rmtree(self._path(prefix), ignore_errors=True)
        if self._path(prefix).exists():
            raise OSError(errno.ENOTEMPTY, "blobs could not be deleted")
        return count

    def keeps_versions(self) -> bool:
        return False

    def clean(self) -> int:
        count = 0
        for path in self._root.rglob(f".*{_PARTIAL}"):
            with contextlib.suppress(FileNotFoundError):  # its writer was just slow
                if path.stat().st_mtime < time.time() - _ABANDONED_S:
                    path.unlink()
                    count += 1
        return count

    @staticmethod
    def _create(path: Path) -> BinaryIO:
        """A new file; an erasure may remove its folder just before, so try a second time."""
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            return path.open("xb")
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            return path.open("xb")

    def _path(self, key: str) -> Path:
        return self._root / _checked(key)


class S3Blobs:
    """A bucket with a prefix, through s3fs. A multipart upload shows up when it is completed."""

    is_near = False

    def __init__(self, root: str, endpoint_url: str = "") -> None:
        import s3fs

        self._root = root
        self._files: Any = s3fs.S3FileSystem(
            client_kwargs={"endpoint_url": endpoint_url} if endpoint_url else {},
            config_kwargs=_S3_PATIENCE,
            use_listings_cache=False,
            skip_instance_cache=True,
        )
        self._files.retries = _S3_TRIES
        self._files.loop.set_exception_handler(_broken)

    def put(self, key: str, chunks: Iterable[bytes]) -> int:
        size = 0
        with _answering():
            stream = self._files.open(self._path(key), "wb", block_size=_S3_PART)
            try:
                for chunk in chunks:
                    size += stream.write(chunk)
            except BaseException:
                # Closing would complete the upload and show half a blob.
                with contextlib.suppress(Exception):
                    stream.discard()
                stream.closed = True
                raise
            stream.close()
        return size

    def read(self, key: str, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        end = None if length is None else offset + length
        while end is None or offset < end:
            stop = offset + _BLOCK if end is None else min(offset + _BLOCK, end)
            block = self._block(key, offset, stop)
            if block:
                yield block
            if len(block) < stop - offset:
                return
            offset = stop

    def _block(self, key: str, start: int, stop: int) -> bytes:
        try:
            with _answering():
                return self._files.cat_file(self._path(key), start=start, end=stop)
        except OSError as error:
            if error.errno == errno.EINVAL:  # S3's "range not satisfiable": beyond the end
                return b""
            raise

    def exists(self, key: str) -> bool:
        with _answering():
            return bool(self._files.isfile(self._path(key)))

    def keys(self, prefix: str) -> Iterator[str]:
        with _answering():
            found = self._files.find(self._path(prefix))
        for path in found:
            yield str(path).removeprefix(f"{self._root}/")

    def delete(self, key: str) -> None:
        with contextlib.suppress(FileNotFoundError), _answering():
            self._files.rm_file(self._path(key))

    def delete_all(self, prefix: str) -> int:
        self._abort_uploads(self._key(prefix) + "/")
        found = [{"Key": self._key(name)} for name in self.keys(prefix)]
        batches = [found[at : at + _S3_BATCH] for at in range(0, len(found), _S3_BATCH)]
        if kept := [error for batch in batches for error in self._delete_batch(batch)]:
            codes = ", ".join(sorted({str(each.get("Code")) for each in kept}))
            raise OSError(errno.EACCES, f"{len(kept)} blobs could not be deleted ({codes})")
        return len(found)

    def keeps_versions(self) -> bool:
        return self._call("get_bucket_versioning").get("Status") == "Enabled"

    def _delete_batch(self, keys: Sequence[Mapping[str, str]]) -> list[Mapping[str, Any]]:
        """Delete up to 1,000 objects; returns S3's errors, which s3fs's own bulk delete drops."""
        wanted = {"Objects": keys, "Quiet": True}
        return list(self._call("delete_objects", Delete=wanted).get("Errors", ()))

    def clean(self) -> int:
        return self._abort_uploads(self._root.partition("/")[2], time.time() - _ABANDONED_S)

    def _abort_uploads(self, below: str, begun_before: float = math.inf) -> int:
        """Drop the parts that killed writers have left; no listing of objects shows them."""
        count, more = 0, {"Prefix": below}
        while more:
            answer = self._call("list_multipart_uploads", **more)
            for upload in answer.get("Uploads", ()):
                if upload["Initiated"].timestamp() < begun_before:
                    named = {"Key": upload["Key"], "UploadId": upload["UploadId"]}
                    self._call("abort_multipart_upload", **named)
                    count += 1
            names = {"KeyMarker": "NextKeyMarker", "UploadIdMarker": "NextUploadIdMarker"}
            follows = {mark: answer[name] for mark, name in names.items() if answer.get(name)}
            more = {"Prefix": below, **follows} if answer.get("IsTruncated") else {}
        return count

    def _call(self, method: str, **given: Any) -> Mapping[str, Any]:
        """What s3fs has no name for."""
        from botocore.exceptions import BotoCoreError

        try:
            return self._files.call_s3(method, Bucket=self._root.partition("/")[0], **given)
        except BotoCoreError as error:  # it does not answer
            raise ConnectionError(f"the blob store: {type(error).__name__}") from error

    def _key(self, name: str) -> str:
        return self._path(name).partition("/")[2]

    def _path(self, key: str) -> str:
        return f"{self._root}/{_checked(key)}"


def _broken(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What S3's libraries leave in tasks that nobody awaits: `_answering` says it to the caller."""
    _log.warning("blob store", error=type(context.get("exception")).__name__)


@contextlib.contextmanager
def _answering() -> Generator[None]:
    """What S3's libraries raise when it does not answer, as the system's own error."""
    import aiohttp
    from botocore.exceptions import BotoCoreError
    from botocore.parsers import ResponseParserError

    try:
        yield
    except (BotoCoreError, ResponseParserError, aiohttp.ClientError) as error:
        raise ConnectionError(f"the blob store: {type(error).__name__}") from error


def _checked(key: str) -> str:
    """The last line against traversal: names are made by us, and still looked at."""
    if not _KEY.fullmatch(key):
        raise ValueError(f"blob key {key!r} is malformed")
    return key


def _sync_folder(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):  # an erasure removed it meanwhile
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
