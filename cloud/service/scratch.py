"""Folders of running jobs, the only place where a user's data lies readable: mode 0700, one for
each attempt of an operation, gone when it ends.

In: the root from the settings. What a killed worker leaves behind is removed by the next worker on
that host that takes the operation, or starts, and by the sweeper.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
from pathlib import Path

from cloud.service import operations
from cloud.service.state import Database


def path(root: Path, uid: str, attempt: int) -> Path:
    """Where the folder of an attempt is."""
    return root / f"{uid}.{attempt}"


def folder(root: Path, uid: str, attempt: int) -> Path:
    """Make the folder of an attempt, and remove those of the attempts before it."""
    for other in root.glob(f"{uid}.*"):
        if other.name != f"{uid}.{attempt}":
            discard(other)
    mine = path(root, uid, attempt)
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    mine.mkdir(exist_ok=True, mode=0o700)
    return mine


def remove(root: Path, uid: str) -> None:
    """Remove the folders of all attempts of an operation on this host."""
    for each in root.glob(f"{uid}.*"):
        discard(each)


def discard(folder: Path) -> None:
    """Remove a folder, also while somebody writes into it: it is renamed first, so that nothing
    new gets in. One that is gone already is none to remove.
    """
    gone = folder.with_name(f"{folder.name}.{secrets.token_hex(4)}")
    with contextlib.suppress(OSError):
        folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def sweep(root: Path, database: Database) -> int:
    """Remove folders whose operation has ended, or is at another attempt; returns how many."""
    count = 0
    for each in list(root.glob("*.*")) if root.is_dir() else []:
        uid, _, attempt = each.name.rpartition(".")
        with database.transaction(write=False) as connection:
            row = operations.by_uid(connection, uid)
        if row is None or row.end_time is not None or str(row.attempt) != attempt:
            with contextlib.suppress(OSError):
                shutil.rmtree(each)
                count += 1
    return count
