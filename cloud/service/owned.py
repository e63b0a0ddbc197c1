"""Artifacts of a user as resources: read, listed newest first, deleted and sent.

In: names, page tokens and requests of the API. Out: messages. Adapters and bundles differ in their
kind and in how they look outside; everything else stands here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from sqlalchemy import Connection, Row, Select, bindparam, select, tuple_

from cloud.service import artifacts_store, downloads, names, pages, requests
from cloud.service.artifacts_store import Facts
from cloud.service.audit import AuditLog
from cloud.service.auth import Principal, principal
from cloud.service.boundary import Context
from cloud.service.errors import Conflict, NotFound
from cloud.service.state import Database
from cloud.service.tables import Artifact, Operation, User
from cloud.service.users import IS_CALLERS, find_user
from cloud.service.vault import Vault

PAGE_BYTES = 2 * 1024 * 1024
_FIND = (
    artifacts_store.rows()
    .join(User, User.uid == Artifact.user_uid)
    .where(
        IS_CALLERS,
        Artifact.kind == bindparam("kind"),
        Artifact.artifact_id == bindparam("artifact_id"),
    )
)
M = TypeVar("M", bound=Message)


class ListRequest(Protocol):
    """Any request for a page of what a user has."""

    parent: str
    page_size: int
    page_token: str


class DownloadRequest(Protocol):
    """Any request for a file of an artifact of a user."""

    name: str
    file: str
    offset: int
    length: int


def newest_first(query: Select[Any], table: Any, last: list[Any] | None, size: int) -> Select[Any]:
    """The rows of one page and one more, found by an index over `create_time` and `uid`."""
    if last is not None:
        query = query.where(tuple_(table.create_time, table.uid) < tuple(last))
    return query.order_by(table.create_time.desc(), table.uid.desc()).limit(size + 1)


def fitting(found: Iterable[Row[Any]], size: int) -> tuple[list[Row[Any]], bool]:
    """As many rows as a page has room for, and whether there are more."""
    rows: list[Row[Any]] = []
    total = 0
    for row in found:
        total += len(row.sealed)
        if rows and (len(rows) == size or total > PAGE_BYTES):
            return rows, True
        rows.append(row)
    return rows, False


def refuse_while_at_work(connection: Connection, user_uid: str, user_id: str) -> None:
    """Nothing that an operation may be reading is deleted under it.

    Raises:
        Conflict: an operation on this user is not done.
    """
    busy = select(Operation.uid).where(Operation.conflict_key == user_uid)
    if connection.execute(busy).first():
        raise Conflict(f"{names.user(user_id)}: an operation is at work; cancel it or wait")


@dataclass(frozen=True)
class Owned(Generic[M]):
    """One kind of artifact. resource: type of its names. look: row, facts, user id -> message."""

    database: Database
    vault: Vault
    audit: AuditLog
    kind: str
    resource: str
    look: Callable[[Row[Any], Facts, str], M]

    async def get(self, name: str) -> M:
        """One artifact."""
        row, facts, user_id = await self._open(name)
        return self.look(row, facts, user_id)

    async def page(self, request: ListRequest) -> tuple[list[M], str]:
        """The artifacts of one page, and the token of the next."""
        tenant = principal.get().tenant
        (user_id,) = names.parts("pocketune.dev/User", request.parent)
        size = pages.size(request.page_size)
        collection = f"{request.parent}/{self.kind}"
        last = pages.after(request.page_token, collection, int, str)

        def query(connection: Connection) -> tuple[str, list[Row[Any]], bool]:
            user = find_user(connection, tenant, user_id)
            mine = artifacts_store.rows().where(
                Artifact.user_uid == user.uid, Artifact.kind == self.kind
            )
            found = connection.execute(newest_first(mine, Artifact, last, size))
            return user.uid, *fitting(found, size)

        uid, rows, more = await self.database.read(query)
        space = await self.vault.open(tenant, uid)
        token = pages.token(collection, [rows[-1].create_time, rows[-1].uid]) if more else ""
        return [self.look(r, artifacts_store.opened(space, r), user_id) for r in rows], token

    async def delete(self, request: Any) -> Empty:
        """Delete an artifact, and what only it has in the blob store."""
        caller = principal.get()
        keys = await self.database.write(lambda c: self._delete(c, caller, request))
        await asyncio.to_thread(self._remove, keys)
        return Empty()

    async def send(self, request: DownloadRequest, context: Context) -> AsyncIterator[bytes]:
        """A range of one file."""
        row, facts, _ = await self._open(request.name)
        space = await self.vault.open(principal.get().tenant, row.user_uid)
        file = facts.file(request.file)
        async for chunk in downloads.send(context, space, file, request.offset, request.length):
            yield chunk

    async def _open(self, name: str) -> tuple[Row[Any], Facts, str]:
        tenant = principal.get().tenant
        user_id, artifact_id = names.parts(self.resource, name)

        key = {
            "tenant": tenant, "user_id": user_id, "kind": self.kind, "artifact_id": artifact_id,
        }  # fmt: skip

        def query(connection: Connection) -> Row[Any]:
            row = connection.execute(_FIND, key).first()
            if row is None:
                find_user(connection, tenant, user_id)
                raise NotFound(name)
            return row

        row = await self.database.read(query)
        space = await self.vault.open(tenant, row.user_uid)
        return row, artifacts_store.opened(space, row), user_id

    def _row(self, connection: Connection, user_uid: str, artifact_id: str, name: str) -> Row[Any]:
        row = artifacts_store.find(connection, user_uid, self.kind, artifact_id)
        if row is None:
            raise NotFound(name)
        return row

    def _delete(self, connection: Connection, caller: Principal, request: Any) -> list[str]:
        user_id, artifact_id = names.parts(self.resource, request.name)
        user = find_user(connection, caller.tenant, user_id)
        space = self.vault.space(caller.tenant, user.uid)
        if requests.replay(connection, caller.tenant, request, space, Empty()) is not None:
            return []
        row = self._row(connection, user.uid, artifact_id, request.name)
        refuse_while_at_work(connection, user.uid, user_id)
        keys = artifacts_store.release(connection, space, row)
        requests.remember(connection, caller.tenant, user.uid, request, space, Empty())
        method = request.DESCRIPTOR.name.removesuffix("Request")
        self.audit.record(connection, caller, method, request.name)
        return keys

    def _remove(self, keys: list[str]) -> None:
        """After the commit: a crash before it leaves blobs that the sweeper finds."""
        for key in keys:
            self.vault.blobs.delete(key)
