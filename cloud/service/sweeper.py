"""The sweeper: removes, now and then, what was kept long enough or belongs to nobody.

In: the parts of a server or worker. Out: each sweep begins erasures again that ended early,
enforces retention, and forgets old operations, answers to `request_id`s and scratch folders. A deep
sweep, once a day, also looks through the blob store and the keys for what no row names: a crash
between two of our steps leaves such things, and never anything else.

Several processes may sweep at once: everything here can be done twice.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Generator, Iterable
from itertools import groupby
from typing import Any

import structlog
from sqlalchemy import Connection, delete, literal, select

from cloud.service import artifacts_store, erasure, messages, names, retention, scratch
from cloud.service.artifacts_store import CHECKPOINT, DRAFT
from cloud.service.parts import Parts
from cloud.service.state import now
from cloud.service.tables import Artifact, Base, Hold, Operation, Request, Upload, User
from protos.v1.users_pb2 import DeleteUserRequest

_DEEP_S = 86_400.0
_ADDING_TO_BASES = select(Operation.uid).where(
    Operation.end_time.is_(None),
    (Operation.method == "CreateBase") | Operation.uid.in_(select(Hold.operation_uid)),
)
"""Operations that may be storing files of a base: bases are lowered under a hold."""
_BATCH = 500
_log = structlog.get_logger(__name__)


class Sweeper:
    """Sweeps in a thread of its own while `running`, or when it is told to."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._database = parts.database
        self._suspects: set[tuple[str, str]] = set()
        self._stop = threading.Event()

    @contextlib.contextmanager
    def running(self) -> Generator[None]:
        """Sweep every `sweep_s` seconds until the block is left."""
        thread = threading.Thread(target=self._run, name="sweeper", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join(timeout=5)

    def sweep(self, deep: bool = True) -> dict[str, int]:
        """Sweep once; how much of each kind was done. What fails is left to the next sweep."""
        tasks: list[Callable[[], int]] = [
            self.erasures, self.expired, self.leftovers, self.operations, self.answers, self.scratch
        ]  # fmt: skip
        done: dict[str, int] = {}
        for task in tasks + [self.blobs, self.bases, self.keys, self.unfinished] * deep:
            try:
                done[task.__name__] = task()
            except Exception as error:  # the boundary of a thread: the next sweep tries again
                _log.warning("sweep failed", task=task.__name__, error=type(error).__name__)
        if any(done.values()):
            _log.info("swept", **done)
        return done

    def erasures(self) -> int:
        """Begin erasures again whose operation ended before the user was gone."""
        at_work = Operation.conflict_key == literal(erasure.KEY) + User.uid
        lost = select(User.uid, User.tenant, User.user_id).where(
            User.erasing, ~select(Operation.uid).where(at_work).exists()
        )
        with self._database.transaction() as connection:
            found = connection.execute(lost).all()
            for user in found:
                request = DeleteUserRequest(name=names.user(user.user_id))
                erasure.begin(
                    connection, self._parts.queue, self._parts.vault.shared, user.uid,
                    user.tenant, request,
                )  # fmt: skip
        return len(found)

    def expired(self) -> int:
        """Enforce the retention days of every consent."""
        return retention.enforce(self._parts)

    def leftovers(self) -> int:
        """Drafts and checkpoints of users for whom nothing runs."""
        at_work = select(Operation.uid).where(
            Operation.user_uid == Artifact.user_uid, Operation.end_time.is_(None)
        )
        left = Artifact.kind.in_((DRAFT, CHECKPOINT)) & ~at_work.exists()
        with self._database.transaction() as connection:
            return connection.execute(delete(Artifact).where(left)).rowcount

    def operations(self) -> int:
        """Operations that ended long ago, and what the job engine kept of them."""
        old = select(Operation.uid).where(Operation.end_time < self._horizon()).limit(_BATCH)
        count = 0
        while True:
            with self._database.transaction(write=False) as connection:
                uids = list(connection.execute(old).scalars())
            if not uids:
                return count
            self._parts.queue.forget(uids)
            with self._database.transaction() as connection:
                connection.execute(delete(Operation).where(Operation.uid.in_(uids)))
            count += len(uids)

    def answers(self) -> int:
        """Old answers to `request_id`s, and marks of old uploads."""
        old = (
            delete(Request).where(Request.create_time < self._horizon()),
            delete(Upload).where(Upload.update_time < self._horizon()),
        )
        with self._database.transaction() as connection:
            return sum(connection.execute(query).rowcount for query in old)

    def scratch(self) -> int:
        """Folders of jobs that are not running any more, on this host."""
        return scratch.sweep(self._parts.settings.resolved_scratch_dir, self._database)

    def blobs(self) -> int:
        """Blobs of users who are gone, and blobs that no artifact names."""
        listed = self._parts.vault.blobs.keys("users")
        return sum(
            self._blobs_of(tenant, uid, set(keys))
            for (tenant, uid), keys in groupby(listed, lambda key: tuple(key.split("/")[1:3]))
        )

    def _blobs_of(self, tenant: str, uid: str, listed: set[str]) -> int:
        with self._database.transaction(write=False) as connection:
            if connection.execute(select(User.uid).where(User.uid == uid)).first() is None:
                return self._parts.vault.destroy(tenant, uid)
            unneeded = listed - self._needed(connection, tenant, uid, listed)
        for key in unneeded:
            self._parts.vault.blobs.delete(key)
        return len(unneeded)

    def _needed(self, connection: Connection, tenant: str, uid: str, listed: set[str]) -> set[str]:
        """Keys of a user that must stay; all of them while an operation may be adding some."""
        at_work = select(Operation.uid).where(
            Operation.user_uid == uid, Operation.end_time.is_(None)
        )
        is_erasing = select(User.uid).where(User.uid == uid, User.erasing)
        if connection.execute(at_work).first() or connection.execute(is_erasing).first():
            return listed
        space = self._parts.vault.space(tenant, uid)
        mine = select(Artifact.uid, Artifact.sealed).where(Artifact.user_uid == uid)
        rows: Any = connection.execute(mine).all()
        return {
            f"{space.prefix}/{file.address}"
            for row in rows
            for file in artifacts_store.opened(space, row).files
        }

    def bases(self) -> int:
        """Blobs of bases that no row names; none while an operation may be adding some."""
        held = set(self._parts.vault.blobs.keys("shared"))
        with self._database.transaction(write=False) as connection:
            if connection.execute(_ADDING_TO_BASES).first():
                return 0
            unneeded = held - self._of_bases(connection)
        for key in unneeded:
            self._parts.vault.blobs.delete(key)
        return len(unneeded)

    def _of_bases(self, connection: Connection) -> set[str]:
        shared = self._parts.vault.shared
        bases: Any = connection.execute(select(Base.files)).all()
        lowered: Any = connection.execute(
            select(Artifact.uid, Artifact.sealed).where(Artifact.user_uid.is_(None))
        ).all()
        files = [
            *(file for row in bases for file in messages.base_files(row)),
            *(file for row in lowered for file in artifacts_store.opened(shared, row).files),
        ]
        return {f"{shared.prefix}/{file.address}" for file in files}

    def unfinished(self) -> int:
        """What killed writers have left half written."""
        return self._parts.vault.clean()

    def keys(self) -> int:
        """Keys whose user was never written; seen twice, since a user may just be in the making."""
        with self._database.transaction(write=False) as connection:
            tenants = list(connection.execute(select(User.tenant).distinct()).scalars())
        orphans = {pair for tenant in tenants for pair in self._orphans(tenant)}
        gone = orphans & self._suspects
        self._suspects = orphans - gone
        for tenant, uid in gone:
            self._parts.vault.destroy(tenant, uid)
        return len(gone)

    def _orphans(self, tenant: str) -> Iterable[tuple[str, str]]:
        owners = list(self._parts.vault.owners(tenant))
        for at in range(0, len(owners), _BATCH):
            batch = owners[at : at + _BATCH]
            with self._database.transaction(write=False) as connection:
                known = set(
                    connection.execute(select(User.uid).where(User.uid.in_(batch))).scalars()
                )
            yield from ((tenant, uid) for uid in batch if uid not in known)

    def _horizon(self) -> int:
        return now() - round(self._parts.settings.remember_days * retention.DAY)

    def _run(self) -> None:
        deep_at = 0.0
        while not self._stop.wait(self._parts.settings.sweep_s):
            deep = time.monotonic() >= deep_at
            if deep:
                deep_at = time.monotonic() + _DEEP_S
            self.sweep(deep)
