"""Data files put together for Python's loader, kept by digest.

In: the tensors of a base and of an adapter. Out: one `.ptd` that holds both. A phone opens several
data files and needs none of this. Files are named `<what they were made from>.<sha256 of the
content>.ptd`, so that a damaged one is noticed and made again; only the last few are kept. One
process at a time holds the directory, from the check to the load.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mobile_runtime.ptd import Tensor, write_ptd
from protos.artifacts import digest_file
from protos.errors import InputError

KEEP = 4
"""Files kept; one user's adapter on one base is one file as large as both."""
_FORMAT = "1"


def default_directory() -> Path:
    """$XDG_CACHE_HOME/pocketune, else ~/.cache/pocketune."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(root) if root else Path.home() / ".cache") / "pocketune" / "data-files"


@dataclass(frozen=True)
class Joined:
    """A data file of the cache. built: it was written just now, so it cost its bytes."""

    path: Path
    size_bytes: int
    built: bool


@contextlib.contextmanager
def joined(
    directory: Path, parents: Sequence[str], tensors: Sequence[Tensor], keep: int = KEEP
) -> Generator[Joined]:
    """The file that holds `tensors`, made if it is not there; it stays while the `with` lasts.

    Args:
        parents: digests of what the tensors come from; they decide the file's name.

    Raises:
        InputError: the directory cannot be written, or the disk is full.
    """
    name = hashlib.sha256("\n".join([_FORMAT, *parents]).encode()).hexdigest()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise InputError(f"{directory}: cannot hold data files: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            file = _found(directory, name) or _build(directory, name, tensors)
            _evict(directory, keep)
        except OSError as error:
            raise InputError(f"{directory}: cannot write a data file: {error.strerror}") from None
        yield file
    finally:
        os.close(lock)


def _found(directory: Path, name: str) -> Joined | None:
    """The sound file of that name; damaged ones are removed."""
    for path in directory.glob(f"{name}.*.ptd"):
        if digest_file(path) == path.suffixes[-2].removeprefix("."):
            os.utime(path)
            return Joined(path, path.stat().st_size, built=False)
        path.unlink()
    return None


def _build(directory: Path, name: str, tensors: Sequence[Tensor]) -> Joined:
    """Write beside, sync, rename: a killed process leaves only a file that the next one removes."""
    for abandoned in directory.glob("*.partial"):
        abandoned.unlink()
    partial = directory / f"{name}.{secrets.token_hex(4)}.partial"
    try:
        with partial.open("wb") as stream:
            digest = write_ptd(stream, tensors)
            stream.flush()
            os.fsync(stream.fileno())
        path = directory / f"{name}.{digest}.ptd"
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)
    return Joined(path, path.stat().st_size, built=True)


def _evict(directory: Path, keep: int) -> None:
    """Remove all but the `keep` files used last; a program that has one open keeps reading it."""
    files = sorted(directory.glob("*.ptd"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for path in files[keep:]:
        path.unlink()
