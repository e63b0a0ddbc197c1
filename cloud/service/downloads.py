"""Files on their way out: from an offset, in chunks of 64 KiB, with digests in the trailer.

In: a stored file and the range that the caller wants. Out: `Chunk` messages, then the trailing
metadata that `transfer.proto` describes. Blobs are read and digested in threads, 1 MiB at a time,
while the MiB before is on the wire; a sealed file is authenticated chunk by chunk as it is read.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from itertools import islice

from cloud.service.boundary import Context
from cloud.service.errors import WrongPosition
from cloud.service.vault import Space, StoredFile
from protos.v1.transfer_pb2 import Chunk

CHUNK_BYTES = 64 * 1024
_CHUNKS_AHEAD = 16
_FILE_SHA256, _RANGE_SHA256 = "pocketune-file-sha256", "pocketune-range-sha256"


async def send(
    context: Context, space: Space, file: StoredFile, offset: int, length: int
) -> AsyncIterator[Chunk]:
    """Send `length` bytes of a file from `offset`; 0 means all to the end.

    Raises:
        WrongPosition: the offset is beyond the end. At the end itself the answer is empty, so that
            a download which broke off after its last byte can be resumed like any other.
        ArtifactError: what is stored was altered or is gone.
    """
    if offset > file.size:
        raise WrongPosition(f"offset is {offset}, but {file.path} has {file.size} bytes")
    digest = hashlib.sha256()
    pieces = _cut(space.read(file, offset, length or None))
    loop = asyncio.get_running_loop()
    ahead = loop.run_in_executor(None, _take, pieces, digest.update)
    try:
        while taken := await ahead:
            ahead = loop.run_in_executor(None, _take, pieces, digest.update)
            for piece in taken:
                yield Chunk(offset=offset, data=piece)
                offset += len(piece)
    finally:
        ahead.cancel()
    context.set_trailing_metadata(
        ((_FILE_SHA256, file.sha256), (_RANGE_SHA256, digest.hexdigest()))
    )


def _cut(blocks: Iterable[bytes]) -> Iterator[bytes]:
    for block in blocks:
        if len(block) <= CHUNK_BYTES:
            yield block
        else:
            for at in range(0, len(block), CHUNK_BYTES):
                yield block[at : at + CHUNK_BYTES]


def _take(pieces: Iterator[bytes], digest: Callable[[bytes], object]) -> list[bytes]:
    taken = list(islice(pieces, _CHUNKS_AHEAD))
    for piece in taken:
        digest(piece)
    return taken
