"""Clients that stop in the middle: cut off with a reason, at no cost to the others."""

from __future__ import annotations

import socket
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from protos.v1 import adapters_pb2, adapters_pb2_grpc, profiles_pb2, users_pb2

Code = grpc.StatusCode
Append = profiles_pb2.AppendItemsRequest


def one_then_nothing(first: Append, goes_on: threading.Event) -> Iterator[Append]:
    yield first
    goes_on.wait()


def items(start: int, end: int) -> list[profiles_pb2.Item]:
    return [profiles_pb2.Item(input=f"input {n}", output=f"output {n}") for n in range(start, end)]


def test_an_upload_that_stalls_is_cut_off_and_goes_on_where_it_was(start):
    served = start(worker=False, stall_s=1)
    profile, upload, ever = served.add_user(items=0), str(uuid.uuid4()), threading.Event()
    first = Append(parent=profile, request_id=upload, items=items(0, 7))
    cut = served.call("AppendItems", one_then_nothing(first, ever))
    ever.set()
    assert cut.code is Code.FAILED_PRECONDITION
    assert cut.text == "nothing came for 1 s in mid-stream"
    reached = profiles_pb2.GetUploadRequest(parent=profile, request_id=upload)
    (kept,) = served.call("GetUpload", reached).answers
    assert kept.next_index == 7
    rest = Append(parent=profile, request_id=upload, first_index=7, items=items(7, 12))
    (done,) = served.call("AppendItems", rest).answers
    assert (done.upload.next_index, done.profile.item_count) == (12, 12)
    assert [each.input for each in served.client.list_items(profile)] == [
        f"input {n}" for n in range(12)
    ]


def test_readers_that_never_read_cost_no_memory_and_end_at_the_deadline(
    start, until, tmp_path: Path
):
    readers, size = 24, 24 << 20
    served = start(worker=False, max_stream_s=4, log_format="json")
    served.add_user()
    name = served.add_adapter(tmp_path, bytes(size))
    request = adapters_pb2.DownloadAdapterRequest(name=name, file="big.bin")
    (whole,) = [served.call("DownloadAdapter", request)]
    assert sum(len(chunk.data) for chunk in whole.answers) == size
    before = served.memory_mib()
    lazy = [
        adapters_pb2_grpc.AdapterServiceStub(served.channel).DownloadAdapter(request)
        for _ in range(readers)
    ]
    until(lambda: len(cut_off(served)) == readers, 30)
    assert served.memory_mib() - before < readers * 4
    assert {event["code"] for event in cut_off(served)} == {"UNAVAILABLE"}
    assert all(event["ms"] < 10_000 for event in cut_off(served))
    for call in lazy:
        with pytest.raises(grpc.RpcError) as late:
            list(call)
        assert late.value.code() is Code.UNAVAILABLE
    assert "Traceback" not in served.log()
    assert served.call("DownloadAdapter", request).code is Code.OK


def cut_off(served) -> list[dict[str, object]]:
    return [
        event
        for event in served.events()
        if event.get("method", "").endswith("/DownloadAdapter") and event["code"] != "OK"
    ]


def test_half_open_connections_and_idle_streams_keep_nobody_waiting(start):
    served = start(worker=False, stall_s=30)
    profile, ever = served.add_user(), threading.Event()
    host, port = served.address.split(":")
    hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"
    peers = [socket.create_connection((host, int(port))) for _ in range(300)]
    for number, peer in enumerate(peers):
        peer.sendall(hello[: number % len(hello)])
    stub = served.channel.stream_unary(
        "/pocketune.v1.ProfileService/AppendItems",
        request_serializer=Append.SerializeToString,
        response_deserializer=profiles_pb2.AppendItemsResponse.FromString,
    )
    first = Append(parent=profile, items=items(0, 1))
    idle = [stub.future(one_then_nothing(first, ever)) for _ in range(100)]
    for number in range(50):
        made = served.call("CreateUser", users_pb2.CreateUserRequest(user_id=f"u{number}"))
        assert made.code is Code.OK
    assert not any(call.done() for call in idle)
    ever.set()
    assert all(call.result(timeout=30).upload.next_index == 1 for call in idle)
    for peer in peers:
        peer.close()
