"""Spans reach a real OTLP collector, and tell no more than method and status."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1 import trace_pb2

from cloud.client import CallError, Client, NotFound


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    port: int

    def __init__(self) -> None:
        self.requests: list[trace_service_pb2.ExportTraceServiceRequest] = []

    def spans(self) -> dict[str, list[trace_pb2.Span]]:
        """All that came, by name, in the order in which they began."""
        resources = [each for request in self.requests for each in request.resource_spans]
        found = [span for r in resources for scope in r.scope_spans for span in scope.spans]
        found.sort(key=lambda span: span.start_time_unix_nano)
        return {name: [s for s in found if s.name == name] for name in {s.name for s in found}}

    def Export(self, request, context):
        self.requests.append(request)
        return trace_service_pb2.ExportTraceServiceResponse()


@pytest.fixture
def collector() -> Iterator[Collector]:
    found, server = Collector(), grpc.server(futures.ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(found, server)
    found.port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield found
    server.stop(0).wait()


@contextlib.contextmanager
def running(collector: Collector, folder: Path, *arguments: str) -> Iterator[str]:
    """A server or worker; it has told all its spans when the block is left."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pocketune", *arguments, "--data-dir", str(folder)],
        env={
            **os.environ, "POCKETUNE_TRACES_URL": f"http://127.0.0.1:{collector.port}",
            "POCKETUNE_BASE_SOURCES": json.dumps({"canary-source": str(folder / "nowhere")}),
        },
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert process.stdout
    try:
        yield process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()


def test_each_call_is_a_span_that_holds_nothing_of_the_user(collector, tmp_path: Path):
    server = running(collector, tmp_path, "serve", "--no-worker", "--port", "0")
    with server as said, Client(address(said)) as client:
        client.create_user("canary-ann")
        with pytest.raises(NotFound):
            client.get_user("users/canary-bob")
    assert set(collector.spans()) == {
        f"/pocketune.v1.UserService/{name}" for name in ("CreateUser", "GetUser")
    }
    said = "".join(map(str, collector.requests))
    assert "pocketune-server" in said
    assert "canary" not in said


@pytest.mark.slow
def test_what_a_worker_does_belongs_to_the_trace_of_the_call_that_began_it(
    collector, tmp_path: Path
):
    server = running(collector, tmp_path, "serve", "--no-worker", "--port", "0")
    with (
        server as said, Client(address(said)) as client, running(collector, tmp_path, "worker")
    ):  # fmt: skip
        client.wait(client.create_base("canary-good", "pocket"))
        with pytest.raises(CallError):
            client.wait(client.create_base("canary-bad", "canary-source"))
    spans = collector.spans()
    calls = spans["/pocketune.v1.BaseService/CreateBase"]
    begun, stages = spans["operation CreateBase"], spans["stage prepare"]
    assert [s.parent_span_id for s in begun] == [s.span_id for s in calls]
    assert [s.trace_id for s in begun] == [s.trace_id for s in calls]
    assert [s.parent_span_id for s in stages] == [s.span_id for s in begun]
    assert len({s.trace_id for s in stages}) == 2
    wrong = trace_pb2.Status.STATUS_CODE_ERROR
    for both in (begun, stages):
        assert [s.status.code == wrong for s in both] == [False, True]
    uids = {a.value.string_value for s in begun for a in s.attributes if "operation" in a.key}
    assert len(uids) == 2
    said = "".join(map(str, collector.requests))
    assert "pocketune-worker" in said
    assert "canary" not in said


def address(said: str) -> str:
    found = re.search(r"serves on (\S+:\d+)", said)
    assert found
    return found[1]
