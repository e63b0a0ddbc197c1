"""What a host keeps of the things that all users share, base models and BaseBundles, fetched once.

In: a name, a size, and what fetches it. Out: its folder, which stays while it is in use. Beyond the
limit the least recently used go, and never one in use: whoever uses an entry, in whatever process
of the host, holds a lock on it that ends with the process at the latest.

    {kind}/{name}/…       an entry
    {kind}/.{name}.lock   locked shared: in use; exclusively: being removed. Its time: the last use
    {kind}/.{name}.gone   an entry on its way out
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Generator
from contextlib import ExitStack
from pathlib import Path


class Cache:
    """The cache of one host. limit_bytes: 0 for any size."""

    def __init__(self, root: Path, limit_bytes: int) -> None:
        self._root = root
        self._limit_bytes = limit_bytes

    def use(
        self,
        held: ExitStack,
        entry: str,
        leaf: str,
        size_bytes: int,
        fetch: Callable[[Path], None],
    ) -> Path:
        """The folder `leaf` of an entry `kind/name`, which stays until `held` is closed.

        fetch: makes the folder, all of it or nothing; called where it is missing.
        """
        place = self._root / entry
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = place.with_name(f".{place.name}.lock")
        held.enter_context(_locked(lock, fcntl.LOCK_SH))
        os.utime(lock)
        folder = place / leaf
        if not folder.is_dir():
            self._make_room(size_bytes)
            fetch(folder)
        return folder

    def _make_room(self, size_bytes: int) -> None:
        """Remove entries until `size_bytes` more are within the limit, or all are in use."""
        for gone in self._root.glob("*/.*.gone"):  # somebody was killed while removing it
            shutil.rmtree(gone, ignore_errors=True)
        if not self._limit_bytes:
            return
        locks = sorted(self._root.glob("*/.*.lock"), key=lambda lock: lock.stat().st_mtime_ns)
        entries = [(lock, lock.with_name(lock.name[1:].removesuffix(".lock"))) for lock in locks]
        sizes = {entry: _size(entry) for _, entry in entries}
        total = sum(sizes.values())
        for lock, entry in entries:
            if total + size_bytes <= self._limit_bytes:
                return
            if sizes[entry] and _remove(lock, entry):
                total -= sizes[entry]


def _remove(lock: Path, entry: Path) -> bool:
    """Remove an entry if nobody uses it."""
    gone = entry.with_name(f".{entry.name}.gone")
    try:
        with _locked(lock, fcntl.LOCK_EX | fcntl.LOCK_NB):
            entry.rename(gone)
    except OSError:  # it is in use, or another process was faster
        return False
    shutil.rmtree(gone, ignore_errors=True)
    return True


@contextlib.contextmanager
def _locked(lock: Path, how: int) -> Generator[None]:
    handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, how)
        yield
    finally:
        os.close(handle)


def _size(folder: Path) -> int:
    """Bytes of the files below a folder; those that vanish meanwhile do not count."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.stat().st_size if path.is_file() else 0
    return total
