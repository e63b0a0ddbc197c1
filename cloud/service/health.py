"""The health service: whether this server can answer calls.

In: the database. Out: SERVING while it answers, NOT_SERVING while it does not, for no call can be
answered without it, and when the server is told to stop. The blob store is not asked: without it
most calls are answered, and all servers have the same one, so that nobody would be left to do so.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from sqlalchemy import text

from cloud.service.boundary import Context
from cloud.service.errors import NotFound
from cloud.service.state import Database

_EVERY_S = 2.0
_PATIENCE_S = 5.0
_Answer = health_pb2.HealthCheckResponse
_log = structlog.get_logger(__name__)


class Health(health_pb2_grpc.HealthServicer):
    """`grpc.health.v1.Health`, for the server as a whole: the service name is empty."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._status = _Answer.SERVING
        self._changed = asyncio.Event()

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Context) -> _Answer:
        if request.service:
            raise NotFound(f"health of {request.service!r}")
        return _Answer(status=self._status)

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> AsyncIterator[_Answer]:
        told = None
        while True:
            changed = self._changed
            status = _Answer.SERVICE_UNKNOWN if request.service else self._status
            if status != told:
                yield _Answer(status=status)
            told = status
            await changed.wait()

    async def keep(self) -> None:
        """Ask the database again and again, until this is cancelled."""
        while True:
            status = _Answer.SERVING if await self._is_there() else _Answer.NOT_SERVING
            if status != self._status:
                _log.warning("health", status=_Answer.ServingStatus.Name(status))
                self._set(status)
            await asyncio.sleep(_EVERY_S)

    def end(self) -> None:
        """The server stops: send no more calls here."""
        self._set(_Answer.NOT_SERVING)

    def _set(self, status: _Answer.ServingStatus) -> None:
        self._status = status
        self._changed.set()
        self._changed = asyncio.Event()

    async def _is_there(self) -> bool:
        try:
            async with asyncio.timeout(_PATIENCE_S):
                await self._database.read(lambda c: c.execute(text("SELECT 1")).scalar())
        except Exception:  # whatever it is, calls would meet it too
            return False
        return True
