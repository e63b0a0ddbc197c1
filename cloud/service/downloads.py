"""Files on their way out: from an offset, in chunks of 64 KiB, with digests in the trailer.

In: a stored file and the range that the caller wants. Out: `Chunk` messages, then the trailing
metadata that `transfer.proto` describes. A sealed file is authenticated chunk by chunk as it is
read.

A whole file from a folder is read where it is asked for: a chunk takes some 20 microseconds, and
handing it over from another thread more than that. What takes longer, a distant store or the digest
of a range, is done in threads, some chunks ahead of the wire.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator
from itertools import islice
from typing import Any

from cloud.service.boundary import Context
from cloud.service.errors import WrongPosition
from cloud.service.vault import Space, StoredFile
from protos.v1.transfer_pb2 import Chunk

CHUNK_BYTES = 64 * 1024
_CHUNKS_AHEAD = 8
_FILE_SHA256, _RANGE_SHA256 = "pocketune-file-sha256", "pocketune-range-sha256"
_FULL = Chunk(data=bytes(CHUNK_BYTES)).SerializeToString()[:-CHUNK_BYTES]
"""What stands before the data of a full chunk on the wire."""


async def send(
    context: Context, space: Space, file: StoredFile, offset: int, length: int
) -> AsyncIterator[bytes]:
    """Send `length` bytes of a file from `offset`, as serialized `Chunk`s; 0: all to the end.

    Raises:
        WrongPosition: the offset is beyond the end. At the end itself the answer is empty, so that
            a download which broke off after its last byte can be resumed like any other.
        ArtifactError: what is stored was altered or is gone.
    """
    if offset > file.size:
        raise WrongPosition(f"offset is {offset}, but {file.path} has {file.size} bytes")
    # The digest of a whole file is known since it was stored.
    is_whole = offset == 0 and length in (0, file.size)
    digest = None if is_whole else hashlib.sha256()
    messages = _serialized(_cut(space.read(file, offset, length or None)), offset, digest)
    if space.is_near and is_whole:
        for message in messages:
            yield message
    else:
        async with contextlib.aclosing(_ahead(messages)) as made:
            async for message in made:
                yield message
    sent = digest.hexdigest() if digest else file.sha256
    context.set_trailing_metadata(((_FILE_SHA256, file.sha256), (_RANGE_SHA256, sent)))


def _cut(blocks: Iterable[bytes]) -> Iterator[bytes]:
    for block in blocks:
        if len(block) <= CHUNK_BYTES:
            yield block
        else:
            for at in range(0, len(block), CHUNK_BYTES):
                yield block[at : at + CHUNK_BYTES]


def _serialized(pieces: Iterable[bytes], offset: int, digest: Any) -> Iterator[bytes]:
    """Chunks as bytes. A full one is joined by hand: protobuf copies its data several times."""
    for piece in pieces:
        if digest:
            digest.update(piece)
        if len(piece) == CHUNK_BYTES:
            yield Chunk(offset=offset).SerializeToString() + _FULL + piece
        else:
            yield Chunk(offset=offset, data=piece).SerializeToString()
        offset += len(piece)


async def _ahead(messages: Iterator[bytes]) -> AsyncGenerator[bytes]:
    """The same, made in threads while those before are on the wire."""
    loop = asyncio.get_running_loop()
    ahead = loop.run_in_executor(None, _take, messages)
    try:
        while taken := await ahead:
            ahead = loop.run_in_executor(None, _take, messages)
            for message in taken:
                yield message
    finally:
        ahead.cancel()


def _take(messages: Iterator[bytes]) -> list[bytes]:
    return list(islice(messages, _CHUNKS_AHEAD))
