"""The client for code with an event loop.

Names are those of the API: `users/ann`, `users/ann/profiles/LaMP_4`, `bases/pocket`. A method that
starts long work returns an `Operation`; `wait` waits for its response. Every method raises a
`CallError`.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import grpc
from google.longrunning import operations_pb2 as longrunning
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from cloud.client import transfer
from cloud.client.errors import InvalidRequest, NotFound, Unreachable, of_call
from cloud.client.operation import Operation
from cloud.client.resources import Resources
from protos.progress import Progress, silent
from protos.v1 import (
    adapters_pb2,
    bases_pb2,
    bundles_pb2,
    profiles_pb2,
    transfer_pb2,
)

T = TypeVar("T", bound=Message)
STREAM_S = 3600.0
_WAIT_S = 1.0
_PATIENCE_S = 120.0


class AsyncClient(Resources):
    """A connection to one server; make it inside the event loop that uses it.

    address: `host:port`. credential: API key, token, or a function that gives one. tls: None for
    plain connections. timeout_s: deadline of each unary call, its retries included.
    """

    async def upload(
        self,
        profile: str,
        items: Sequence[profiles_pb2.Item],
        upload_id: str = "",
        progress: Progress = silent,
    ) -> profiles_pb2.AppendItemsResponse:
        """Append items; a broken stream goes on where the server has got to.

        upload_id: a UUID that names the upload. With the same one and the same items, another
        process goes on with an upload that this one did not finish.
        """
        upload_id = upload_id or str(uuid.uuid4())
        send = partial(
            self.profiles.AppendItems, timeout=STREAM_S, metadata=self._caller.metadata()
        )
        reached = partial(self._reached, profile, upload_id)
        try:
            return await transfer.upload(items, profile, upload_id, send, reached, progress)
        except grpc.aio.AioRpcError as error:
            raise of_call(error, self._caller.address) from None

    async def _reached(self, profile: str, upload_id: str) -> int:
        request = profiles_pb2.GetUploadRequest(parent=profile, request_id=upload_id)
        try:
            found = await self._call(self.profiles.GetUpload, request, profiles_pb2.Upload)
        except NotFound:
            return 0
        return found.next_index

    # Work

    async def augment(
        self, request: profiles_pb2.AugmentProfileRequest
    ) -> Operation[profiles_pb2.AugmentProfileResponse]:
        """Have a teacher write items in the user's manner."""
        answer = profiles_pb2.AugmentProfileResponse
        return await self._start(self.profiles.AugmentProfile, request, answer)

    async def train(
        self, request: adapters_pb2.TrainAdapterRequest
    ) -> Operation[adapters_pb2.Adapter]:
        """Train an adapter on a dataset."""
        return await self._start(self.adapters.TrainAdapter, request, adapters_pb2.Adapter)

    async def export(
        self, request: bundles_pb2.ExportBundleRequest
    ) -> Operation[bundles_pb2.Bundle]:
        """Package an adapter for the phone."""
        return await self._start(self.bundles.ExportBundle, request, bundles_pb2.Bundle)

    async def personalize(
        self, request: profiles_pb2.PersonalizeProfileRequest
    ) -> Operation[profiles_pb2.PersonalizeProfileResponse]:
        """The whole pipeline, from the profile's items to a verified bundle."""
        answer = profiles_pb2.PersonalizeProfileResponse
        return await self._start(self.profiles.PersonalizeProfile, request, answer)

    async def create_base(self, base_id: str, source: str) -> Operation[bases_pb2.Base]:
        """Take in a base model. source: `pocket`, or a name that the operator configured."""
        base = bases_pb2.Base(source=source)
        request = bases_pb2.CreateBaseRequest(base_id=base_id, base=base)
        return await self._start(self.bases.CreateBase, request, bases_pb2.Base)

    async def lower_base(self, base: str, recipe: str) -> Operation[bases_pb2.Base]:
        """Lower `bases/{base}` with a recipe; done once."""
        request = bases_pb2.LowerBaseRequest(name=base, recipe=recipe)
        return await self._start(self.bases.LowerBase, request, bases_pb2.Base)

    # Operations

    async def get_operation(self, name: str, answer: type[T]) -> Operation[T]:
        """The operation `operations/{operation}` as it stands. answer: type of its response."""
        request = longrunning.GetOperationRequest(name=name)
        method = self.operations.GetOperation
        return Operation(await self._call(method, request, longrunning.Operation), answer)

    def list_operations(self, only_open: bool = False) -> AsyncIterator[longrunning.Operation]:
        """The tenant's operations, newest first."""
        given = "done=false" if only_open else ""
        request = longrunning.ListOperationsRequest(name="operations", filter=given)
        answer = longrunning.ListOperationsResponse
        return self._caller.pages(self.operations.ListOperations, request, answer)

    async def wait(self, operation: Operation[T], progress: Progress = silent) -> T:
        """Wait until the operation has ended; returns its response.

        Raises:
            CallError: the operation failed or was cancelled, or the server stays away.
        """
        return (await self.settle(operation, progress)).response()

    async def settle(self, operation: Operation[T], progress: Progress = silent) -> Operation[T]:
        """Wait until the operation has ended, in whatever way; returns its last state.

        A server that is away for two minutes or less is waited for: the operation goes on there.
        """
        seen = time.monotonic()
        while not operation.done:
            request = longrunning.WaitOperationRequest(name=operation.name)
            request.timeout.FromMilliseconds(round(_WAIT_S * 1000))
            try:
                raw = await self._call(
                    self.operations.WaitOperation, request, longrunning.Operation
                )
            except Unreachable:
                if time.monotonic() - seen > _PATIENCE_S:
                    raise
                await asyncio.sleep(_WAIT_S)
                continue
            seen = time.monotonic()
            operation = Operation(raw, operation.answer)
            progress(operation.shown(), operation.metadata.progress)
        return operation

    async def cancel(self, name: str) -> None:
        """Ask for an operation to end; it does within a second."""
        request = longrunning.CancelOperationRequest(name=name)
        await self._call(self.operations.CancelOperation, request, Empty)

    async def download(
        self, name: str, folder: Path, recipe: str = "", progress: Progress = silent
    ) -> list[Path]:
        """Bring all files of a bundle, an adapter or a lowered base to `folder`.

        name: of the resource. recipe: which BaseBundle, for a base. Files that are there already
        are not fetched again, and a broken or interrupted download goes on where it was.

        Raises:
            DataLoss: a file is not what the server says it is.
        """
        files, fetch = await self._source(name, recipe)
        total = sum(file.size_bytes for file in files) or 1
        before, paths = 0, list[Path]()

        def told(done: int) -> None:
            progress(file.path, (before + done) / total)

        for file in files:
            paths.append(transfer.target_of(folder, file))
            try:
                await transfer.download(file, paths[-1], partial(fetch, file.path), told)
            except grpc.aio.AioRpcError as error:
                raise of_call(error, self._caller.address) from None
            before += file.size_bytes
        return paths

    async def _source(
        self, name: str, recipe: str
    ) -> tuple[Sequence[transfer_pb2.ArtifactFile], Any]:
        """The files of a resource, and what fetches one of them from an offset."""
        kind = name.split("/")[-2] if "/" in name else ""
        if kind == "bundles":
            files = (await self.get_bundle(name)).files
            stub, make = self.bundles.DownloadBundle, bundles_pb2.DownloadBundleRequest
        elif kind == "adapters":
            files = (await self.get_adapter(name)).files
            stub, make = self.adapters.DownloadAdapter, adapters_pb2.DownloadAdapterRequest
        elif kind == "bases":
            lowered = (await self.get_base(name)).base_bundles
            found = [bundle for bundle in lowered if recipe in ("", bundle.recipe)]
            if not found:
                raise NotFound(f"{name}: not lowered with {recipe or 'any recipe'} yet")
            files, recipe = found[0].files, found[0].recipe
            stub = self.bases.DownloadBase
            make = partial(bases_pb2.DownloadBaseRequest, recipe=recipe)
        else:
            raise InvalidRequest(f"{name}: expected the name of a bundle, an adapter or a base")

        def fetch(path: str, offset: int) -> AsyncIterator[transfer_pb2.Chunk]:
            request = make(name=name, file=path, offset=offset)
            return stub(request, timeout=STREAM_S, metadata=self._caller.metadata())

        return files, fetch
