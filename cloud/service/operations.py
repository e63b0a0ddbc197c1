"""Long-running operations as rows: how they begin, move, end and look outside.

An operation is written in the transaction that queues its job (`jobs.py`), together with the answer
to its `request_id`. `conflict_key` is unique among operations that are not done: a second operation
on the same user is refused. `attempt` fences: a worker that was taken for dead and still runs finds
that the attempt is no longer its own, and what it writes is ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from google.longrunning import operations_pb2 as longrunning
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import status_pb2
from sqlalchemy import Connection, Row, bindparam, insert, select, update

from cloud.service import names
from cloud.service.errors import Cancelled, Conflict, NotFound, to_status
from cloud.service.state import new_uid, now
from cloud.service.tables import Operation
from cloud.service.users import timestamp
from cloud.service.vault import Space
from protos.v1 import operations_pb2

_FIND = select(*Operation.__table__.columns).where(Operation.uid == bindparam("uid"))
_MIN_PROGRESS_FOR_ETA = 0.02


@dataclass(frozen=True)
class New:
    """An operation to begin.

    method: of the API. target: name of the resource. conflict_key: what no other operation may
    work on at the same time (the user's uid; a base's uid and recipe). request: kept sealed.
    base_uid: of the base that it trains for.
    """

    tenant: str
    user_uid: str | None
    method: str
    target: str
    conflict_key: str
    request: Message
    base_uid: str | None = None
    uid: str = field(default_factory=new_uid)


def create(connection: Connection, new: New, space: Space) -> longrunning.Operation:
    """Write a new operation.

    Raises:
        Conflict: another one works on the same thing.
    """
    busy = select(Operation.uid).where(Operation.conflict_key == new.conflict_key)
    if found := connection.execute(busy).scalar():
        raise Conflict(f"{new.target}: {names.operation(found)} is at work; cancel it or wait")
    sealed = space.seal(new.request.SerializeToString(), f"operations/{new.uid}/request")
    connection.execute(
        insert(Operation).values(
            uid=new.uid,
            tenant=new.tenant,
            user_uid=new.user_uid,
            method=new.method,
            target=new.target,
            conflict_key=new.conflict_key,
            stage=operations_pb2.STAGE_QUEUED,
            progress=0.0,
            message="",
            counters={},
            attempt=0,
            worker="",
            cancel_requested=False,
            sealed_request=sealed,
            base_uid=new.base_uid,
            create_time=now(),
        )
    )
    return to_message(find(connection, new.tenant, new.uid), space)


def find(connection: Connection, tenant: str, uid: str) -> Row[Any]:
    """The row of a tenant's operation.

    Raises:
        NotFound: there is none, or it is another tenant's.
    """
    row = by_uid(connection, uid)
    if row is None or row.tenant != tenant:
        raise NotFound(names.operation(uid))
    return row


def by_uid(connection: Connection, uid: str) -> Row[Any] | None:
    """The row of any tenant's operation: for workers."""
    return connection.execute(_FIND, {"uid": uid}).first()


def begin(connection: Connection, uid: str, worker: str) -> Row[Any] | None:
    """Take an operation: its attempt is now this worker's. None: it is done, or gone.

    The progress and the message of the attempt before go in the same change; its stage and its
    counters stay, since finished stages are not begun again.
    """
    changed = connection.execute(
        update(Operation)
        .where(Operation.uid == uid, Operation.end_time.is_(None))
        .values(attempt=Operation.attempt + 1, worker=worker, progress=0.0, message="")
    )
    if changed.rowcount != 1:
        return None
    unstarted = (Operation.uid == uid) & Operation.start_time.is_(None)
    connection.execute(update(Operation).where(unstarted).values(start_time=now()))
    return by_uid(connection, uid)


def advance(
    connection: Connection,
    uid: str,
    attempt: int,
    *,
    stage: int,
    progress: float,
    message: str,
    counters: Mapping[str, float],
) -> None:
    """Write how far an operation is; ignored if the attempt is no longer the caller's."""
    connection.execute(
        update(Operation)
        .where(
            Operation.uid == uid, Operation.attempt == attempt, Operation.end_time.is_(None)
        )
        .values(stage=stage, progress=progress, message=message[:200], counters=dict(counters))
    )  # fmt: skip


