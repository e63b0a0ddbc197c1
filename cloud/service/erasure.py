"""Erasure of a user: everything that was kept of them, and a signed receipt of it.

In: `DeleteUser`. Out: an operation whose answer is an `ErasureReceipt`. From the moment the call
is answered the user is NOT_FOUND and their operations are cancelled. Then, as stages of a job:

    stop    wait for what still runs; after a while take the fence away from it
    list    write down what there is
    remove  destroy the key, remove blobs, rows, jobs and scratch folders

Each stage may run twice. What is left of the user are the operation with its receipt, until it
expires, and salted hashes in the audit log. An erasure cannot be taken back: one whose operation
ended early is begun again by the sweeper.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from google.longrunning import operations_pb2 as longrunning
from sqlalchemy import Connection, delete, func, select, update

from cloud.service import names, operations, requests, scratch
from cloud.service.artifacts_store import CHECKPOINT, DRAFT
from cloud.service.audit import server_key
from cloud.service.auth import Principal, principal
from cloud.service.boundary import Context
from cloud.service.errors import Cancelled, to_status
from cloud.service.jobs import JobQueue
from cloud.service.launch import launch
from cloud.service.parts import Parts
from cloud.service.pipeline import Job, Pipeline, Result, Stage
from cloud.service.receipts import Signer
from cloud.service.state import now
from cloud.service.tables import Artifact, Item, Operation, ParityReport, Profile, Request, User
from cloud.service.users import Users, find_user, timestamp
from cloud.service.vault import Space
from protos.v1 import operations_pb2, users_pb2

METHOD = "DeleteUser"
QUEUE = "erase"
"""A queue of its own, so that an erasure never waits behind a training."""
KEY = "erase/"
"""Beginning of the conflict key of an erasure; the uid of the user follows."""
_POLL_S = 0.1


class ErasableUsers(Users):
    """`pocketune.v1.UserService`, with DeleteUser."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts.database, parts.vault, parts.audit)
        self._queue = parts.queue

    async def DeleteUser(
        self, request: users_pb2.DeleteUserRequest, context: Context
    ) -> longrunning.Operation:
        caller = principal.get()
        return await self._database.write(lambda c: self._begin(c, caller, request))

    def _begin(
        self, connection: Connection, caller: Principal, request: users_pb2.DeleteUserRequest
    ) -> longrunning.Operation:
        shared = self._vault.shared
        first = requests.replay(
            connection, caller.tenant, request, shared, longrunning.Operation()
        )  # fmt: skip
        if first is not None:
            (uid,) = names.parts("pocketune.dev/Operation", first.name)
            return operations.to_message(operations.find(connection, caller.tenant, uid), shared)
        (user_id,) = names.parts("pocketune.dev/User", request.name)
        user = find_user(connection, caller.tenant, user_id)
        self._audit.record(connection, caller, METHOD, request.name)
        return begin(connection, self._queue, shared, user.uid, caller.tenant, request)


def begin(
    connection: Connection,
    queue: JobQueue,
    shared: Space,
    user_uid: str,
    tenant: str,
    request: users_pb2.DeleteUserRequest,
) -> longrunning.Operation:
    """Hide a user, cancel what runs for them, and queue the rest.

    The operation is nobody's: request and receipt are not sealed with the key that it destroys.
    """
    new = operations.New(tenant, None, METHOD, request.name, f"{KEY}{user_uid}", request)
    operation = launch(connection, queue, new, shared, QUEUE)
    connection.execute(update(User).where(User.uid == user_uid).values(erasing=True))
    connection.execute(delete(Request).where(Request.user_uid == user_uid))
    _cancel_all(connection, user_uid)
    return operation


def pipeline(parts: Parts) -> Pipeline:
    """How `DeleteUser` is done by a worker."""
    erasure = _Erasure(parts, Signer(server_key(parts.settings)))
    number = operations_pb2.STAGE_ERASE
    stages = [
        Stage("stop", number, 0.2, erasure.stop),
        Stage("list", number, 0.1, erasure.list),
        Stage("remove", number, 0.7, erasure.remove),
    ]
    return Pipeline(stages, erasure.receipt, in_turn=False)


