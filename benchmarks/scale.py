"""Many users on one machine, a worker killed every few seconds: each is personalized exactly once.

`python benchmarks/scale.py [--users 60] [--kill-every 10] [--out results.json]` starts the real
processes: `pocketune serve`, three `pocketune worker`s, PostgreSQL and an S3-speaking server
(moto's), or uses those that `--database-url` and `--s3` name. The base is lowered, then all users
are uploaded and begun at once; the worker that has run longest gets SIGKILL and is begun again.
Ends with a table, and with exit code 1 if an operation did not end well exactly once, an item is
lost, a stage was repeated, or a file, blob, key or process is left that belongs to nobody.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fleet import ROOT, Fleet, free_port

from cloud.client import Client
from cloud.client.errors import CallError
from cloud.client.operation import Operation
from protos.v1 import profiles_pb2

WORKERS = 3
QUESTIONS = ROOT / "cloud/pocket/users/LaMP_4/dev_questions.json"
Personalized = Operation[profiles_pb2.PersonalizeProfileResponse]


@contextlib.contextmanager
def postgresql() -> Iterator[str]:
    """A PostgreSQL of our own; gives its URL."""
    found = shutil.which("initdb") or next(
        map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)), None
    )
    if found is None:
        raise SystemExit("no initdb here: apt-get install postgresql, or give --database-url")
    folder, port = Path(tempfile.mkdtemp(prefix="pocketune-pg-")), free_port()
    folder.chmod(0o755)
    become: list[str] = []
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        become = ["setpriv", "--reuid", "nobody", "--regid", "nogroup", "--clear-groups"]
        shutil.chown(folder, "nobody")

    def call(name: str, *arguments: str) -> None:
        program = str(Path(found).resolve().with_name(name))
        command = [*become, program, "-D", str(folder / "data"), *arguments]
        subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL)

    call("initdb", "-U", "pocketune", "--auth=trust", "-E", "UTF8")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder}"
    call("pg_ctl", "-w", "-l", str(folder / "log"), "-o", options, "start")
    try:
        yield f"postgresql+psycopg://pocketune@127.0.0.1:{port}/postgres"
    finally:
        call("pg_ctl", "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def s3() -> Iterator[str]:
    """An S3-speaking server (moto's) as a process of its own; gives its endpoint."""
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def bucket(endpoint: str) -> str:
    """The URL of a new bucket."""
    import boto3

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        os.environ.setdefault(name, "test")
    os.environ.setdefault("AWS_DEFAULT_REGION", "us-east-1")
    name = f"scale-{uuid.uuid4().hex[:12]}"
    boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket=name)
    return f"s3://{name}/pocketune"


def begin(client: Client, users: int, recipe: str) -> tuple[dict[str, list[str]], list[str]]:
    """Lower the base, upload all users and begin; gives item ids by profile, and operations."""
    rows = json.loads(QUESTIONS.read_text("utf-8"))
    client.wait(client.create_base("base", "base"))
    client.wait(client.lower_base("bases/base", recipe))
    items: dict[str, list[str]] = {}
    names: list[str] = []
    for number in range(users):
        client.create_user(f"user{number}")
        profile = client.create_profile(f"users/user{number}", "LaMP_4").name
        chosen = [
            profiles_pb2.Item(item_id=row["id"], input=row["text"], output=row["title"])
            for row in rows[number % len(rows)]["profile"][:8]
        ]
        client.upload(profile, chosen)
        items[profile] = [item.item_id for item in chosen]
        request = profiles_pb2.PersonalizeProfileRequest(
            name=profile, base="bases/base", recipe=recipe,
            augment={"per_real": 0.5}, train={"epochs": 1},
        )  # fmt: skip
        names.append(client.personalize(request).name)
    return items, names


def kill_until_done(fleet: Fleet, client: Client, given: argparse.Namespace) -> float:
    """Kill one worker every few seconds until no operation is open; gives the seconds it took."""
    rng, started = random.Random(given.seed), time.monotonic()
    due = started + given.kill_every
    while left := len(list(client.list_operations(only_open=True))):
        fleet.begin_all()
        if time.monotonic() >= due and fleet.kills < given.most_kills:
            due += given.kill_every * rng.uniform(0.5, 1.5)
            name = fleet.oldest("worker")
            fleet.kill(name)
            fleet.begin(name)
            print(f"{time.monotonic() - started:6.0f} s: {left} open, {name} killed", flush=True)
        time.sleep(0.5)
    return time.monotonic() - started


def wrong_results(client: Client, items: dict[str, list[str]], names: list[str]) -> list[str]:
    """Operations without the one result that they must have, and items that are lost."""
    found: list[str] = []
    answer = profiles_pb2.PersonalizeProfileResponse
    for (profile, ids), name in zip(items.items(), names, strict=True):
        user = profile.split("/profiles")[0]
        try:
            made = client.get_operation(name, answer).response()
        except CallError as error:
            found.append(f"{name}: {error}")
            continue
        one = [made.adapter] == list(client.list_adapters(user))
        if not (one and [made.bundle] == list(client.list_bundles(user))):
            found.append(f"{user}: not one adapter and one bundle")
        if [item.item_id for item in client.list_items(profile)] != ids:
            found.append(f"{profile}: items lost or doubled")
    if len(list(client.list_operations())) != len(names) + 2:  # the base made, the base lowered
        found.append("there are more operations than were begun")
    return found


def measure(given: argparse.Namespace, folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The whole run."""
    base = given.base or ROOT / "cloud/pocket/models/base"
    fleet = Fleet(
        folder,
        {
            **settings, "base_sources": {"base": str(base)}, "context_length": 128, "threads": 1,
            "worker_timeout_s": 5, "job_attempts": 1000, "lowered_rank": 8,
        },
        WORKERS,
    )  # fmt: skip
    problems: list[str] = []
    try:
        fleet.start()
        with Client(fleet.address) as client:
            items, names = begin(client, given.users, given.recipe)
            seconds = kill_until_done(fleet, client, given)
            problems += wrong_results(client, items, names)
            peak = fleet.memory_mib()
    finally:
        problems += fleet.faults()
    attempts = fleet.attempts()
    return {
        "users": given.users,
        "seconds": round(seconds, 1),
        "kills": fleet.kills,
        "attempts": {str(number): attempts[number] for number in sorted(attempts)},
        "worker_mib": peak,
        "problems": problems,
    }


def main() -> None:
    """Run, print, and write the figures where `--out` says."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--users", type=int, default=60)
    arguments.add_argument("--kill-every", type=float, default=10.0, help="seconds")
    arguments.add_argument("--most-kills", type=int, default=sys.maxsize)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--base", type=Path, help="a Hugging Face folder; else the bundled one")
    arguments.add_argument("--recipe", default="executorch-xnnpack-8da4w")
    arguments.add_argument("--database-url", help="an empty PostgreSQL database")
    arguments.add_argument("--s3", help="endpoint of an S3 store in which to make a bucket")
    arguments.add_argument("--out", type=Path)
    given = arguments.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that all processes end with it
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="scale-")))
        endpoint = given.s3 or stack.enter_context(s3())
        settings = {
            "database_url": given.database_url or stack.enter_context(postgresql()),
            "blobs_url": bucket(endpoint),
            "s3_endpoint_url": endpoint,
        }
        figures = measure(given, folder / "fleet", settings)
    for name, value in figures.items():
        print(f"{name:<12} {value}")
    if given.out:
        given.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    if figures["problems"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
