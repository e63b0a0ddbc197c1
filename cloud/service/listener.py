"""The port: a gRPC server that stands up again when it falls.

In: settings, the interceptor, and what adds the services to a server. Out: a port that is listened
on until `stop`. grpc.aio ends a whole server at one call whose path is no UTF-8: its loop raises,
the port is closed, and the process lives on and serves nobody. Then a new server takes the port at
once, while the calls that run go on in the old one. Methods are not registered with its core: a
server that falls frees what the core is still to write the next call of each registered method to.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import structlog

from cloud.service.auth import server_credentials
from cloud.service.settings import Settings

_LOOK_S = 0.1
_log = structlog.get_logger(__name__)


class Listener:
    """Listens on the address of the settings."""

    def __init__(
        self,
        settings: Settings,
        interceptor: grpc.aio.ServerInterceptor,
        add_services: Callable[[grpc.aio.Server], None],
    ) -> None:
        self._settings = settings
        self._interceptor = interceptor
        self._add_services = add_services
        self._credentials = server_credentials(settings)
        self._fallen: set[grpc.aio.Server] = set()

    async def start(self) -> int:
        """Begin to listen; gives the port.

        Raises:
            RuntimeError: the port is taken.
        """
        self.port = self._settings.port
        await self._stand_up()
        asyncio.get_running_loop().set_exception_handler(_without_falls)
        self._guard = asyncio.create_task(self._keep_up())
        address = f"{self._settings.host}:{self.port}"
        _log.info("serving", address=address, tls=self._credentials is not None)
        return self.port

    async def stop(self) -> None:
        """Take no new calls; those that run have `drain_s`."""
        self._guard.cancel()
        ends = (each.stop(self._settings.drain_s) for each in (self._server, *self._fallen))
        await asyncio.gather(*ends)

    async def _stand_up(self) -> None:
        server = grpc.aio.server(
            interceptors=[self._interceptor],
            options=[
                ("grpc.max_receive_message_length", self._settings.max_message_bytes),
                ("grpc.max_send_message_length", self._settings.max_message_bytes),
                ("grpc.so_reuseport", 0),  # a port that is taken is an error
                ("grpc.keepalive_time_ms", 30_000),
            ],
        )
        _leave_unregistered(server)
        self._add_services(server)
        address = f"{self._settings.host}:{self.port}"
        if self._credentials is None:
            self.port = server.add_insecure_port(address)
        else:
            self.port = server.add_secure_port(address, self._credentials)
        await server.start()
        self._server = server

    async def _keep_up(self) -> None:
        while True:
            try:
                await self._server.wait_for_termination(_LOOK_S)
            except Exception as error:  # whatever ended the loop, the next call must be served
                _log.warning("the gRPC server fell", error=type(error).__name__)
                self._fallen.add(self._server)
                asyncio.get_running_loop().create_task(self._let_go(self._server))
                await self._stand_up_again()

    async def _let_go(self, server: grpc.aio.Server) -> None:
        """Until its last call has ended; `stop` makes it shorter."""
        await server.stop(self._settings.max_stream_s)
        self._fallen.discard(server)

    async def _stand_up_again(self) -> None:
        while True:
            try:
                return await self._stand_up()
            except RuntimeError:  # the fallen one has not let go of the port yet
                await asyncio.sleep(_LOOK_S)


def _leave_unregistered(server: Any) -> None:
    """Have the generic handlers, which generated code adds as well, serve all methods."""

    def register(service: str, handlers: object) -> None: ...

    server.add_registered_method_handlers = register


def _without_falls(loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
    """What `_keep_up` has said already, grpc.aio leaves in a task that nobody awaits."""
    if not isinstance(context.get("exception"), UnicodeDecodeError):
        loop.default_exception_handler(context)
