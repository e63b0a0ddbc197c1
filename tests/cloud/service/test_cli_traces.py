"""Spans reach a real OTLP collector, and tell no more than method and status."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from concurrent import futures
from pathlib import Path

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from cloud.client import Client, NotFound


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self) -> None:
        self.requests: list[trace_service_pb2.ExportTraceServiceRequest] = []

    def Export(self, request, context):
        self.requests.append(request)
        return trace_service_pb2.ExportTraceServiceResponse()


def test_each_call_is_a_span_that_holds_nothing_of_the_user(tmp_path: Path):
    collector, server = Collector(), grpc.server(futures.ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    process = subprocess.Popen(
        [sys.executable, "-m", "pocketune", "serve", "--no-worker", "--port", "0",
         "--data-dir", str(tmp_path)],
        env={**os.environ, "POCKETUNE_TRACES_URL": f"http://127.0.0.1:{port}"},
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert process.stdout
    found = re.search(r"serves on (\S+:\d+)", process.stdout.readline())
    assert found
    with Client(found[1]) as client:
        client.create_user("canary-ann")
        with pytest.raises(NotFound):
            client.get_user("users/canary-bob")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    server.stop(0).wait()
    resources = [spans for request in collector.requests for spans in request.resource_spans]
    names = {span.name for r in resources for scope in r.scope_spans for span in scope.spans}
    assert names == {f"/pocketune.v1.UserService/{name}" for name in ("CreateUser", "GetUser")}
    said = "".join(map(str, resources))
    assert "pocketune-server" in said
    assert "canary" not in said
