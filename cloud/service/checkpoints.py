"""Checkpoints of long stages, kept in the vault so that any host can go on from them.

In: the work folders that the stages themselves write (`protos.artifacts.work_dir`). Out: the same
files in the user's space, under the user's key, replaced every `checkpoint_s`; and back again in
the folder of the next attempt, where the stage finds them as after any interruption. One row of
kind `Checkpoint` for each operation; it is dropped before the operation ends.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy import Connection, Row, update

from cloud.service import artifacts_store, operations
from cloud.service.artifacts_store import CHECKPOINT, Facts, Owner
from cloud.service.errors import Cancelled
from cloud.service.pipeline import Job
from cloud.service.state import Database
from cloud.service.tables import Artifact as Artifacts
from cloud.service.vault import Space, StoredFile, Vault
from protos.artifacts import digest_file

_WORK = ".*.work/*"
_log = structlog.get_logger(__name__)


@contextlib.contextmanager
def kept(database: Database, vault: Vault, job: Job, every_s: float) -> Generator[None]:
    """Restore what an earlier attempt has kept; then keep what the block makes, until it ends."""
    restore(database, job)
    keeper = _Keeper(database, vault, job)
    done = threading.Event()

    def watch() -> None:
        while not done.wait(every_s):
            keeper.save()

    thread = threading.Thread(target=watch, name="checkpoints", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def restore(database: Database, job: Job) -> int:
    """Put the files of the last checkpoint into the job's folder; returns how many there were."""
    with database.transaction(write=False) as connection:
        row = _row(connection, job.operation)
    if row is None:
        return 0
    count = 0
    for file in artifacts_store.opened(job.space, row).files:
        target = job.folder / file.path
        if not target.exists():
            artifacts_store.write(job.space, file, target, job.check)
            count += 1
    return count


def drop(database: Database, vault: Vault, operation: Row[Any]) -> None:
    """Remove the checkpoint of an operation that ends."""
    with database.transaction(write=False) as connection:
        row = _row(connection, operation)
    if row is None:
        return
    space = vault.space(operation.tenant, operation.user_uid)
    with database.transaction() as connection:
        keys = artifacts_store.release(connection, space, row)
    for key in keys:
        vault.blobs.delete(key)


class _Keeper:
    """Stores what has changed since the last time."""

    def __init__(self, database: Database, vault: Vault, job: Job) -> None:
        self._database = database
        self._vault = vault
        self._job = job
        self._saved: dict[str, StoredFile] = {}

    def save(self) -> None:
        """Keep the work files as they are now; a failure is tried again the next time."""
        try:
            found = dict(self._store(path) for path in sorted(self._job.folder.glob(_WORK)))
            if found and found != self._saved:
                self._replace(list(found.values()))
                self._saved = found
        except Cancelled:
            return
        except Exception as error:  # the stage goes on without; only the way back is longer
            _log.warning("checkpoint not kept", error=type(error).__name__)

    def _store(self, path: Path) -> tuple[str, StoredFile]:
        """Store one file as it is now. A link holds on to it if the stage replaces it meanwhile."""
        name = path.relative_to(self._job.folder).as_posix()
        link = self._job.folder / f".checkpoint-{path.name}"
        link.unlink(missing_ok=True)
        os.link(path, link)
        try:
            return name, self._job.space.store(name, link, digest_file(link), self._job.check)
        finally:
            link.unlink(missing_ok=True)

    def _replace(self, files: Sequence[StoredFile]) -> None:
        operation, space = self._job.operation, self._job.space
        old: set[str] = set()
        with self._database.transaction() as connection:
            if not operations.is_wanted(connection, operation.uid, operation.attempt):
                return
            row = _row(connection, operation)
            if row is not None:
                old = {file.address for file in artifacts_store.opened(space, row).files}
            _put(connection, space, operation, row, Facts(files, {}, {}))
        for address in old - {file.address for file in files}:
            self._vault.blobs.delete(f"{space.prefix}/{address}")


def _row(connection: Connection, operation: Row[Any]) -> Row[Any] | None:
    return artifacts_store.find(connection, operation.user_uid, CHECKPOINT, operation.uid)


def _put(
    connection: Connection, space: Space, operation: Row[Any], row: Row[Any] | None, facts: Facts
) -> None:
    if row is None:
        owner = Owner(operation.user_uid)
        artifacts_store.put(connection, space, owner, CHECKPOINT, operation.uid, facts)
        return
    connection.execute(
        update(Artifacts)
        .where(Artifacts.uid == row.uid)
        .values(
            sealed=artifacts_store.seal(space, row.uid, facts),
            size_bytes=sum(file.size for file in facts.files),
        )
    )
