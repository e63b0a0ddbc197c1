"""Items to the server and files from it, in streams that go on where they broke off.

Both sides of a transfer say how far it has come: the server keeps `next_index` of an upload, the
client the bytes of a `.part` file. So a break costs what was under way and no more, also when this
process ends and another one goes on. A transfer is given up when several tries in a row have moved
nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath

import grpc

from cloud.client.errors import DataLoss
from protos.progress import Progress
from protos.v1 import profiles_pb2, transfer_pb2

BATCH_ITEMS = 100
BATCH_BYTES = 512 * 1024
TRIES = 6
_BACKOFF_S = 0.2
_MAX_BACKOFF_S = 5.0
_PASSING = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.INTERNAL,  # a connection reset in mid-stream
    grpc.StatusCode.UNKNOWN,
)
Request = profiles_pb2.AppendItemsRequest
Send = Callable[[AsyncIterator[Request]], Awaitable[profiles_pb2.AppendItemsResponse]]
Fetch = Callable[[int], AsyncIterator[transfer_pb2.Chunk]]


class Patience:
    """Says whether to try again after a break, and waits longer each time nothing has moved."""

    def __init__(self) -> None:
        self._left = TRIES
        self._reached = -1

    async def after(self, error: grpc.aio.AioRpcError, reached: int) -> None:
        """Wait before the next try. reached: how far the transfer has come.

        Raises:
            AioRpcError: the error given, if trying again is of no use.
        """
        self._left = TRIES if reached > self._reached else self._left - 1
        self._reached = reached
        if error.code() not in _PASSING or self._left <= 0:
            raise error
        await asyncio.sleep(min(_BACKOFF_S * 2 ** (TRIES - self._left), _MAX_BACKOFF_S))


async def upload(
    items: Sequence[profiles_pb2.Item],
    profile: str,
    upload_id: str,
    send: Send,
    reached: Callable[[], Awaitable[int]],
    progress: Progress,
) -> profiles_pb2.AppendItemsResponse:
    """Send all items, or the rest of them. reached: asks the server for `next_index`."""
    patience = Patience()
    start = await reached()
    while True:
        try:
            return await send(_requests(items, profile, upload_id, start, progress))
        except grpc.aio.AioRpcError as error:
            await patience.after(error, start)
            start = await reached()


async def _requests(
    items: Sequence[profiles_pb2.Item], profile: str, upload_id: str, start: int, progress: Progress
) -> AsyncIterator[Request]:
    """The messages of the stream from `start` on; at least one."""
    yield Request(parent=profile, request_id=upload_id, first_index=start)
    for first, batch in batches(items, start):
        yield Request(first_index=first, items=batch)
        done = first + len(batch)
        progress(f"{done} of {len(items)} items", done / len(items))


def batches(
    items: Sequence[profiles_pb2.Item], start: int
) -> Iterator[tuple[int, list[profiles_pb2.Item]]]:
    """Runs of items that fit into a message, each with the position of its first."""
    batch: list[profiles_pb2.Item] = []
    size = 0
    for position in range(start, len(items)):
        item = items[position]
        if batch and (len(batch) == BATCH_ITEMS or size + item.ByteSize() > BATCH_BYTES):
            yield position - len(batch), batch
            batch, size = [], 0
        batch.append(item)
        size += item.ByteSize()
    if batch:
        yield len(items) - len(batch), batch


def target_of(folder: Path, file: transfer_pb2.ArtifactFile) -> Path:
    """Where a file goes; a path that would leave the folder is refused.

    Raises:
        DataLoss: the server named such a path.
    """
    parts = PurePosixPath(file.path).parts
    if not parts or any(p in ("/", "..") or "\\" in p or ":" in p or "\0" in p for p in parts):
        raise DataLoss(f"the server names a file {file.path!r}, which could be anywhere")
    return folder.joinpath(*parts)


async def download(
    file: transfer_pb2.ArtifactFile, target: Path, fetch: Fetch, progress: Callable[[int], None]
) -> None:
    """Bring one file to `target`; nothing is fetched that is there already.

    fetch: a stream of chunks from an offset. progress: gets the bytes that are there.

    Raises:
        DataLoss: what arrived has another digest.
        AioRpcError: the stream broke too often.
    """
    if await asyncio.to_thread(_is_whole, file, target):
        return progress(file.size_bytes)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    patience = Patience()
    while (have := _size(part)) != file.size_bytes:
        if have > file.size_bytes:
            part.unlink()
            continue
        try:
            await _receive(part, have, fetch(have), progress)
        except grpc.aio.AioRpcError as error:
            await patience.after(error, _size(part))
            continue
        if _size(part) < file.size_bytes:
            raise DataLoss(f"{file.path}: ended after {_size(part)} of {file.size_bytes} bytes")
    if not file.size_bytes:
        part.touch()
    if not await asyncio.to_thread(_is_whole, file, part):
        part.unlink()
        raise DataLoss(f"{file.path}: what arrived has another sha256; it was removed, try again")
    part.replace(target)
    return progress(file.size_bytes)


async def _receive(
    part: Path,
    have: int,
    chunks: AsyncIterator[transfer_pb2.Chunk],
    progress: Callable[[int], None],
) -> None:
    with part.open("ab") as stream:
        async for chunk in chunks:
            if chunk.offset != have:
                raise DataLoss(f"{part.name}: a chunk at {chunk.offset}, expected {have}")
            stream.write(chunk.data)
            have += len(chunk.data)
            progress(have)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _is_whole(file: transfer_pb2.ArtifactFile, path: Path) -> bool:
    if not path.is_file() or path.stat().st_size != file.size_bytes:
        return False
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() == file.sha256
