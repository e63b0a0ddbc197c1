"""Real parts for the service's tests: PostgreSQL, an S3-speaking server, gRPC on port 0."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
import sqlalchemy

from cloud.service.parts import open_parts
from cloud.service.server import running
from cloud.service.settings import Settings
from cloud.service.state import Database


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="session")
def postgresql(program: Callable[[str, str], str]) -> Iterator[str]:
    """The URL of a PostgreSQL of our own, or of the one that POCKETUNE_TEST_PG names."""
    if given := os.environ.get("POCKETUNE_TEST_PG"):
        yield given
        return
    initdb = program("initdb", "apt-get install postgresql, or set POCKETUNE_TEST_PG")
    binaries = Path(initdb).resolve().parent
    folder = Path(f"/tmp/pocketune-pg-{uuid.uuid4().hex[:8]}")
    folder.mkdir()
    become: list[str] = []
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        become = ["setpriv", "--reuid", "nobody", "--regid", "nogroup", "--clear-groups"]
        shutil.chown(folder, "nobody")
    data, port = folder / "data", free_port()

    def call(name: str, *arguments: str) -> None:
        subprocess.run([*become, str(binaries / name), *arguments], check=True, cwd=folder,
                       stdout=subprocess.DEVNULL)  # fmt: skip

    call("initdb", "-D", str(data), "-U", "pocketune", "--auth=trust", "-E", "UTF8", "-N")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -F"
    call("pg_ctl", "-D", str(data), "-w", "-l", str(folder / "log"), "-o", options, "start")
    yield f"postgresql+psycopg://pocketune@127.0.0.1:{port}/postgres"
    call("pg_ctl", "-D", str(data), "-m", "immediate", "stop")
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def fresh_postgresql(postgresql: str) -> Iterator[str]:
    """The URL of an empty database."""
    name = f"t{uuid.uuid4().hex[:12]}"
    admin = sqlalchemy.create_engine(postgresql, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    yield postgresql.rsplit("/", 1)[0] + f"/{name}"
    with admin.connect() as connection:
        connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
    admin.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The same test on both databases."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'state.db'}"
    return request.getfixturevalue("fresh_postgresql")


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    found = Database(database_url)
    found.migrate()
    yield found
    found.close()


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """The endpoint of an S3-speaking server (moto's), as a process of its own."""
    port = free_port()
    os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
                   "AWS_DEFAULT_REGION": "us-east-1"}  # fmt: skip
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            break
        time.sleep(0.1)
    yield f"http://127.0.0.1:{port}"
    server.terminate()
    server.wait()


@pytest.fixture
def bucket(s3: str) -> str:
    """The `s3://` URL of an empty bucket."""
    import boto3

    name = f"b{uuid.uuid4().hex[:12]}"
    boto3.client("s3", endpoint_url=s3).create_bucket(Bucket=name)
    return f"s3://{name}/pocketune"


Serve = Callable[..., str]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start servers on port 0; each call takes settings and returns an address."""
    stops: list[Callable[[], None]] = []

    def start(**given: object) -> str:
        ours = {"data_dir": tmp_path / "data", "port": 0, "worker": False, "drain_s": 1}
        settings = Settings(**{**ours, **given})  # type: ignore[arg-type]
        ready = threading.Event()
        found: dict[str, object] = {}

        async def main() -> None:
            stop = asyncio.Event()
            found["loop"], found["stop"] = asyncio.get_running_loop(), stop
            with open_parts(settings) as parts:
                async with running(parts) as port:
                    found["port"] = port
                    ready.set()
                    await stop.wait()

        thread = threading.Thread(target=lambda: asyncio.run(main()))
        thread.start()
        assert ready.wait(60)
        stops.append(lambda: (found["loop"].call_soon_threadsafe(found["stop"].set), thread.join()))  # type: ignore
        return f"127.0.0.1:{found['port']}"

    yield start
    for stop in stops:
        stop()


@pytest.fixture
def channel(serve: Serve, database_url: str) -> Iterator[grpc.Channel]:
    """A channel to a default server, on each of the databases."""
    with grpc.insecure_channel(serve(database_url=database_url)) as found:
        yield found
