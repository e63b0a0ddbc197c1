"""The service of adapters. Training is begun by `beginnings.py`, the rest stands here."""

from __future__ import annotations

from collections.abc import AsyncIterator

from google.protobuf.empty_pb2 import Empty

from cloud.service import messages
from cloud.service.beginnings import AdapterBeginnings
from cloud.service.boundary import Context
from cloud.service.owned import Owned
from cloud.service.parts import Parts
from protos.v1 import adapters_pb2, adapters_pb2_grpc


class Adapters(AdapterBeginnings, adapters_pb2_grpc.AdapterServiceServicer):
    """`pocketune.v1.AdapterService`."""

    def __init__(self, parts: Parts) -> None:
        AdapterBeginnings.__init__(self, parts)
        self._adapters = Owned(
            parts.database,
            parts.vault,
            parts.audit,
            "Adapter",
            "pocketune.dev/Adapter",
            messages.adapter,
        )

    async def GetAdapter(
        self, request: adapters_pb2.GetAdapterRequest, context: Context
    ) -> adapters_pb2.Adapter:
        return await self._adapters.get(request.name)

    async def ListAdapters(
        self, request: adapters_pb2.ListAdaptersRequest, context: Context
    ) -> adapters_pb2.ListAdaptersResponse:
        found, more = await self._adapters.page(request)
        return adapters_pb2.ListAdaptersResponse(adapters=found, next_page_token=more)

    async def DeleteAdapter(
        self, request: adapters_pb2.DeleteAdapterRequest, context: Context
    ) -> Empty:
        return await self._adapters.delete(request)

    def DownloadAdapter(
        self, request: adapters_pb2.DownloadAdapterRequest, context: Context
    ) -> AsyncIterator[bytes]:
        return self._adapters.send(request, context)
