"""Begin a long-running operation: its row, its job and the answer to its `request_id`, or nothing.

In: what to begin (`operations.New`). Out: the `Operation`. All three are written in the caller's
transaction: no operation is without a job and no job without an operation. A repeated `request_id`
gets the first call's operation as it stands now.
"""

from __future__ import annotations

from collections.abc import Callable

from google.longrunning import operations_pb2 as longrunning
from sqlalchemy import Connection

from cloud.service import names, operations, requests
from cloud.service.jobs import JobQueue
from cloud.service.vault import Space


def launch(
    connection: Connection,
    queue: JobQueue,
    new: operations.New,
    space: Space,
    kind: str = "cpu",
    allow: Callable[[], None] = lambda: None,
) -> longrunning.Operation:
    """Write and queue an operation; `kind` is the queue's name.

    allow: raises where a new operation must not begin; a repeated call is answered all the same.

    Raises:
        Conflict: another one works on the same thing.
        InvalidFields: the `request_id` was used for another request.
    """
    first = requests.replay(connection, new.tenant, new.request, space, longrunning.Operation())
    if first is not None:
        (uid,) = names.parts("pocketune.dev/Operation", first.name)
        return operations.to_message(operations.find(connection, new.tenant, uid), space)
    allow()
    operation = operations.create(connection, new, space)
    named = longrunning.Operation(name=operation.name)
    requests.remember(connection, new.tenant, new.user_uid, new.request, space, named)
    queue.put(connection, new.tenant, new.uid, kind)
    return operation
