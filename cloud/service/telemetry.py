"""Metrics for Prometheus.

In: settings. Out: an HTTP port with `/metrics`. The counters themselves stand where things happen
(`boundary.py`); the state of the queue is read from the database when somebody asks, so that it is
right whichever process answers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable
from wsgiref.simple_server import WSGIServer

from prometheus_client import REGISTRY, start_http_server
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import func, select

from cloud.service.settings import Settings
from cloud.service.state import Database
from cloud.service.tables import Operation, Worker
from protos.errors import InputError
from protos.v1 import operations_pb2


class Queue(Collector):
    """Open operations by method and stage, and the workers that have signed in."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def collect(self) -> Iterable[Metric]:
        """Asked at every scrape. While the database is away there is nothing to tell."""
        operations = GaugeMetricFamily(
            "pocketune_open_operations", "Operations that have not ended.",
            labels=["method", "stage"],
        )  # fmt: skip
        workers = GaugeMetricFamily("pocketune_workers", "Workers that have signed in.")
        with contextlib.suppress(Exception), self._database.transaction(False) as connection:
            grouped = (
                select(Operation.method, Operation.stage, func.count())
                .where(Operation.end_time.is_(None))
                .group_by(Operation.method, Operation.stage)
            )
            for method, stage, count in connection.execute(grouped):
                name = operations_pb2.Stage.Name(stage).removeprefix("STAGE_").lower()
                operations.add_metric([method, name], count)
            living = connection.execute(select(func.count()).select_from(Worker)).scalar()
            workers.add_metric([], living or 0)
        return [operations, workers]

    def describe(self) -> Iterable[Metric]:
        """Nothing is asked of the database when it is registered."""
        return []


@contextlib.contextmanager
def metrics(settings: Settings) -> Generator[int]:
    """Serve the metrics while the block runs; gives the port, 0 where the settings want none.

    Raises:
        InputError: the port is taken.
    """
    if not settings.metrics_port:
        yield 0
        return
    database = Database(settings.resolved_database_url)
    queue = Queue(database)
    REGISTRY.register(queue)
    try:
        with _listening(settings) as port:
            yield port
    finally:
        REGISTRY.unregister(queue)
        database.close()


@contextlib.contextmanager
def _listening(settings: Settings) -> Generator[int]:
    host, port = settings.metrics_host, settings.metrics_port
    try:
        server, thread = start_http_server(port, host)
    except OSError as error:
        raise InputError(f"metrics on {host}:{port}: {error.strerror or error}") from None
    try:
        yield _port(server)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _port(server: WSGIServer) -> int:
    return int(server.server_port)
