"""The client's tests talk to `pocketune serve` as a process of its own, or over a bad network."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import insert

from cloud.client import Client
from cloud.service import artifacts_store
from cloud.service.parts import open_parts
from cloud.service.settings import Settings
from cloud.service.state import new_uid, now
from cloud.service.tables import Base
from protos import artifacts

RECIPE = "executorch-xnnpack-fp32"


class Server:
    """`pocketune serve` on a port of its own choice."""

    def __init__(self, folder: Path, *arguments: str | Path, **settings: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.data = folder / "data"
        self.errors = folder / "stderr"
        command = [sys.executable, "-m", "pocketune", "serve", "--data-dir", self.data,
                   "--port", "0", *arguments]  # fmt: skip
        environment = {f"POCKETUNE_{name.upper()}": value for name, value in settings.items()}
        with self.errors.open("ab") as errors:
            self.process = subprocess.Popen(
                [str(part) for part in command], stdout=subprocess.PIPE, stderr=errors, text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            )  # fmt: skip
        assert self.process.stdout is not None
        self.greeting = self.process.stdout.readline()
        found = re.search(r"serves on (\S+:\d+)", self.greeting)
        assert found, self.greeting + self.errors.read_text()
        self.address = found[1]

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Its exit status and what it said last."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        said = self.process.communicate(timeout=60)[0]
        return self.process.returncode, said


Start = Callable[..., Server]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start servers; each call takes options and settings. They share the data folder."""
    servers: list[Server] = []

    def begin(*arguments: str | Path, **settings: str) -> Server:
        servers.append(Server(tmp_path / "server", *arguments, **settings))
        return servers[-1]

    yield begin
    for server in servers:
        if server.process.poll() is None:
            server.process.kill()
        server.process.communicate()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server without a worker, for all tests of a module."""
    server = Server(tmp_path_factory.mktemp("shared"), "--no-worker")
    yield server
    server.stop()


@pytest.fixture
def address(shared: Server) -> str:
    return shared.address


@pytest.fixture(scope="module")
def stocked(
    shared: Server, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, str, dict[str, bytes]]:
    """Address, name and files of a bundle of about 1 MB, stored as the publish stage does."""
    contents = {"adapter.ptd": random.Random(1).randbytes(1_000_000), "goldens/one.json": b"{}"}
    folder = tmp_path_factory.mktemp("bundle") / "bundle"
    with artifacts.create(folder, "AdapterBundle", {"base_bundle": "b" * 64}, {}) as draft:
        for name, content in contents.items():
            (draft.path / name).parent.mkdir(parents=True, exist_ok=True)
            (draft.path / name).write_bytes(content)
    made = artifacts.open_artifact(folder)
    with Client(shared.address) as client:
        user = client.create_user(f"u{uuid.uuid4().hex[:12]}")
    with open_parts(Settings(data_dir=shared.data)) as parts:
        space = parts.vault.space("local", user.uid)
        facts = artifacts_store.store(space, made)
        base = {"uid": new_uid(), "tenant": "local", "base_id": "pocket", "source": "pocket",
                "digest": "d" * 64, "architecture": "Llama", "files": b"[]",
                "create_time": now()}  # fmt: skip
        owner = artifacts_store.Owner(user.uid, None, base["uid"], RECIPE, "a" * 64)
        with parts.database.transaction() as connection:
            connection.execute(insert(Base).values(**base))
            artifacts_store.put(connection, space, owner, "AdapterBundle", made.id, facts)
    files = {str(path.relative_to(folder)): path.read_bytes()
             for path in folder.rglob("*") if path.is_file()}  # fmt: skip
    return shared.address, f"{user.name}/bundles/{made.id}", files


class Network:
    """A relay between client and server that breaks connections.

    cuts: after how many bytes each connection breaks, one after the other; then none does.
    refuse: how many connections are closed at once, before all that.
    """

    def __init__(self, address: str, cuts: list[int], refuse: int = 0) -> None:
        self._to = address.split(":")
        self._cuts = cuts
        self._refuse = refuse
        self.connections = 0
        self.bytes = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        made = asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._server = asyncio.run_coroutine_threadsafe(made, self._loop).result()
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if self.connections <= self._refuse:
            writer.close()
            return
        left = [self._cuts.pop(0) if self._cuts else sys.maxsize]
        there = await asyncio.open_connection(self._to[0], int(self._to[1]))
        await asyncio.gather(self._pump(reader, there[1], left), self._pump(there[0], writer, left))

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, left: list[int]
    ) -> None:
        with contextlib.suppress(OSError), contextlib.closing(writer):
            while left[0] > 0 and (data := await reader.read(16_384)):
                left[0] -= len(data)
                self.bytes += len(data)
                if left[0] > 0:
                    writer.write(data)
                    await writer.drain()
            writer.transport.abort()
            left[0] = 0

    def close(self) -> None:
        async def end() -> None:
            self._server.close()
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.sleep(0)  # transports close in the turn after

        asyncio.run_coroutine_threadsafe(end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture
def network() -> Iterator[Callable[..., Network]]:
    made: list[Network] = []

    def make(address: str, cuts: list[int], refuse: int = 0) -> Network:
        made.append(Network(address, cuts, refuse))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def free_address() -> str:
    """Nobody listens here."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{found.getsockname()[1]}"


@pytest.fixture(scope="session")
def certificates(program, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `cert.pem` for 127.0.0.1, its own authority, and `key.pem`."""
    folder = tmp_path_factory.mktemp("certificates")
    subprocess.run(
        [program("openssl", "install openssl"), "req", "-x509", "-newkey", "ec",
         "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=pocketune-test",
         "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", folder / "key.pem", "-out", folder / "cert.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    return folder
