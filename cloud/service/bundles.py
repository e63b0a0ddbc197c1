"""The service of bundles. Export is begun by `beginnings.py`, the rest stands here."""

from __future__ import annotations

from collections.abc import AsyncIterator

from google.protobuf.empty_pb2 import Empty

from cloud.service import messages
from cloud.service.beginnings import BundleBeginnings
from cloud.service.boundary import Context
from cloud.service.owned import Owned
from cloud.service.parts import Parts
from protos.v1 import bundles_pb2, bundles_pb2_grpc


class Bundles(BundleBeginnings, bundles_pb2_grpc.BundleServiceServicer):
    """`pocketune.v1.BundleService`."""

    def __init__(self, parts: Parts) -> None:
        BundleBeginnings.__init__(self, parts)
        self._bundles = Owned(
            parts.database, parts.vault, parts.audit, "AdapterBundle", "pocketune.dev/Bundle",
            messages.bundle,
        )  # fmt: skip

    async def GetBundle(
        self, request: bundles_pb2.GetBundleRequest, context: Context
    ) -> bundles_pb2.Bundle:
        return await self._bundles.get(request.name)

    async def ListBundles(
        self, request: bundles_pb2.ListBundlesRequest, context: Context
    ) -> bundles_pb2.ListBundlesResponse:
        found, more = await self._bundles.page(request)
        return bundles_pb2.ListBundlesResponse(bundles=found, next_page_token=more)

    async def DeleteBundle(
        self, request: bundles_pb2.DeleteBundleRequest, context: Context
    ) -> Empty:
        return await self._bundles.delete(request)

    def DownloadBundle(
        self, request: bundles_pb2.DownloadBundleRequest, context: Context
    ) -> AsyncIterator[bytes]:
        return self._bundles.send(request, context)