def is_wanted(connection: Connection, uid: str, attempt: int) -> bool:
    """Whether a worker should go on: nobody cancelled it, erased it or took it over."""
    row = connection.execute(
        select(Operation.attempt, Operation.cancel_requested, Operation.end_time)
        .where(Operation.uid == uid)
    ).first()  # fmt: skip
    return bool(
        row and row.attempt == attempt and not row.cancel_requested and row.end_time is None
    )


def may_begin(connection: Connection, uid: str, attempt: int) -> bool:
    """Whether it is still to be begun: it has not ended, nor been cancelled since this attempt."""
    row = by_uid(connection, uid)
    return bool(
        row and row.end_time is None and not (row.cancel_requested and row.attempt == attempt)
    )


def finish(
    connection: Connection,
    uid: str,
    attempt: int,
    space: Space,
    outcome: Message | status_pb2.Status,
) -> bool:
    """End an operation, with a result or a status; False if it was not the caller's to end."""
    values: dict[str, Any] = {"end_time": now(), "conflict_key": None, "message": ""}
    if isinstance(outcome, status_pb2.Status):
        values["error"] = outcome.SerializeToString()
    else:
        packed = AnyMessage()
        packed.Pack(outcome)
        sealed = space.seal(packed.SerializeToString(), f"operations/{uid}/result")
        values |= {"sealed_result": sealed, "progress": 1.0, "stage": operations_pb2.STAGE_DONE}
    mine = (Operation.uid == uid) & (Operation.attempt == attempt) & Operation.end_time.is_(None)
    return connection.execute(update(Operation).where(mine).values(values)).rowcount == 1


def request_cancel(connection: Connection, uid: str) -> bool:
    """Ask an operation to end. One that no worker holds ends at once: then True.

    An erasure cannot be taken back, and goes on.
    """
    may_end = Operation.end_time.is_(None) & (Operation.method != "DeleteUser")
    connection.execute(
        update(Operation).where(Operation.uid == uid, may_end).values(cancel_requested=True)
    )
    error = to_status(Cancelled("cancelled before it began")).SerializeToString()
    waiting = (Operation.uid == uid) & (Operation.attempt == 0) & may_end
    ended = connection.execute(
        update(Operation)
        .where(waiting)
        .values(end_time=now(), conflict_key=None, error=error)
    )  # fmt: skip
    return ended.rowcount == 1


def to_message(row: Row[Any], space: Space) -> longrunning.Operation:
    """The `google.longrunning.Operation` of a row."""
    operation = longrunning.Operation(
        name=names.operation(row.uid), done=row.end_time is not None
    )  # fmt: skip
    operation.metadata.Pack(_metadata(row))
    if row.error is not None:
        operation.error.ParseFromString(row.error)
    elif row.sealed_result is not None:
        result = space.unseal(row.sealed_result, f"operations/{row.uid}/result")
        operation.response.ParseFromString(result)
    return operation


def _metadata(row: Row[Any]) -> operations_pb2.OperationMetadata:
    metadata = operations_pb2.OperationMetadata(
        method=row.method, target=row.target, stage=row.stage, progress=row.progress,
        counters=row.counters, message=row.message, attempt=row.attempt,
        cancel_requested=row.cancel_requested, create_time=timestamp(row.create_time),
    )  # fmt: skip
    # The clocks of hosts differ, and jump: whatever they say, nothing ends before it began.
    started = max(row.create_time, row.start_time or 0)
    if row.start_time is not None:
        metadata.start_time.CopyFrom(timestamp(started))
    if row.end_time is not None:
        metadata.end_time.CopyFrom(timestamp(max(started, row.end_time)))
    elif row.start_time is not None and row.progress >= _MIN_PROGRESS_FOR_ETA:
        left = Duration()
        spent = max(0, now() - started)
        left.FromMicroseconds(round(spent * (1 - row.progress) / row.progress))
        metadata.time_left.CopyFrom(left)
    return metadata
