"""Metrics for Prometheus, and traces through OpenTelemetry where its extra is installed.

In: settings. Out: an HTTP port with `/metrics`; spans sent to an OTLP collector. The counters
themselves stand where things happen (`boundary.py`); the state of the queue is read from the
database when somebody asks, so that it is right whichever process answers.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any
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

_TOLD = ("rpc.system", "rpc.service", "rpc.method", "rpc.grpc.status_code")


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


def trace(settings: Settings, service: str) -> Callable[[], None]:
    """Send a span for every RPC to the collector of the settings; returns what sends the rest.

    Must run before the server is made: it is how OpenTelemetry gets between grpc and its handlers.
    A span carries method, status and times, and nothing that a caller has sent: descriptions of
    errors name users, so they are left out.

    Raises:
        InputError: the extra is not installed.
    """
    if not settings.traces_url:
        return lambda: None
    try:
        found = _opentelemetry()
    except ImportError as error:
        raise InputError(
            f"POCKETUNE_TRACES_URL is set, but {error.name} is missing: "
            "pip install 'pocketune[otel]'"
        ) from None
    resource = found["Resource"].create({"service.name": service})
    provider = found["TracerProvider"](resource=resource)
    insecure = not settings.traces_url.startswith("https:")
    exporter = found["OTLPSpanExporter"](endpoint=settings.traces_url, insecure=insecure)
    bare = _Bare(exporter, found["ReadableSpan"], found["Status"])
    provider.add_span_processor(found["BatchSpanProcessor"](bare))
    found["GrpcAioInstrumentorServer"]().instrument(tracer_provider=provider)
    return provider.shutdown


class _Bare:
    """An OpenTelemetry `SpanExporter` that sends of each span what may leave the server."""

    def __init__(self, exporter: Any, span: Any, status: Any) -> None:
        self._exporter = exporter
        self._span = span
        self._status = status

    def export(self, spans: Sequence[Any]) -> Any:
        return self._exporter.export([self._copy(span) for span in spans])

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._exporter.force_flush(timeout_millis)

    def _copy(self, span: Any) -> Any:
        attributes = {name: span.attributes[name] for name in _TOLD if name in span.attributes}
        return self._span(
            name=span.name, context=span.context, parent=span.parent, resource=span.resource,
            attributes=attributes, kind=span.kind, status=self._status(span.status.status_code),
            start_time=span.start_time, end_time=span.end_time,
            instrumentation_scope=span.instrumentation_scope,
        )  # fmt: skip


def _opentelemetry() -> dict[str, Any]:
    """The classes of the extra, which need not be there."""
    places = {
        "Resource": "opentelemetry.sdk.resources",
        "TracerProvider": "opentelemetry.sdk.trace",
        "ReadableSpan": "opentelemetry.sdk.trace",
        "Status": "opentelemetry.trace",
        "BatchSpanProcessor": "opentelemetry.sdk.trace.export",
        "OTLPSpanExporter": "opentelemetry.exporter.otlp.proto.grpc.trace_exporter",
        "GrpcAioInstrumentorServer": "opentelemetry.instrumentation.grpc",
    }
    return {name: getattr(importlib.import_module(module), name) for name, module in places.items()}
