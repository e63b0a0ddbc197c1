"""Traces through OpenTelemetry, where its extra is installed.

In: settings. Out: spans sent to an OTLP collector: one for each RPC, and below it, whichever
process does the work and whenever, one for the operation that it began and one for each stage. The
`traceparent` (W3C Trace Context) of the RPC travels with the job. Without the extra, or without a
collector, all of this is nothing.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Generator, Sequence
from types import ModuleType
from typing import Any

from cloud.service.settings import Settings
from protos.errors import InputError

_OURS = "pocketune."
_TOLD = ("rpc.system", "rpc.service", "rpc.method", "rpc.grpc.status_code")
_PARENT = "traceparent"


def export(settings: Settings, service: str) -> Callable[[], None]:
    """Send spans to the collector of the settings from now on; returns what sends the rest.

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
    _api().set_tracer_provider(provider)
    return provider.shutdown


def current() -> str:
    """The `traceparent` of the span that this runs in; empty where there is none."""
    carrier: dict[str, str] = {}
    with contextlib.suppress(ImportError):
        _propagator().inject(carrier)
    return carrier.get(_PARENT, "")


@contextlib.contextmanager
def span(name: str, parent: str = "", **told: str | int) -> Generator[Callable[[], None]]:
    """A span for the block; gives what marks it as failed.

    parent: `traceparent` of a span elsewhere; empty: the one that this runs in.
    """
    try:
        api, context = _api(), _propagator().extract({_PARENT: parent}) if parent else None
    except ImportError:
        yield lambda: None
        return
    attributes = {f"{_OURS}{key}": value for key, value in told.items()}
    tracer = api.get_tracer("pocketune")
    with tracer.start_as_current_span(
        name, context, attributes=attributes, record_exception=False
    ) as made:
        yield lambda: made.set_status(api.StatusCode.ERROR)


def _api() -> ModuleType:
    return importlib.import_module("opentelemetry.trace")


def _propagator() -> Any:
    module = importlib.import_module("opentelemetry.trace.propagation.tracecontext")
    return module.TraceContextTextMapPropagator()


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
        attributes = {
            name: value for name, value in span.attributes.items()
            if name in _TOLD or name.startswith(_OURS)
        }  # fmt: skip
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
