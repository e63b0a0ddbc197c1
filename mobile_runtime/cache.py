"""Files that this machine makes for itself, kept by digest.

In: what a file is made from, and how. Out: the file. ExecuTorch's engine keeps a `.ptd` that joins
the tensors of a base and of an adapter for Python's loader (a phone opens several data files and
needs none of this); TVM's engine keeps compiled libraries. Files are named `<what they were made
from>.<sha256 of the content><suffix>`, so that a damaged one is noticed and made again; only the
last few are kept. One process at a time holds the directory, from the check to the load. A joined
file holds a user's adapter, so directory and files are open to their owner only.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

from protos.artifacts import digest_file
from protos.errors import InputError
from protos.ptd import Tensor, write_ptd

KEEP = 4
"""Files kept; one user's adapter on one base is one file as large as both."""
_FORMAT = "1"


def default_directory(kind: str = "data-files") -> Path:
    """$XDG_CACHE_HOME/pocketune/<kind>, else ~/.cache/pocketune/<kind>."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(root) if root else Path.home() / ".cache") / "pocketune" / kind


@dataclass(frozen=True)
class Kept:
    """A file of the cache. built: it was made just now, so it cost its bytes."""

    path: Path
    size_bytes: int
    built: bool


@contextlib.contextmanager
def joined(
    directory: Path, parents: Sequence[str], tensors: Sequence[Tensor], keep: int = KEEP
) -> Generator[Kept]:
    """The data file that holds `tensors`, made if it is not there; see `kept`.

    Args:
        parents: digests of what the tensors come from; they decide the file's name.
    """

    def write(path: Path) -> str:
        with path.open("wb") as stream:
            return write_ptd(stream, tensors)

    name = hashlib.sha256("\n".join([_FORMAT, *parents]).encode()).hexdigest()
    with kept(directory, name, ".ptd", write, keep) as file:
        yield file


@contextlib.contextmanager
def kept(
    directory: Path, name: str, suffix: str, write: Callable[[Path], str], keep: int = KEEP
) -> Generator[Kept]:
    """The file of that name, made if it is not there; it stays while the `with` lasts.

    Args:
        name: a digest of all that the file is made from.
        write: makes the file and returns the sha256 of its content.

    Raises:
        InputError: the directory cannot be written, or the disk is full.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.chmod(0o700)  # it may be there from before, or the umask be another
        lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise InputError(f"{directory}: cannot keep files: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            file = _found(directory, name, suffix) or _build(directory, name, suffix, write)
            _evict(directory, suffix, keep)
        except OSError as error:
            raise InputError(
                f"{directory}: cannot write a {suffix} file: {error.strerror}"
            ) from None
        yield file
    finally:
        os.close(lock)


def _found(directory: Path, name: str, suffix: str) -> Kept | None:
    """The sound file of that name; damaged ones are removed."""
    for path in directory.glob(f"{name}.*{suffix}"):
        if digest_file(path) == path.suffixes[-2].removeprefix("."):
            os.utime(path)
            return Kept(path, path.stat().st_size, built=False)
        path.unlink()
    return None


def _build(directory: Path, name: str, suffix: str, write: Callable[[Path], str]) -> Kept:
    """Write beside, sync, rename: a killed process leaves only a file that the next one removes."""
    for abandoned in directory.glob("*.partial*"):
        abandoned.unlink()
    partial = directory / f"{name}.{secrets.token_hex(4)}.partial{suffix}"
    try:
        digest = write(partial)
        partial.chmod(0o600)
        _sync(partial)
        path = directory / f"{name}.{digest}{suffix}"
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)
    return Kept(path, path.stat().st_size, built=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _evict(directory: Path, suffix: str, keep: int) -> None:
    """Remove all but the `keep` files used last; a program that has one open keeps reading it."""
    files = directory.glob(f"*{suffix}")
    newest_first = sorted(files, key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for path in newest_first[keep:]:
        path.unlink()