@dataclass(frozen=True)
class _Erasure:
    parts: Parts
    signer: Signer

    def stop(self, job: Job) -> Result:
        """Wait until nothing runs for the user; who does not stop is fenced off."""
        uid, database = _user_uid(job), self.parts.database
        until = time.monotonic() + self.parts.settings.worker_timeout_s
        while True:
            with database.transaction() as connection:
                running = _cancel_all(connection, uid)
                if not running:
                    return {}
                if time.monotonic() > until:
                    _fence(connection, uid)
                    return {}
            time.sleep(_POLL_S)

    def list(self, job: Job) -> Result:
        """What there is: ids of artifacts, and counts of everything."""
        uid = _user_uid(job)
        with self.parts.database.transaction(write=False) as connection:
            rows = connection.execute(
                select(Artifact.kind, Artifact.artifact_id).where(Artifact.user_uid == uid)
            ).all()
            counts = _counts(connection, uid)
        for row in rows:
            counts[_COUNTED[row.kind]] = counts.get(_COUNTED[row.kind], 0) + 1
        blobs = self.parts.vault.blobs.keys(f"users/{job.operation.tenant}/{uid}")
        counts["blobs"] = sum(1 for _ in blobs)
        digests = {row.artifact_id for row in rows if row.kind != CHECKPOINT}
        return {"digests": sorted(digests), "counts": counts}

    def remove(self, job: Job) -> Result:
        """The key first: whatever a crash leaves behind nobody can read any more."""
        uid, parts = _user_uid(job), self.parts
        parts.vault.destroy(job.operation.tenant, uid)
        erased = now()
        with parts.database.transaction(write=False) as connection:
            mine = select(Operation.uid).where(Operation.user_uid == uid)
            uids = list(connection.execute(mine).scalars())
        parts.queue.forget(uids)
        for each in uids:
            scratch.remove(parts.settings.resolved_scratch_dir, each)
        with parts.database.transaction() as connection:
            for table in (Operation, Request, Artifact, ParityReport, Profile):
                connection.execute(delete(table).where(table.user_uid == uid))
            connection.execute(delete(User).where(User.uid == uid))
            worker = Principal(job.operation.tenant, "worker")
            parts.audit.record(connection, worker, METHOD, job.operation.target, "ERASED")
        parts.database.erase_traces()
        return {"erased": erased}

    def receipt(self, job: Job) -> users_pb2.ErasureReceipt:
        """The signed answer, from what the stages returned."""
        listed = job.results["list"]
        return self.signer.sign(
            users_pb2.ErasureReceipt(
                user=job.operation.target,
                uid=_user_uid(job),
                erase_time=timestamp(job.results["remove"]["erased"]),
                digests=listed["digests"],
                counts=listed["counts"],
            )
        )


_COUNTED = {
    "Dataset": "datasets",
    "Adapter": "adapters",
    "AdapterBundle": "bundles",
    DRAFT: "drafts",
    CHECKPOINT: "checkpoints",
}


def _user_uid(job: Job) -> str:
    return str(job.operation.conflict_key).removeprefix(KEY)


def _cancel_all(connection: Connection, user_uid: str) -> int:
    """Ask every operation of a user to end; returns how many have not yet."""
    still = select(Operation.uid).where(
        Operation.user_uid == user_uid, Operation.end_time.is_(None)
    )
    return sum(
        not operations.request_cancel(connection, uid)
        for uid in list(connection.execute(still).scalars())
    )


def _fence(connection: Connection, user_uid: str) -> None:
    """End operations whose worker does not answer: what it writes from now on is ignored."""
    error = to_status(Cancelled("the user was erased")).SerializeToString()
    connection.execute(
        update(Operation)
        .where(Operation.user_uid == user_uid, Operation.end_time.is_(None))
        .values(
            attempt=Operation.attempt + 1, end_time=now(), conflict_key=None, error=error
        )
    )  # fmt: skip


def _counts(connection: Connection, user_uid: str) -> dict[str, int]:
    of_user: dict[str, Any] = {
        "items": select(func.count())
        .select_from(Item)
        .join(Profile, Profile.uid == Item.profile_uid)
        .where(Profile.user_uid == user_uid),
        "profiles": select(func.count()).where(Profile.user_uid == user_uid),
        "parityReports": select(func.count()).where(ParityReport.user_uid == user_uid),
        "jobs": select(func.count()).where(Operation.user_uid == user_uid),
    }
    return {name: connection.execute(query).scalar_one() for name, query in of_user.items()}
