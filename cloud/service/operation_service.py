"""The standard service `google.longrunning.Operations`, over the rows of `operations.py`.

Its requests are Google's, so `rules.py` does not know them: names are checked here.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, cast

from google.longrunning import operations_pb2 as longrunning
from google.longrunning import operations_pb2_grpc as longrunning_grpc
from google.protobuf.empty_pb2 import Empty
from sqlalchemy import Connection, Row, delete, select, tuple_

from cloud.service import names, operations, pages
from cloud.service.auth import principal
from cloud.service.boundary import Context
from cloud.service.errors import InvalidFields, Violation, WrongState
from cloud.service.parts import Parts
from cloud.service.tables import Operation

_COLLECTION = "operations"
_POLL_S = 0.2
_MAX_WAIT_S = 50.0


class Operations(longrunning_grpc.OperationsServicer):
    """`google.longrunning.Operations`: Get, List, Wait, Cancel, Delete."""

    def __init__(self, parts: Parts) -> None:
        self._database = parts.database
        self._vault = parts.vault
        self._queue = parts.queue
        self._audit = parts.audit

    async def GetOperation(
        self, request: longrunning.GetOperationRequest, context: Context
    ) -> longrunning.Operation:
        return await self._message(await self._find(request.name))

    async def ListOperations(
        self, request: longrunning.ListOperationsRequest, context: Context
    ) -> longrunning.ListOperationsResponse:
        """The tenant's operations, newest first. filter: empty, `done=true` or `done=false`."""
        tenant = principal.get().tenant
        size = pages.size(_checked_list(request))
        last = pages.after(request.page_token, _COLLECTION, int, str)
        query = select(*Operation.__table__.columns).where(Operation.tenant == tenant)
        if request.filter:
            is_open = Operation.end_time.is_(None)
            query = query.where(is_open if request.filter == "done=false" else ~is_open)
        if last is not None:
            query = query.where(tuple_(Operation.create_time, Operation.uid) < tuple(last))
        query = query.order_by(Operation.create_time.desc(), Operation.uid.desc()).limit(size + 1)
        rows = await self._database.read(lambda c: c.execute(query).all())
        more = ""
        if len(rows) > size:
            more = pages.token(_COLLECTION, [rows[size - 1].create_time, rows[size - 1].uid])
        found = [await self._message(row) for row in rows[:size]]
        return longrunning.ListOperationsResponse(operations=found, next_page_token=more)

    async def WaitOperation(
        self, request: longrunning.WaitOperationRequest, context: Context
    ) -> longrunning.Operation:
        """The operation when it is done, or as it stands when the time is up."""
        asked = request.timeout.seconds + request.timeout.nanos / 1e9
        left = cast("float | None", context.time_remaining())
        until = time.monotonic() + min(
            asked or _MAX_WAIT_S, _MAX_WAIT_S, _MAX_WAIT_S if left is None else left - 0.5
        )
        row = await self._find(request.name)
        while row.end_time is None and time.monotonic() < until:
            await asyncio.sleep(_POLL_S)
            row = await self._find(request.name)
        return await self._message(row)

    async def CancelOperation(
        self, request: longrunning.CancelOperationRequest, context: Context
    ) -> Empty:
        caller, row = principal.get(), await self._find(request.name)

        def cancel(connection: Connection) -> None:
            operations.request_cancel(connection, row.uid)
            self._audit.record(connection, caller, "CancelOperation", request.name)

        await self._database.write(cancel)
        return Empty()

    async def DeleteOperation(
        self, request: longrunning.DeleteOperationRequest, context: Context
    ) -> Empty:
        """Forget an operation that has ended, and first what the job engine keeps of it."""
        caller, row = principal.get(), await self._find(request.name)
        if row.end_time is None:
            raise WrongState(f"{request.name}: is not done; cancel it first")
        await asyncio.to_thread(self._queue.forget, [row.uid])

        def remove(connection: Connection) -> None:
            connection.execute(delete(Operation).where(Operation.uid == row.uid))
            self._audit.record(connection, caller, "DeleteOperation", request.name)

        await self._database.write(remove)
        return Empty()

    async def _find(self, name: str) -> Row[Any]:
        tenant = principal.get().tenant
        try:
            (uid,) = names.parts("pocketune.dev/Operation", name)
        except ValueError as error:
            raise InvalidFields([Violation("name", str(error))]) from None
        return await self._database.read(lambda c: operations.find(c, tenant, uid))

    async def _message(self, row: Row[Any]) -> longrunning.Operation:
        space = self._vault.shared
        if row.user_uid and row.sealed_result is not None:
            space = await self._vault.open(row.tenant, row.user_uid)
        return operations.to_message(row, space)


def _checked_list(request: longrunning.ListOperationsRequest) -> int:
    wrong: list[Violation] = []
    if request.name not in ("", _COLLECTION):
        wrong.append(Violation("name", f"expected {_COLLECTION}"))
    if request.filter not in ("", "done=true", "done=false"):
        wrong.append(Violation("filter", "expected nothing, done=true or done=false"))
    if request.page_size < 0:
        wrong.append(Violation("page_size", "expected 0 or more"))
    if wrong:
        raise InvalidFields(wrong)
    return request.page_size
