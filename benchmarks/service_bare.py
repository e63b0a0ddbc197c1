"""The bare servers that the service is compared with: grpc.aio, the same messages, nothing else.

`python -m benchmarks.service_bare ANSWERS FILE` prints its address. ANSWERS is a folder with an
answer of the service's for each unary method, such as `GetUser`: each is given as it is. FILE is
what `DownloadBundle` streams in chunks of 64 KiB: from memory, or from the file where one named
`file` is asked for.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc

from protos.v1 import (
    adapters_pb2,
    adapters_pb2_grpc,
    bundles_pb2,
    bundles_pb2_grpc,
    profiles_pb2,
    profiles_pb2_grpc,
    users_pb2,
    users_pb2_grpc,
)
from protos.v1.transfer_pb2 import Chunk

CHUNK_BYTES = 64 * 1024


class Echo(
    users_pb2_grpc.UserServiceServicer,
    profiles_pb2_grpc.ProfileServiceServicer,
    adapters_pb2_grpc.AdapterServiceServicer,
):
    """Answers every Get with a message that was read once."""

    def __init__(self, answers: Path) -> None:
        self._user = users_pb2.User.FromString((answers / "GetUser").read_bytes())
        self._profile = profiles_pb2.Profile.FromString((answers / "GetProfile").read_bytes())
        self._adapter = adapters_pb2.Adapter.FromString((answers / "GetAdapter").read_bytes())

    async def GetUser(self, request: object, context: object) -> users_pb2.User:
        return self._user

    async def GetProfile(self, request: object, context: object) -> profiles_pb2.Profile:
        return self._profile

    async def GetAdapter(self, request: object, context: object) -> adapters_pb2.Adapter:
        return self._adapter


class Stream(bundles_pb2_grpc.BundleServiceServicer):
    """Streams one file to whoever asks."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._pieces = list(self._read())

    async def DownloadBundle(
        self, request: bundles_pb2.DownloadBundleRequest, context: object
    ) -> AsyncIterator[Chunk]:
        offset = 0
        for piece in self._read() if request.file == "file" else self._pieces:
            yield Chunk(offset=offset, data=piece)
            offset += len(piece)

    def _read(self) -> Iterator[bytes]:
        with self._file.open("rb") as stream:
            while piece := stream.read(CHUNK_BYTES):
                yield piece


async def main(answers: Path, file: Path) -> None:
    """Serve until the process is ended."""
    server = grpc.aio.server()
    echo = Echo(answers)
    users_pb2_grpc.add_UserServiceServicer_to_server(echo, server)
    profiles_pb2_grpc.add_ProfileServiceServicer_to_server(echo, server)
    adapters_pb2_grpc.add_AdapterServiceServicer_to_server(echo, server)
    bundles_pb2_grpc.add_BundleServiceServicer_to_server(Stream(file), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"bare, serves on 127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2])))
