"""A whole service as processes that can be killed, and what must hold when all is over.

In: settings that all processes share. Out: `Fleet`: a server on a port that stays the same, and
workers; whatever is killed is begun again. `Fleet.faults` then lists what it left behind or did
twice. The figures come from what the service itself keeps: its rows, its stores, its logs.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Row, select

from cloud.service import artifacts_store, messages, scratch
from cloud.service.crypto import make_root_key
from cloud.service.parts import Parts, open_parts
from cloud.service.settings import Settings
from cloud.service.state import Database
from cloud.service.sweeper import Sweeper
from cloud.service.tables import Artifact, Base, Operation, User

ROOT = Path(__file__).parents[1]
STAGES = ("prepare", "augment", "train", "lower", "export", "parity", "publish")
ERASURE = ("stop", "list", "remove")
_GONE_S = 20.0


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@dataclass
class Member:
    """One process of the fleet. starts: how often it was begun; since: when, the last time."""

    name: str
    arguments: list[str]
    data: Path
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0
    since: float = 0.0


@dataclass
class Fleet:
    """A server and workers below `folder`; each worker is a host of its own unless `one_folder`."""

    folder: Path
    settings: Mapping[str, Any]
    workers: int
    one_folder: bool = False
    kills: int = 0
    members: dict[str, Member] = field(default_factory=dict[str, Member])

    def __post_init__(self) -> None:
        self.tag = uuid.uuid4().hex
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.temporary = self.folder / "tmp"
        self.temporary.mkdir(parents=True)
        self.shared = {
            **self.settings, "root_key_file": str(self.folder / "root.key"),
            "server_key_file": str(self.folder / "server.key"),
        }  # fmt: skip
        make_root_key(self.folder / "root.key")
        make_root_key(self.folder / "server.key")
        serve = ["serve", "--no-worker", "--port", str(self.port)]
        self._add("server", serve, self.folder / "data")
        for number in range(self.workers):
            data = self.folder / ("data" if self.one_folder else f"host{number}")
            self._add(f"worker{number}", ["worker"], data)

    def _add(self, name: str, arguments: list[str], data: Path) -> None:
        self.members[name] = Member(name, arguments, data)

    def start(self) -> None:
        """The server first: it makes the tables."""
        self.begin("server")
        deadline = time.monotonic() + 120
        while not self.listens():
            if time.monotonic() > deadline:
                raise SystemExit(f"the server does not start; see {self.folder / 'logs'}")
            time.sleep(0.05)
        for name in self.members:
            self.begin(name)

    def listens(self) -> bool:
        """Whether the server takes connections."""
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False

    def begin(self, name: str) -> None:
        """Start a process unless it runs."""
        member = self.members[name]
        if member.process is not None and member.process.poll() is None:
            return
        member.starts += 1
        member.since = time.monotonic()
        logs = self.folder / "logs"
        logs.mkdir(exist_ok=True)
        with (logs / f"{name}.{member.starts:03}").open("wb") as log:
            member.process = subprocess.Popen(
                [sys.executable, "-m", "pocketune", *member.arguments], cwd=ROOT, stderr=log,
                stdout=subprocess.DEVNULL, env=self._environment(member.data),
            )  # fmt: skip

    def begin_all(self) -> None:
        """What a supervisor does: start again whatever has ended."""
        for name in self.members:
            self.begin(name)

    def _environment(self, data: Path) -> dict[str, str]:
        given = {**self.shared, "data_dir": data, "log_format": "json", "log_level": "info"}
        ours = {
            f"POCKETUNE_{name.upper()}": json.dumps(value)
            if isinstance(value, dict)
            else str(value)
            for name, value in given.items()
        }
        return {
            **os.environ, **ours, "PYTHONPATH": str(ROOT), "TMPDIR": str(self.temporary),
            "OMP_NUM_THREADS": "1", "FLEET": self.tag,
            # A cache of torch's with a fixed name, one for each host: no file that a kill leaves.
            "TORCHINDUCTOR_CACHE_DIR": str(self.folder / "cache"),
        }  # fmt: skip

    def kill(self, name: str) -> None:
        """SIGKILL, and nothing else."""
        process = self.members[name].process
        assert process is not None
        process.kill()
        process.wait()
        self.kills += 1

    def oldest(self, kind: str) -> str:
        """Which member, of those whose names begin with `kind`, has run longest."""
        names = [name for name in self.members if name.startswith(kind)]
        return min(names, key=lambda name: self.members[name].since)

    def holder(self, row: Row[Any]) -> str:
        """Which member holds an operation; empty: none that lives."""
        pid = row.worker.rsplit("-", 2)[1] if row.worker else ""
        for name, member in self.members.items():
            if member.process and str(member.process.pid) == pid and member.process.poll() is None:
                return name
        return ""

    def stop(self) -> list[str]:
        """Kill everything; which of its processes are still there a while after."""
        for member in self.members.values():
            if member.process is not None:
                member.process.kill()
                member.process.wait()
        deadline = time.monotonic() + _GONE_S
        while (left := list(self._processes())) and time.monotonic() < deadline:
            time.sleep(0.1)
        for process in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(process.split()[0]), signal.SIGKILL)
        return [f"process left: {each}" for each in left]

    def _processes(self) -> Iterator[str]:
        """Everything that was ever started by a member: it has our mark in its environment."""
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if self.tag.encode() in (folder / "environ").read_bytes():
                    command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    yield f"{folder.name} {command[:120]}"

    def faults(self) -> list[str]:
        """Everything that must not be, once all operations have ended; ends the processes.

        What the daily sweep removes is no fault, so one is made, on half-written files of old.
        """
        found = self.stop() + self._repeated()
        for path in self.folder.rglob(".*.partial"):
            os.utime(path, (0, 0))
        with open_parts(Settings(**{**self.shared, "data_dir": self.folder / "data"})) as parts:
            for member in self.members.values():  # as the next worker on that host does
                scratch.sweep(member.data / "scratch", parts.database)
            sweeper = Sweeper(parts)
            for _ in range(2):  # a key without its user is removed when it is seen twice
                sweeper.sweep(deep=True)
            found += _unended(parts.database) + _unnamed(parts)
        for member in self.members.values():
            left = (member.data / "scratch").glob("*")
            found += [f"scratch left by {member.name}: {path.name}" for path in left]
        found += [f"partial file: {path}" for path in self.folder.rglob(".*.partial")]
        found += [f"temporary file: {path.name}" for path in self.temporary.iterdir()]
        return found

    def events(self) -> Iterator[dict[str, Any]]:
        """What all processes have logged; a line that a kill has cut off is left out."""
        for path in sorted((self.folder / "logs").iterdir()):
            for line in path.read_text().splitlines():
                with contextlib.suppress(json.JSONDecodeError):
                    yield {**json.loads(line), "process": path.name}

    def begun(self) -> dict[str, list[tuple[int, int]]]:
        """For each operation, the attempt and the place in the order of every stage that began."""
        order = {name: number for number, name in enumerate((*STAGES, *ERASURE))}
        found: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for event in self.events():
            if event.get("event") == "stage begins":
                point = (int(event["attempt"]), order[event["stage"]])
                found[event["operation"]].append(point)
        return {operation: sorted(points) for operation, points in found.items()}

    def _repeated(self) -> list[str]:
        """Stages that began again after a later one had begun, or in one attempt twice."""
        found: list[str] = []
        for operation, points in self.begun().items():
            stages = [stage for _, stage in points]
            if stages != sorted(stages) or len(set(points)) < len(points):
                found.append(f"stage repeated in {operation}: {points}")
        return found

    def memory_mib(self) -> dict[str, int]:
        """What each member and the processes that it has started hold for themselves, now."""
        held: Counter[str] = Counter()
        for name, member in self.members.items():
            if member.process is not None:
                held[name] = sum(map(_private_mib, _family(member.process.pid)))
        return dict(held)

    def attempts(self) -> Counter[int]:
        """How many workers the operations needed."""
        database = Database(self.settings["database_url"])
        with database.transaction(write=False) as connection:
            rows = connection.execute(select(Operation.attempt)).scalars().all()
        database.close()
        return Counter(rows)


def _family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    found = [pid]
    for at in found:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{at}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
    return found


def _private_mib(pid: int) -> int:
    """Its share of memory: pages that several processes have in common count in parts."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) // 1024
    return 0


