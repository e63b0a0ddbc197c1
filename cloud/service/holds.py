"""Work that is done once for all users, such as lowering a base: who is at it, while others wait.

A hold belongs to an attempt of an operation. It counts while that attempt is the operation's last,
the operation is open and its worker lives; otherwise the next one takes it over. So a hold needs
no clock, and none outlives its worker.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator

from sqlalchemy import Connection, delete, insert, select
from sqlalchemy.exc import IntegrityError

from cloud.service.pipeline import Job
from cloud.service.state import Database
from cloud.service.tables import Hold, Operation, Worker

_POLL_S = 0.5


@contextlib.contextmanager
def held(database: Database, job: Job, key: str, is_done: Callable[[], bool]) -> Generator[bool]:
    """Wait until nobody else is at it; gives True if it is now to be done here.

    False: somebody has done it meanwhile.

    Raises:
        Cancelled: the operation is no longer wanted.
    """
    while not is_done():
        if _take(database, job, key):
            try:
                yield not is_done()
            finally:
                _give_back(database, job, key)
            return
        job.report("waiting for another operation that does the same", 0.0)
        time.sleep(_POLL_S)
        job.check()
    yield False


def _take(database: Database, job: Job, key: str) -> bool:
    mine = {"operation_uid": job.operation.uid, "attempt": job.operation.attempt}
    try:
        with database.transaction() as connection:
            if _is_taken(connection, key, job.operation.uid):
                return False
            connection.execute(delete(Hold).where(Hold.key == key))
            connection.execute(insert(Hold).values(key=key, **mine))
    except IntegrityError:  # another one took it at the same moment
        return False
    return True


def _is_taken(connection: Connection, key: str, uid: str) -> bool:
    """Whether another operation is at it, and alive."""
    living = (
        select(Hold.operation_uid)
        .join(
            Operation,
            (Operation.uid == Hold.operation_uid) & (Operation.attempt == Hold.attempt),
        )
        .join(Worker, Worker.executor_id == Operation.worker)
        .where(Hold.key == key, Hold.operation_uid != uid, Operation.end_time.is_(None))
    )
    return connection.execute(living).first() is not None


def _give_back(database: Database, job: Job, key: str) -> None:
    mine = (Hold.operation_uid == job.operation.uid) & (Hold.attempt == job.operation.attempt)
    with database.transaction() as connection:
        connection.execute(delete(Hold).where(Hold.key == key, mine))
