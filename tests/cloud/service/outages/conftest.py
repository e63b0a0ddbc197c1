"""A server as a process of its own, and a gate in front of what it depends on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Coroutine, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.api import resource_pb2
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from sqlalchemy import insert, select

from cloud.client import Client
from cloud.service import artifacts_store
from cloud.service.artifacts_store import Owner
from cloud.service.parts import open_parts
from cloud.service.server import _FILES
from cloud.service.settings import Settings
from cloud.service.state import new_uid
from cloud.service.tables import Base, Profile, User
from protos import artifacts
from protos.v1 import profiles_pb2

METHODS = {
    method.name: method
    for file in _FILES
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
"""Every RPC, from the descriptors: one that is added later is tried without a change here."""


_USER, _DIGEST, _UUID = "users/ann", "0123456789abcdef" * 4, "00000000-0000-4000-8000-000000000000"
_NAMES = {
    "User": _USER, "Consent": f"{_USER}/consent", "Profile": f"{_USER}/profiles/LaMP_4",
    "Adapter": f"{_USER}/adapters/{_DIGEST}", "Bundle": f"{_USER}/bundles/{_DIGEST}",
    "ParityReport": f"{_USER}/parityReports/{_UUID}", "Base": "bases/pocket",
    "Operation": f"operations/{_UUID}",
}  # fmt: skip
_PLAIN = {"recipe": "executorch-xnnpack-8da4w", "file": "manifest.json", "profile_id": "LaMP_5",
          "user_id": "newcomer", "base_id": "newcomer", "source": "pocket",
          "runtime": "phone"}  # fmt: skip


def sound_request(method: MethodDescriptor) -> Message:
    """A request that gets as far as the database."""
    request = GetMessageClass(method.input_type)()
    _fill(request)
    if method.name == "GetUpload":
        request.request_id = _UUID
    if method.name == "UpdateConsent":
        request.consent.name, request.consent.retention_days = _NAMES["Consent"], 5
    if method.name == "AppendItems":
        request.items.add(input="a", output="b")
    if method.name == "CreateParityReport":
        request.parity_report.passed = True
        request.parity_report.gates.add(metric="top1", value=1, passed=True)
    return request


def _fill(message: Message) -> None:
    for field in message.DESCRIPTOR.fields:
        if field.type == FieldDescriptor.TYPE_STRING and not field.is_repeated:
            found: Any = field.GetOptions().Extensions[resource_pb2.resource_reference]
            kind = "User" if found.child_type else found.type.removeprefix("pocketune.dev/")
            if field.name == "name" and message.DESCRIPTOR.file.package == "google.longrunning":
                kind = "Operation" if "List" not in message.DESCRIPTOR.name else ""
            if kind or field.name in _PLAIN:
                setattr(message, field.name, _NAMES[kind] if kind else _PLAIN[field.name])
        elif field.name in ("base", "parity_report"):
            _fill(getattr(message, field.name))


@dataclass(frozen=True)
class Outcome:
    """How a call ended. wait_s: what RetryInfo says; 0: there is none."""

    code: grpc.StatusCode
    text: str
    wait_s: float
    answers: list[Any]
    seconds: float


ROOT = Path(__file__).parents[4]
WORKER = Path(__file__).parents[1] / "worker_process.py"


class Gate:
    """A TCP proxy on a port of its own: open, shut (cuts and refuses) or silent (just waits)."""

    def __init__(self, host: str, port: int) -> None:
        self._target = host, port
        self._loop = asyncio.new_event_loop()
        self._inside: set[asyncio.StreamWriter] = set()
        self._flows = asyncio.Event()
        self._flows.set()
        self._is_shut = False
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server: asyncio.Server = self._call(self._listen())
        self.port: int = self._server.sockets[0].getsockname()[1]

    def open(self) -> None:
        """Let everything through; what waited in silence goes on."""
        self._is_shut = False
        self._loop.call_soon_threadsafe(self._flows.set)

    def shut(self) -> None:
        """Cut every connection, and each new one at once."""
        self._is_shut = True
        self._call(self._cut())

    def silence(self) -> None:
        """Connections stay, new ones are taken, and nothing passes."""
        self._loop.call_soon_threadsafe(self._flows.clear)

    def close(self) -> None:
        self._call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _call(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._enter, "127.0.0.1", 0)

    async def _cut(self) -> None:
        for writer in self._inside:
            writer.transport.abort()

    async def _end(self) -> None:
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _enter(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            if self._is_shut:
                return writer.transport.abort()
            far_reader, far_writer = await asyncio.open_connection(*self._target)
            both = {writer, far_writer}
            self._inside |= both
            await asyncio.gather(
                self._pass(reader, far_writer), self._pass(far_reader, writer),
                return_exceptions=True,
            )  # fmt: skip
            self._inside -= both
        return None

    async def _pass(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65_536):
                await self._flows.wait()
                sink.write(data)
                await sink.drain()
        finally:
            sink.close()


to_json = partial(json.dumps, default=str)


class Served:
    """A running `pocketune serve`, its log, and a client of it."""

    def __init__(self, folder: Path, environment: dict[str, str], settings: dict[str, Any]) -> None:
        self._errors = folder / f"stderr{time.monotonic_ns()}"
        given = {
            "data_dir": folder / "data",
            "port": 0,
            "threads": 1,
            "context_length": 128,
            **settings,
        }
        self.settings = Settings(**given)
        self.data = self.settings.data_dir
        variables = {
            f"POCKETUNE_{name.upper()}": json.dumps(value)
            if isinstance(value, dict)
            else str(value)
            for name, value in given.items()
        }
        with self._errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pocketune", "serve"], text=True, stdout=subprocess.PIPE,
                stderr=errors, env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE", **variables,
                                    **environment},
            )  # fmt: skip
        assert self.process.stdout
        found = re.search(r"serves on (\S+:\d+)", self.process.stdout.readline())
        assert found, self._errors.read_text()
        self.address = found[1]
        self.client = Client(self.address)
        self.channel = grpc.insecure_channel(self.address)

    def call(
        self, name: str, request: Message | Iterator[Message] | None = None, timeout: float = 30
    ) -> Outcome:
        """Call an RPC by its name, without retries."""
        method: MethodDescriptor = METHODS[name]
        if request is None:
            request = sound_request(method)
        service: Any = method.containing_service
        sends, gives = (
            "stream" if is_stream else "unary"
            for is_stream in (method.client_streaming, method.server_streaming)
        )
        stub = getattr(self.channel, f"{sends}_{gives}")(
            f"/{service.full_name}/{name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
        given = iter([request]) if sends == "stream" and isinstance(request, Message) else request
        answers: list[Any] = []
        started = time.monotonic()
        try:
            answer = stub(given, timeout=timeout)
            answers.extend(answer if gives == "stream" else [answer])
        except grpc.RpcError as error:
            wait_s = retry_after_s(error.trailing_metadata() or ())
            return Outcome(error.code(), error.details() or "", wait_s, answers,
                           time.monotonic() - started)  # fmt: skip
        return Outcome(grpc.StatusCode.OK, "", 0.0, answers, time.monotonic() - started)

    def add_user(self, user_id: str = "ann", items: int = 2) -> str:
        """A user with a profile and items; gives the profile's name."""
        self.client.create_user(user_id)
        name = self.client.create_profile(f"users/{user_id}", "LaMP_4").name
        told = [profiles_pb2.Item(input=f"item {n}", output=f"title {n}") for n in range(items)]
        self.client.upload(name, told)
        return name

    def add_adapter(self, folder: Path, content: bytes, user_id: str = "ann") -> str:
        """Store an adapter with a file `big.bin` as the publish stage does; gives its name."""
        path = folder / uuid.uuid4().hex
        with artifacts.create(path, "Adapter", {}, {"n": str(path)}) as draft:
            (draft.path / "big.bin").write_bytes(content)
        made = artifacts.open_artifact(path)
        of_user = select(Profile.user_uid, Profile.uid).join(User, User.uid == Profile.user_uid)
        base = {"uid": new_uid(), "tenant": "local", "base_id": "x", "source": "x",
                "digest": "d" * 64, "architecture": "x", "files": b"[]",
                "create_time": 1}  # fmt: skip
        with open_parts(self.settings) as parts:
            with parts.database.transaction() as connection:
                connection.execute(insert(Base).values(base))
                row = connection.execute(of_user.where(User.user_id == user_id)).one()
            space = parts.vault.space("local", row.user_uid)
            facts = artifacts_store.store(space, made)
            owner = Owner(row.user_uid, row.uid, base["uid"])
            with parts.database.transaction() as connection:
                artifacts_store.put(connection, space, owner, "Adapter", made.id, facts)
        return f"users/{user_id}/adapters/{made.id}"

    def health(self) -> str:
        stub = health_pb2_grpc.HealthStub(self.channel)
        found = stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
        return health_pb2.HealthCheckResponse.ServingStatus.Name(found.status)

    def is_alive(self) -> bool:
        return self.process.poll() is None

    def log(self) -> str:
        return self._errors.read_text()

    def lines(self) -> list[str]:
        """What the toy pipeline of `worker` has written."""
        log = self.data / "log"
        return log.read_text().splitlines() if log.exists() else []

    def events(self) -> list[dict[str, Any]]:
        """What was logged; a line that is no event, such as a traceback's, fails the test."""
        return [json.loads(line) for line in self.log().splitlines()]

    def memory_mib(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found
        return int(found[1]) / 1024

    def end(self) -> None:
        self.client.close()
        self.channel.close()
        self.process.kill()
        self.process.communicate()


Start = Callable[..., Served]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start servers; each call takes settings, and the process's environment apart from them."""
    made: list[Served] = []

    def begin(environment: dict[str, str] | None = None, **settings: Any) -> Served:
        made.append(Served(tmp_path, environment or {}, settings))
        return made[-1]

    yield begin
    for served in made:
        served.end()


@pytest.fixture
def worker() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start workers with a toy pipeline, whose stage `heavy` sleeps as the teacher's name says."""
    made: list[subprocess.Popen[bytes]] = []

    def begin(
        url: str, data: Path, environment: dict[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        made.append(
            subprocess.Popen([sys.executable, str(WORKER), url, str(data)],
                             env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})})
        )  # fmt: skip
        return made[-1]

    yield begin
    for process in made:
        process.kill()
        process.wait()


Between = Callable[[str, int], Gate]


@pytest.fixture
def gate() -> Iterator[Between]:
    """Put a gate before an address."""
    made: list[Gate] = []

    def put(host: str, port: int) -> Gate:
        made.append(Gate(host, port))
        return made[-1]

    yield put
    for each in made:
        each.close()


def until(what: Callable[[], Any], seconds: float = 60, every: float = 0.1) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(every)
    return found


@pytest.fixture
def methods() -> list[str]:
    """The names of all RPCs."""
    return list(METHODS)


@pytest.fixture(name="until")
def waiting() -> Callable[..., Any]:
    """`until(what, seconds)`: wait for a truth, and give it."""
    return until


def retry_after_s(metadata: Iterable[tuple[str, Any]]) -> float:
    found = error_details_pb2.RetryInfo()
    for name, value in metadata:
        if name == "grpc-status-details-bin":
            for detail in status_pb2.Status.FromString(value).details:
                if detail.Unpack(found):
                    return found.retry_delay.ToTimedelta().total_seconds()
    return 0.0
