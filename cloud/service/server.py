"""The server: everything above put together and listening.

In: settings and the pipelines that the composition root injects. Out: a running `grpc.aio` server
with health, reflection and all services of `pocketune.v1`; on SIGTERM it takes no new calls, lets
the running ones finish, and hands its jobs back.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncGenerator, Mapping

import grpc
import structlog
from google.longrunning import operations_pb2 as longrunning
from google.longrunning import operations_pb2_grpc as longrunning_grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from cloud.service.adapters import Adapters
from cloud.service.auth import Authenticator, server_credentials
from cloud.service.bases import Bases
from cloud.service.beginnings import ProfileBeginnings
from cloud.service.boundary import Boundary
from cloud.service.bundles import Bundles
from cloud.service.erasure import ErasableUsers
from cloud.service.jobs import JobWorker
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

_log = structlog.get_logger(__name__)
_FILES = (users_pb2, profiles_pb2, adapters_pb2, bundles_pb2, bases_pb2, parity_pb2, longrunning)
_SERVICES = tuple(
    service.full_name for file in _FILES for service in file.DESCRIPTOR.services_by_name.values()
)


@contextlib.asynccontextmanager
async def running(parts: Parts) -> AsyncGenerator[int]:
    """A server that listens until the block is left; gives the port."""
    settings = parts.settings
    server = grpc.aio.server(
        interceptors=[Boundary(Authenticator(settings), settings)],
        options=[
            ("grpc.max_receive_message_length", settings.max_message_bytes),
            ("grpc.max_send_message_length", settings.max_message_bytes),
            ("grpc.so_reuseport", 0),  # a port that is taken is an error
            ("grpc.keepalive_time_ms", 30_000),
        ],
    )
    healthy = _add_services(server, parts)
    address = f"{settings.host}:{settings.port}"
    credentials = server_credentials(settings)
    if credentials is None:
        port = server.add_insecure_port(address)
    else:
        port = server.add_secure_port(address, credentials)
    await server.start()
    await healthy.set("", health_pb2.HealthCheckResponse.SERVING)
    _log.info("serving", address=f"{settings.host}:{port}", tls=credentials is not None)
    try:
        yield port
    finally:
        await healthy.enter_graceful_shutdown()
        await server.stop(settings.drain_s)


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


def _add_services(server: grpc.aio.Server, parts: Parts) -> HealthServicer:
    users_pb2_grpc.add_UserServiceServicer_to_server(ErasableUsers(parts), server)
    profiles_pb2_grpc.add_ProfileServiceServicer_to_server(ProfileBeginnings(parts), server)
    adapters_pb2_grpc.add_AdapterServiceServicer_to_server(Adapters(parts), server)
    bundles_pb2_grpc.add_BundleServiceServicer_to_server(Bundles(parts), server)
    bases_pb2_grpc.add_BaseServiceServicer_to_server(Bases(parts), server)
    parity_pb2_grpc.add_ParityServiceServicer_to_server(Parity(parts), server)
    longrunning_grpc.add_OperationsServicer_to_server(Operations(parts), server)
    healthy = HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    names = (*_SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
    return healthy
