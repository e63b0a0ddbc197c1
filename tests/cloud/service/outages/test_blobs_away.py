"""The blob store goes away and comes back: in the middle of downloads, and of jobs that store."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import grpc
import pytest
from google.longrunning import operations_pb2 as longrunning

from protos.v1 import adapters_pb2, adapters_pb2_grpc, bases_pb2, users_pb2

Code = grpc.StatusCode
CONTENT = random.Random(5).randbytes(12 << 20)


@pytest.fixture
def far(s3: str, bucket: str, gate: Callable[..., Any]) -> tuple[Any, dict[str, str]]:
    """A gate before the S3 server, and the settings that go through it."""
    server = urlparse(s3)
    found = gate(server.hostname, server.port)
    return found, {"blobs_url": bucket, "s3_endpoint_url": f"http://127.0.0.1:{found.port}"}


def test_without_a_blob_store_calls_that_need_it_are_unavailable_and_go_on_later(
    start, far, until, tmp_path: Path
):
    gate, settings = far
    served = start(worker=False, **settings)
    profile = served.add_user()
    name = served.add_adapter(tmp_path, CONTENT)
    request = adapters_pb2.DownloadAdapterRequest(name=name, file="big.bin")
    download = adapters_pb2_grpc.AdapterServiceStub(served.channel).DownloadAdapter
    stream = download(request)
    pieces = [next(stream).data]

    gate.shut()
    with pytest.raises(grpc.RpcError) as broken:
        pieces.extend(chunk.data for chunk in stream)
    data = b"".join(pieces)
    assert broken.value.code() is Code.UNAVAILABLE
    assert 0 < len(data) < len(CONTENT)
    create = users_pb2.CreateUserRequest(user_id="bob")
    for refused in (served.call("CreateUser", create), served.call("DownloadAdapter", request)):
        assert (refused.code, refused.wait_s > 0) == (Code.UNAVAILABLE, True)
    assert len(list(served.client.list_items(profile))) == 2
    assert served.health() == "SERVING"

    gate.open()
    request.offset = len(data)
    data += b"".join(chunk.data for chunk in download(request))
    assert data == CONTENT
    assert served.call("CreateUser", create).code is Code.OK
    gate.silence()
    slow = served.call("DownloadAdapter", request, timeout=3)
    assert slow.code in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED)
    assert served.client.get_user("users/bob").name == "users/bob"
    gate.open()
    assert "Traceback" not in served.log()


@pytest.mark.slow
def test_a_job_waits_for_the_blob_store_and_ends_once(start, far, until):
    gate, settings = far
    served = start(stage_tries=1, **settings)  # an outage takes no tries
    gate.shut()
    request = bases_pb2.CreateBaseRequest(base_id="pocket", base={"source": "pocket"})
    (begun,) = served.call("CreateBase", request).answers
    until(lambda: served.log().count('"stage retried"') >= 1)
    find = longrunning.GetOperationRequest(name=begun.name)
    assert not served.call("GetOperation", find).answers[0].done
    gate.open()
    done = until(lambda: [op for op in served.call("GetOperation", find).answers if op.done])[0]
    assert done.HasField("response"), done.error
    assert served.client.get_base("bases/pocket").source == "pocket"
    assert "Traceback" not in served.log()
