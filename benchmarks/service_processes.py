"""The processes of the service's benchmark: `pocketune serve`, the bare servers, the client.

In: settings and arguments. Out: `Server`s, which end with the block that they are opened in, and
what the client has measured.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.alone import ROOT

_BINARIES = sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin")), reverse=True)


class Server(NamedTuple):
    """A running server."""

    address: str
    pid: int

    def rss_bytes(self) -> int:
        """Memory that the process holds now. Linux only: it stands in /proc."""
        found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text())
        if not found:
            raise SystemExit(f"process {self.pid}: no VmRSS in /proc, has it ended?")
        return int(found[1]) * 1024


@contextlib.contextmanager
def pocketune(data_dir: Path, **settings: str) -> Generator[Server]:
    """The real server on a free port, without a worker; `settings` as in docs/service.md."""
    given = {"POCKETUNE_DATA_DIR": str(data_dir), "POCKETUNE_PORT": "0",
             "POCKETUNE_WORKER": "false", "POCKETUNE_DRAIN_S": "1"}  # fmt: skip
    given |= {f"POCKETUNE_{name.upper()}": value for name, value in settings.items()}
    data_dir.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pocketune", "serve"]
    with _serving(command, data_dir / "log", given) as server:
        yield server


@contextlib.contextmanager
def bare(answers: Path, file: Path) -> Generator[Server]:
    """The bare servers of service_bare.py."""
    command = [sys.executable, "-m", "benchmarks.service_bare", str(answers), str(file)]
    with _serving(command, answers / "log", {}) as server:
        yield server


@contextlib.contextmanager
def _serving(command: Sequence[str], log: Path, settings: dict[str, str]) -> Generator[Server]:
    """A server that prints where it serves; what it logs goes to a file, as it would in use."""
    with log.open("wb") as errors:
        process = subprocess.Popen(
            command, cwd=ROOT, env=_environment() | settings, stdout=subprocess.PIPE,
            stderr=errors, text=True,
        )  # fmt: skip
    try:
        assert process.stdout
        said = process.stdout.readline()
        found = re.search(r"serves on (\S+:\d+)", said)
        if not found:
            raise SystemExit(f"{' '.join(command)} did not start: {said}{log.read_text()[-2000:]}")
        yield Server(found[1], process.pid)
    finally:
        process.terminate()
        try:
            process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def client(task: str, **given: Any) -> dict[str, Any]:
    """Let the client do a task of service_client.py and return what it measured."""
    with client_running(task, **given) as process:
        return finished(process)


@contextlib.contextmanager
def client_running(task: str, **given: Any) -> Generator[subprocess.Popen[str]]:
    """A client at work on a task; ask `finished` for its figures."""
    command = [sys.executable, "-m", "benchmarks.service_client", task, json.dumps(given)]
    process = subprocess.Popen(
        command, cwd=ROOT, env=_environment(), stdout=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def finished(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What a client has measured.

    Raises:
        SystemExit: it found something wrong, and has said what.
    """
    said, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"the client ended with {process.returncode}, see above")
    return json.loads(said)


@contextlib.contextmanager
def postgresql() -> Generator[str | None]:
    """The URL of a PostgreSQL of our own with an empty database; None where none is installed."""
    initdb = shutil.which("initdb", path=os.pathsep.join([*_BINARIES, os.environ["PATH"]]))
    if initdb is None:
        yield None
        return
    binaries = Path(initdb).resolve().parent
    folder = Path(f"/tmp/pocketune-bench-{uuid.uuid4().hex[:8]}")
    folder.mkdir()
    become: list[str] = []
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        become = ["setpriv", "--reuid", "nobody", "--regid", "nogroup", "--clear-groups"]
        shutil.chown(folder, "nobody")
    data, port = str(folder / "data"), _free_port()

    def call(name: str, *arguments: str) -> None:
        subprocess.run([*become, str(binaries / name), "-D", data, *arguments], check=True,
                       cwd=folder, stdout=subprocess.DEVNULL)  # fmt: skip

    try:
        call("initdb", "-U", "pocketune", "--auth=trust", "-E", "UTF8")
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder}"
        call("pg_ctl", "-w", "-l", str(folder / "log"), "-o", options, "start")
        try:
            yield f"postgresql+psycopg://pocketune@127.0.0.1:{port}/postgres"
        finally:
            call("pg_ctl", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _environment() -> dict[str, str]:
    """Ours, without settings of the service that happen to be set."""
    return {name: value for name, value in os.environ.items() if "POCKETUNE" not in name}


def sample_rss(server: Server, process: subprocess.Popen[str], every_s: float) -> list[int]:
    """The memory of a server, again and again until a client has ended."""
    found: list[int] = []
    while process.poll() is None:
        found.append(server.rss_bytes())
        time.sleep(every_s)
    return found
