"""Ten thousand hostile messages over a real port: the server refuses, goes on, and tells nothing.

RPCs and messages are walked by their descriptors, so that a new one is tried without a change here.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
import socket
import struct
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from cloud.service.auth import make_api_key
from cloud.service.server import _FILES
from protos.v1 import profiles_pb2

Code = grpc.StatusCode
Metadata = tuple[tuple[str, str | bytes], ...]
METHODS: list[MethodDescriptor] = [
    method
    for file in (*_FILES, health_pb2, reflection_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]
LEAKS = re.compile(
    r"Traceback|File \"|\.py\b|-packages|/tmp/|SELECT |INSERT |UPDATE |sqlalchemy|sqlite|psycopg"
)
WRONG = (Code.UNKNOWN, Code.INTERNAL, Code.DEADLINE_EXCEEDED)
AT_ONCE = 32
SETTINGS = {"deadline": None, "derandomize": True, "database": None, "phases": [Phase.generate],
            "suppress_health_check": list(HealthCheck)}  # fmt: skip
USER, PROFILE = "users/ann", "users/ann/profiles/LaMP_4"
NAMES = [
    USER, PROFILE, f"{USER}/consent", "bases/pocket", "ann", "bob", "LaMP_4", "LaMP_5", "pocket",
    f"{USER}/adapters/{'a' * 64}", f"{USER}/bundles/{'b' * 64}",
    f"{USER}/parityReports/00000000-0000-0000-0000-000000000000",
    "operations/00000000-0000-0000-0000-000000000000", "00000000-0000-0000-0000-000000000000",
    "executorch-xnnpack-8da4w", "manifest.json", "done=true", "2026-01-31",
]  # fmt: skip
HOSTILE = [
    "", "\0", "a\0b", "../../etc/passwd", "users/", "users/../x", "\ud7ff\ue000", "\U0010ffff" * 9,
    "\u202eann", "' OR 1=1 --", "{}", "%s%n", "x" * 1025, "y" * 70_000, "WyJ1c2VycyIsWyJ6Il1d",
    "W1tbW1tbW1tb" * 80, "users/ann\n", "-1", "NaN", "\r\n\r\n", "é" * 63,
]  # fmt: skip
WHOLE = [0, 1, -1, 2, 7, 100, 1000, 2**31 - 1, -(2**31), 2**63 - 1, -(2**63)]
REAL = [0.0, -0.0, 0.5, 1.0, float("nan"), float("inf"), -float("inf"), 1e308, 5e-324, -1.0]
RANGES = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64),
    FieldDescriptor.CPPTYPE_ENUM: (-(2**31), 2**31),
}  # fmt: skip


class Battery:
    """Fires messages at a server, and looks at every answer."""

    def __init__(self, address: str, metadata: Metadata = ()) -> None:
        self.channel = grpc.insecure_channel(
            address, options=[("grpc.max_send_message_length", -1),
                              ("grpc.max_metadata_size", 1 << 20)]
        )  # fmt: skip
        self.metadata = metadata
        self.codes: Counter[grpc.StatusCode] = Counter()
        self.messages = 0
        self.problems: list[object] = []

    def fire(self, shots: Iterable[tuple[MethodDescriptor, list[bytes], Metadata]]) -> None:
        """Send requests as they are, some at once."""
        under_way: deque[Any] = deque()
        for method, raw, metadata in shots:
            under_way.append((method, raw, self._send(method, raw, metadata)))
            self.messages += len(raw)
            if len(under_way) >= AT_ONCE:
                self._judge(*under_way.popleft())
        while under_way:
            self._judge(*under_way.popleft())

    def _send(self, method: MethodDescriptor, raw: list[bytes], metadata: Metadata) -> Any:
        stub = self._stub(method)
        given = iter(raw) if method.client_streaming else raw[0]
        call = stub if method.server_streaming else stub.future
        return call(given, timeout=20, metadata=self.metadata + metadata)

    @cache  # noqa: B019
    def _stub(self, method: MethodDescriptor) -> Any:
        service: Any = method.containing_service
        kind = (f"{'stream' if method.client_streaming else 'unary'}_"
                f"{'stream' if method.server_streaming else 'unary'}")  # fmt: skip
        return getattr(self.channel, kind)(f"/{service.full_name}/{method.name}")

    def _judge(self, method: MethodDescriptor, raw: list[bytes], call: Any) -> None:
        where = (method.full_name, [each[:200] for each in raw])
        try:
            if method.name == "Watch":  # never ends by itself
                next(call)
                call.cancel()
            elif method.server_streaming:
                deque(call, maxlen=0)
            else:
                call.result()
        except grpc.RpcError:
            pass
        code, text = call.code() or Code.OK, call.details() or ""
        self.codes[code] += 1
        trailer = dict(call.trailing_metadata() or ())
        said = [text, *map(repr, trailer.values())]
        is_bare = code is Code.INVALID_ARGUMENT and "grpc-status-details-bin" not in trailer
        if code in WRONG or is_bare or LEAKS.search("\n".join(said)):
            self.problems.append((code, *where, *said))


# Sound messages with hostile values


def values(field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
    if field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
        return messages(field.message_type, depth + 1)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return st.sampled_from([b"", b"\0" * 9, b"\xff" * 99])
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        texts = st.text(st.characters(codec="utf-8"), max_size=20)
        return st.one_of(st.sampled_from(NAMES), st.sampled_from(HOSTILE), texts)
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return st.booleans()
    if field.cpp_type in RANGES:
        least, end = RANGES[field.cpp_type]
        return st.sampled_from([number for number in WHOLE if least <= number < end])
    return st.sampled_from(REAL)


@cache
def messages(descriptor: Descriptor, depth: int = 0) -> st.SearchStrategy[Message]:
    """Any message of this type, each field set or not."""
    fields = [f for f in descriptor.fields if depth < 4 or not f.message_type]
    optional: dict[str, st.SearchStrategy[Any]] = {}
    for field in fields:
        one = values(field, depth)
        if field.message_type and field.message_type.GetOptions().map_entry:
            key, value = field.message_type.fields
            if value.message_type:
                continue
            one = st.dictionaries(values(key, depth), values(value, depth), max_size=2)
        elif field.is_repeated:
            one = st.one_of(st.lists(one, max_size=3), one.map(lambda each: [each] * 120))
        optional[field.name] = one
    made = GetMessageClass(descriptor)
    return st.fixed_dictionaries({}, optional=optional).map(lambda given: made(**given))


# Bytes that are no sound message


def varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])


def nested(depth: int) -> bytes:
    """Field 2 in field 2 in field 2 …"""
    inner = b""
    for _ in range(depth):
        inner = b"\x12" + varint(len(inner)) + inner
    return inner


BROKEN = [
    b"\x0a\xff\xff\xff\xff\x0f", b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", b"\x0a\x05ab",
    b"\x80" * 11, b"\xff" * 10, b"\x00", b"\x07", b"\x0b" * 5000, b"\x0b" * 200 + b"\x0c" * 200,
    nested(50), nested(99), nested(101), nested(3000), b"\x0a\x02\xc3\x28", b"\x0a\x03\xed\xa0\x80",
    b"\x0a\x01\x00", b"\x12\x01\xff", b"\xfa\xff\xff\xff\x0f\x04junk", b"\x0d\1\2\3\4",
    b"\x09" + b"\xff" * 8, b"\x08" + b"\xff" * 9 + b"\1", b"\x0c", b"\x0a\x00" * 3000,
    b"{\"name\": \"users/ann\"}",
]  # fmt: skip


def misfits(descriptor: Descriptor) -> Iterator[bytes]:
    """Every field with every wire type."""
    for field in descriptor.fields:
        for wire, payload in ((0, b"\x01"), (1, b"\0" * 8), (2, b"\x03\xff\xfe\0"), (5, b"\0" * 4)):
            yield varint(field.number << 3 | wire) + payload


def mutated(sound: bytes, dice: random.Random) -> bytes:
    """A message with bits turned, pieces cut out, doubled, or put in."""
    data = bytearray(sound or b"\x0a\x09users/ann")
    for _ in range(dice.randint(1, 6)):
        at = dice.randrange(len(data) + 1)
        match dice.randrange(4):
            case 0 if at < len(data):
                data[at] ^= 1 << dice.randrange(8)
            case 1:
                del data[at : at + dice.randint(1, 8)]
            case 2:
                data[at:at] = data[at // 2 : at]
            case _:
                data[at:at] = dice.randbytes(dice.randint(1, 8))
    return bytes(data)


def broken(
    dice: random.Random, mutations: int
) -> Iterator[tuple[MethodDescriptor, list[bytes], Metadata]]:
    sound = profiles_pb2.AppendItemsRequest(parent=PROFILE, items=[{"input": "a", "output": "b"}])
    for method in METHODS:
        for raw in (*BROKEN, *misfits(method.input_type)):
            yield method, [raw], ()
        for _ in range(mutations):
            request = GetMessageClass(method.input_type)()
            for field in method.input_type.fields:
                if field.type == FieldDescriptor.TYPE_STRING and not field.is_repeated:
                    setattr(request, field.name, dice.choice(NAMES))
            raw = request.SerializeToString()
            if method.name == "AppendItems":
                raw = sound.SerializeToString()
            yield (
                method,
                [mutated(raw, dice), mutated(raw, dice)][: method.client_streaming + 1],
                (),
            )
            yield method, [dice.randbytes(dice.randint(0, 60))], ()


def garbage(dice: random.Random) -> Iterator[tuple[MethodDescriptor, list[bytes], Metadata]]:
    """Sound calls with metadata that nobody meant."""
    given: list[Metadata] = [
        (("authorization", ""),), (("authorization", "Bearer"),), (("authorization", "Bearer  "),),
        (("authorization", "Bearer pkt_" + "A" * 4000),), (("authorization", "Bearer eyJ.e.y"),),
        (("authorization", "Bearer eyJhbGciOiJub25lIn0.e30."), ("authorization", "Basic x")),
        (("authorization-bin", b"\0\xff" * 99),), (("x-" + "n" * 3000, "v"),),
        tuple((f"x-{number}", "v" * 50) for number in range(120)),
        tuple(("x-same", str(number)) for number in range(300)), (("x-long", "v" * 12_000),),
        (("x-longer", "v" * 200_000),), (("grpc-status-details-bin", b"\xff" * 50),),
        (("traceparent", "00-zz-zz-zz"),), (("x-bin", dice.randbytes(900)),),
    ]  # fmt: skip
    for method in METHODS:
        for metadata in given:
            yield method, [b""], metadata


# What is not even gRPC


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def headers(fields: Mapping[str, bytes]) -> bytes:
    """A header block, nothing indexed or packed."""
    block = b""
    for name, value in fields.items():
        for text in (name.replace("_", "-").encode(), value):
            size = bytes([len(text)]) if len(text) < 127 else b"\x7f" + varint(len(text) - 127)
            block += (b"\0" if text is not value else b"") + size + text
    return block


HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"")


def call_of(path: bytes = b"/pocketune.v1.UserService/GetUser", body: bytes = b"\0" * 5,
            **changed: bytes) -> bytes:  # fmt: skip
    """A whole call on a connection of its own."""
    sound = {":method": b"POST", ":scheme": b"http", ":path": path, ":authority": b"x",
             "content_type": b"application/grpc", "te": b"trailers"}  # fmt: skip
    return HELLO + frame(1, 4, 1, headers({**sound, **changed})) + frame(0, 1, 1, body)


def wire(dice: random.Random) -> Iterator[bytes]:
    yield b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    yield b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc"
    yield HELLO + frame(1, 4, 1, b"\xff" * 400)
    yield HELLO + frame(9, 4, 1, b"")
    yield HELLO + frame(0, 1, 7, b"data of no stream")
    yield call_of(body=b"\0\0\0\0\x01")  # cut off
    yield call_of(body=b"\0\xff\xff\xff\xff")  # 4 GiB announced
    yield call_of(body=b"\x01\0\0\0\x04junk", grpc_encoding=b"gzip")
    yield call_of(body=b"\x01\0\0\0\x04junk")
    yield call_of(body=b"\x07\0\0\0\0")
    yield call_of(grpc_timeout=b"-1S")
    yield call_of(grpc_timeout=b"99999999999H")
    yield call_of(authorization=b"Bearer \xff\xfe\x80")
    yield call_of(NO_TEXT)
    yield call_of(b"")
    yield call_of(content_type=b"text/html")
    yield call_of(x_bin=b"!!!no base64!!!")
    for _ in range(60):
        yield HELLO + dice.randbytes(200)
        yield dice.randbytes(200)


def pour(address: str, data: bytes, until: Callable[..., Any]) -> None:
    """Send this to the port, and wait for the other side to hang up."""
    host, port = address.split(":")

    def connected() -> socket.socket | None:
        try:
            return socket.create_connection((host, int(port)), 5)
        except (ConnectionRefusedError, ConnectionResetError):  # its port is closed, or closing
            return None

    with until(connected, 10) as peer:
        peer.settimeout(5)
        with contextlib.suppress(OSError):
            peer.sendall(data)
            peer.shutdown(socket.SHUT_WR)
            while peer.recv(65_536):
                pass


def fire_sound(battery: Battery, batches: int) -> None:
    shot = st.sampled_from([m for m in METHODS if m.name != "ServerReflectionInfo"]).flatmap(
        lambda method: st.tuples(st.just(method), messages(method.input_type))
    )

    @settings(max_examples=batches, **SETTINGS)
    @given(st.lists(shot, min_size=20, max_size=30))
    def check(shots: list[tuple[MethodDescriptor, Message]]) -> None:
        battery.fire((method, [each.SerializeToString()], ()) for method, each in shots)

    check()


def assert_nothing_told(served: Any) -> None:
    assert served.is_alive()
    assert not LEAKS.search(served.log()), LEAKS.search(served.log())
    assert {event["level"] for event in served.events()} <= {"info", "warning"}


NO_TEXT = b"/\xff\xfe/../x"


def test_a_call_whose_path_is_no_text_ends_neither_the_server_nor_the_calls_that_run(start, until):
    """It ends the loop of grpc.aio's server, which then closes its port for good.

    With freed memory overwritten, as a fall once freed what the core was still to write to.
    """
    environment = {"PYTHONMALLOC": "malloc", "MALLOC_PERTURB_": "165"}
    served = start(environment, worker=False, drain_s=1)
    watching = health_pb2_grpc.HealthStub(served.channel).Watch(health_pb2.HealthCheckRequest())
    assert next(watching).status == health_pb2.HealthCheckResponse.SERVING
    for turn in range(30):
        pour(served.address, call_of(NO_TEXT), until)
        until(lambda turn=turn: served.log().count("the gRPC server fell") > turn)
        served.client.create_user(f"user{turn}")
    served.process.terminate()
    assert next(watching).status == health_pb2.HealthCheckResponse.NOT_SERVING
    assert served.process.wait(20) == 0
    assert "Traceback" not in served.log()


@pytest.mark.slow
def test_ten_thousand_malformed_messages_are_answered_and_tell_nothing(start, until):
    served = start(worker=False, max_call_s=10, stall_s=5, log_format="json")
    served.client.create_user("ann")
    served.client.create_profile(USER, "LaMP_4")
    battery, dice = Battery(served.address), random.Random(3)
    fire_sound(battery, 160)
    battery.fire(broken(dice, 48))
    battery.fire(garbage(dice))
    battery.fire((method, [b"\x0a" + varint(n) + b"x" * n], ())
                 for method in METHODS for n in (4 << 20, 5 << 20))  # fmt: skip
    for data in wire(dice):
        pour(served.address, data, until)
    assert battery.problems[:9] == []
    assert battery.messages >= 10_000
    assert battery.codes[Code.INVALID_ARGUMENT] > 5_000
    assert battery.codes[Code.RESOURCE_EXHAUSTED] >= len(METHODS)
    served.client.create_user("zoe")
    assert served.client.get_user("users/zoe").name == "users/zoe"
    assert_nothing_told(served)


def test_without_a_key_everything_is_refused_alike(start, tmp_path: Path):
    key, row = make_api_key("acme", "backend")
    path = tmp_path / "keys.json"
    path.write_text(json.dumps([row]))
    served = start(worker=False, api_keys_file=path, log_format="json")
    battery, dice = Battery(served.address), random.Random(4)
    ours = [shot for shot in (*garbage(dice), *broken(dice, 1)) if "grpc" not in shot[0].full_name]
    battery.fire(ours)
    assert battery.problems[:9] == []
    assert battery.codes[Code.UNAUTHENTICATED] > 0.9 * len(ours)
    assert set(battery.codes) <= {Code.UNAUTHENTICATED, Code.RESOURCE_EXHAUSTED}
    for bad in (key[:-1], key.upper(), f"{key} {key}", "~"):
        wrong = Battery(served.address, (("authorization", f"Bearer {bad}"),))
        wrong.fire((m, [b""], ()) for m in METHODS if "grpc" not in m.full_name)
        assert set(wrong.codes) == {Code.UNAUTHENTICATED}
    known = Battery(served.address, (("authorization", f"Bearer {key}"),))
    known.fire(shot for shot in ours if not any(k == "authorization" for k, _ in shot[2]))
    assert known.problems[:9] == []
    assert Code.UNAUTHENTICATED not in known.codes
    assert_nothing_told(served)
    assert key not in served.log()
