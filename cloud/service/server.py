"""The server: everything above put together and listening.

In: settings and the pipelines that the composition root injects. Out: a running `grpc.aio` server
with health, reflection and all services of `pocketune.v1`; on SIGTERM it takes no new calls, lets
the running ones finish, and hands its jobs back.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncGenerator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import structlog
from google.longrunning import operations_pb2 as longrunning
from google.longrunning import operations_pb2_grpc as longrunning_grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health import SERVICE_NAME as HEALTH_NAME
from grpc_reflection.v1alpha import reflection

from cloud.service.adapters import Adapters
from cloud.service.auth import Authenticator
from cloud.service.bases import Bases
from cloud.service.beginnings import ProfileBeginnings
from cloud.service.boundary import Boundary
from cloud.service.bundles import Bundles
from cloud.service.erasure import ErasableUsers
from cloud.service.health import Health
from cloud.service.jobs import JobWorker
from cloud.service.listener import Listener
from cloud.service.operation_service import Operations
from cloud.service.parity import Parity
from cloud.service.parts import Parts
from cloud.service.pipeline import Pipeline
from cloud.service.sweeper import Sweeper
from protos.v1 import (
    adapters_pb2,
    adapters_pb2_grpc,
    bases_pb2,
    bases_pb2_grpc,
    bundles_pb2,
    bundles_pb2_grpc,
    parity_pb2,
    parity_pb2_grpc,
    profiles_pb2,
    profiles_pb2_grpc,
    users_pb2,
    users_pb2_grpc,
)

_THREADS = 32
_log = structlog.get_logger(__name__)
_FILES = (users_pb2, profiles_pb2, adapters_pb2, bundles_pb2, bases_pb2, parity_pb2, longrunning)
_NAMES = (
    *(
        service.full_name
        for file in _FILES
        for service in file.DESCRIPTOR.services_by_name.values()
    ),
    HEALTH_NAME,
    reflection.SERVICE_NAME,
)


@contextlib.asynccontextmanager
async def running(parts: Parts) -> AsyncGenerator[int]:
    """A server that listens until the block is left; gives the port."""
    # Threads that wait for a blob store that hangs must leave some to others.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_THREADS))
    boundary = Boundary(Authenticator(parts.settings), parts.settings)
    health = Health(parts.database)
    services = _services(parts, health)

    def add(server: grpc.aio.Server) -> None:
        for add_to, servicer in services:
            add_to(servicer, server)
        reflection.enable_server_reflection(_NAMES, server)

    listener = Listener(parts.settings, boundary, add)
    port = await listener.start()
    looking = asyncio.create_task(health.keep())
    try:
        yield port
    finally:
        looking.cancel()
        health.end()
        await listener.stop()


async def serve(parts: Parts, pipelines: Mapping[str, Pipeline]) -> None:
    """Serve until SIGTERM or SIGINT. The process must end after this, see `JobWorker.stop`."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    worker = None
    if parts.settings.worker:
        worker = JobWorker(parts.database, parts.vault, parts.settings, pipelines)
        await asyncio.to_thread(worker.start)
    with Sweeper(parts).running():
        async with running(parts):
            await stop.wait()
            _log.info("draining")
    if worker:
        await asyncio.to_thread(worker.stop)


def _services(
    parts: Parts, health: Health
) -> list[tuple[Callable[[Any, grpc.aio.Server], None], Any]]:
    """Everything that is served, each with the function that adds it to a server."""
    return [
        (users_pb2_grpc.add_UserServiceServicer_to_server, ErasableUsers(parts)),
        (profiles_pb2_grpc.add_ProfileServiceServicer_to_server, ProfileBeginnings(parts)),
        (adapters_pb2_grpc.add_AdapterServiceServicer_to_server, Adapters(parts)),
        (bundles_pb2_grpc.add_BundleServiceServicer_to_server, Bundles(parts)),
        (bases_pb2_grpc.add_BaseServiceServicer_to_server, Bases(parts)),
        (parity_pb2_grpc.add_ParityServiceServicer_to_server, Parity(parts)),
        (longrunning_grpc.add_OperationsServicer_to_server, Operations(parts)),
        (health_pb2_grpc.add_HealthServicer_to_server, health),
    ]
