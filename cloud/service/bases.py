"""The service of bases, which all users of a tenant share. `beginnings.py` creates and lowers them.

Their files stand in the shared space, stored once whatever the number of tenants; which bases a
tenant has, its rows say.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from sqlalchemy import Connection, select

from cloud.service import artifacts_store, downloads, messages, pages
from cloud.service.auth import principal
from cloud.service.beginnings import BaseBeginnings, find_base
from cloud.service.boundary import Context
from cloud.service.errors import NotFound
from cloud.service.owned import PAGE_BYTES
from cloud.service.tables import Base
from cloud.service.vault import StoredFile
from protos.v1 import bases_pb2, bases_pb2_grpc

_COLLECTION = "bases"


class Bases(BaseBeginnings, bases_pb2_grpc.BaseServiceServicer):
    """`pocketune.v1.BaseService`."""

    async def GetBase(self, request: bases_pb2.GetBaseRequest, context: Context) -> bases_pb2.Base:
        tenant = principal.get().tenant

        def query(connection: Connection) -> bases_pb2.Base:
            row = find_base(connection, tenant, request.name)
            return messages.base(connection, row, self._vault.shared)

        return await self._database.read(query)

    async def ListBases(
        self, request: bases_pb2.ListBasesRequest, context: Context
    ) -> bases_pb2.ListBasesResponse:
        tenant = principal.get().tenant
        size = pages.size(request.page_size)
        last = pages.after(request.page_token, _COLLECTION, str)
        wanted = select(*Base.__table__.columns).where(Base.tenant == tenant)
        if last is not None:
            wanted = wanted.where(Base.base_id > last[0])
        wanted = wanted.order_by(Base.base_id).limit(size + 1)
        return await self._database.read(lambda c: self._page(c, c.execute(wanted).all(), size))

    def _page(self, connection: Connection, rows: Any, size: int) -> bases_pb2.ListBasesResponse:
        """As many bases as a message has room for."""
        page = bases_pb2.ListBasesResponse()
        total = 0
        for row in rows:
            base = messages.base(connection, row, self._vault.shared)
            total += base.ByteSize()
            if page.bases and (len(page.bases) == size or total > PAGE_BYTES):
                _, last = page.bases[-1].name.split("/")
                page.next_page_token = pages.token(_COLLECTION, [last])
                break
            page.bases.append(base)
        return page

    async def DownloadBase(
        self, request: bases_pb2.DownloadBaseRequest, context: Context
    ) -> AsyncIterator[bytes]:
        tenant, shared = principal.get().tenant, self._vault.shared

        def query(connection: Connection) -> StoredFile:
            base = find_base(connection, tenant, request.name)
            row = artifacts_store.base_bundle(connection, base.uid, request.recipe)
            if row is None:
                raise NotFound(f"{request.name} lowered with {request.recipe}")
            return artifacts_store.opened(shared, row).file(request.file)

        file = await self._database.read(query)
        async for chunk in downloads.send(context, shared, file, request.offset, request.length):
            yield chunk