def _unended(database: Database) -> list[str]:
    """Operations that did not end, or not well."""
    wrong = Operation.end_time.is_(None) | Operation.error.is_not(None)
    with database.transaction(write=False) as connection:
        rows = connection.execute(select(Operation.uid, Operation.method).where(wrong)).all()
    return [f"operation {row.uid} ({row.method}) did not end well" for row in rows]


def _unnamed(parts: Parts) -> list[str]:
    """Differences between what the rows name and what the stores hold."""
    named: set[str] = set()
    found: list[str] = []
    with parts.database.transaction(write=False) as connection:
        users = connection.execute(select(User.uid, User.tenant)).all()
        tenants = {user.uid: user.tenant for user in users}
        for row in connection.execute(select(*Artifact.__table__.columns)).all():
            space = parts.vault.shared
            if row.user_uid:
                space = parts.vault.space(tenants[row.user_uid], row.user_uid)
            files = artifacts_store.opened(space, row).files
            named |= {f"{space.prefix}/{file.address}" for file in files}
            if row.kind in (artifacts_store.DRAFT, artifacts_store.CHECKPOINT):
                found.append(f"a {row.kind} is left")
        for base in connection.execute(select(*Base.__table__.columns)).all():
            named |= {f"shared/{file.address}" for file in messages.base_files(base)}
    held = {*parts.vault.blobs.keys("users"), *parts.vault.blobs.keys("shared")}
    keys = {uid for tenant in set(tenants.values()) for uid in parts.vault.owners(tenant)}
    found += [f"blob that no row names: {key}" for key in sorted(held - named)]
    found += [f"blob is lost: {key}" for key in sorted(named - held)]
    found += [f"key of nobody: {uid}" for uid in sorted(keys - set(tenants))]
    return found + [f"user without key: {uid}" for uid in sorted(set(tenants) - keys)]
