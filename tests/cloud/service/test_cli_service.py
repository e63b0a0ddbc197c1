"""`pocketune serve`, `worker`, `doctor`, `keys` and `remote`, as their users meet them."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

ITEMS = '{"input": "a b", "output": "c"}\n{"input": "d e", "output": "f"}\n'


def pocketune(*arguments: str | Path, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pocketune", *map(str, arguments)],
        capture_output=True, text=True, timeout=120, env={**os.environ, **settings},
    )  # fmt: skip


class Served:
    """A running `pocketune serve` or `worker`, with what it has written."""

    def __init__(self, folder: Path, *arguments: str | Path, **settings: str) -> None:
        self.errors = folder / f"stderr{time.monotonic_ns()}"
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pocketune", *map(str, arguments)], text=True,
                stdout=subprocess.PIPE, stderr=errors, env={**os.environ, **settings},
            )  # fmt: skip
        assert self.process.stdout
        self.greeting = self.process.stdout.readline()

    @property
    def address(self) -> str:
        found = re.search(r"serves on (\S+:\d+)", self.greeting)
        assert found, self.errors.read_text()
        return found[1]

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        self.process.send_signal(number)
        said = self.process.communicate(timeout=60)[0]
        return self.process.returncode, said

    def events(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.errors.read_text().splitlines()]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator:
    made: list[Served] = []

    def start(*arguments: str | Path, **settings: str) -> Served:
        made.append(Served(tmp_path, "serve", "--data-dir", tmp_path / "data", "--port", "0",
                           *arguments, **settings))  # fmt: skip
        return made[-1]

    yield start
    for each in made:
        each.process.kill()
        each.process.communicate()


def test_serve_says_where_it_is_and_how_to_call_it_and_drains_on_ctrl_c(serve):
    server = serve("--no-worker")
    said = server.greeting + "".join(server.process.stdout.readline() for _ in range(2))
    assert "plain, this machine only" in said
    assert f"pocketune remote personalize items.jsonl --base pocket --out work --server " \
           f"{server.address}" in said  # fmt: skip
    code, rest = server.end(signal.SIGINT)
    assert (code, rest.splitlines()[-1]) == (0, "Drained.")
    events = [event["event"] for event in server.events()]
    assert events[0] == "serving"
    assert events[-1] == "draining"


def test_a_call_that_runs_when_the_server_is_told_to_stop_still_ends(serve):
    from cloud.client import Client
    from protos.v1 import profiles_pb2

    server = serve("--no-worker", POCKETUNE_DRAIN_S="120")
    with Client(server.address) as client:
        client.create_user("ann")
        profile = client.create_profile("users/ann", "LaMP_4").name
        items = [profiles_pb2.Item(input=f"{n}" * 9000, output="x") for n in range(1, 300)]

        def progress(_: str, share: float) -> None:
            if 0 < share < 0.5:
                server.process.send_signal(signal.SIGTERM)

        assert client.upload(profile, items, progress=progress).upload.next_index == 299
    assert server.process.wait(60) == 0


def test_remote_uploads_once_shows_what_runs_and_names_what_is_wrong(serve, tmp_path: Path):
    server = serve("--no-worker")
    source = tmp_path / "items.jsonl"
    source.write_text(ITEMS)
    at = ("--server", server.address)
    upload = ("remote", "upload", source, "--user", "ann", "--task", "mails",
              "--prompt", "Answer: {input}", *at)  # fmt: skip
    assert pocketune(*upload).stdout == "users/ann/profiles/mails: 2 new, 2 items\n"
    again = json.loads(pocketune(*upload, "--json").stdout)
    assert again["profile"]["itemCount"] == "2"
    assert again["profile"]["kind"] == "TASK_KIND_GENERATION"
    assert pocketune("remote", "status", *at).stdout == ""
    lost = pocketune("remote", "status", "operations/x", *at)
    assert (lost.returncode, lost.stderr.count("\n")) == (8, 1)
    assert "expected operations/{uuid}" in lost.stderr
    gone = pocketune("remote", "download", "users/ann/bundles/" + "0" * 64, "--out", tmp_path, *at)
    assert (gone.returncode, "not found" in gone.stderr) == (8, True)
    wrong = pocketune("remote", "status", "--server", "nowhere")
    assert (wrong.returncode, "expected host:port" in wrong.stderr) == (2, True)
    nobody = pocketune("remote", "status", "--server", "127.0.0.1:1")
    assert (nobody.returncode, "is `pocketune serve` running" in nobody.stderr) == (8, True)


def test_keys_are_shown_once_listed_and_revoked_and_their_file_lets_nobody_in(tmp_path: Path):
    path = tmp_path / "keys.json"
    made = pocketune("keys", "create", "backend", "--tenant", "acme", "--file", path)
    key = made.stdout.strip()
    assert key.startswith("pkt_")
    assert key not in path.read_text()
    assert path.stat().st_mode & 0o077 == 0
    twice = pocketune("keys", "create", "backend", "--tenant", "acme", "--file", path)
    assert (twice.returncode, "already" in twice.stderr) == (2, True)
    bad = pocketune("keys", "create", "x", "--tenant", "../acme", "--file", path)
    assert (bad.returncode, "no id" in bad.stderr) == (2, True)
    assert pocketune("keys", "list", "--file", path).stdout == "backend\tacme\n"
    assert pocketune("keys", "revoke", "backend", "--file", path).returncode == 0
    assert pocketune("keys", "list", "--file", path).stdout == ""
    assert pocketune("keys", "revoke", "backend", "--file", path).returncode == 2
    root = tmp_path / "root.key"
    assert pocketune("keys", "root", root).returncode == 0
    first = root.read_bytes()
    pocketune("keys", "root", root)
    assert root.read_bytes() == first


def test_the_key_of_receipts_is_told_but_never_made_up(tmp_path: Path):
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        PublicFormat,
        load_pem_public_key,
    )

    from cloud.service.crypto import make_root_key, read_root_key
    from cloud.service.receipts import Signer, verify
    from protos.v1.users_pb2 import ErasureReceipt

    data = tmp_path / "data"
    nowhere = pocketune("keys", "receipts", "--data-dir", data)
    assert (nowhere.returncode, "server.key" in nowhere.stderr, data.exists()) == (2, True, False)
    make_root_key(data / "server.key")
    told = json.loads(pocketune("keys", "receipts", "--data-dir", data, "--json").stdout)
    key = load_pem_public_key(told["pem"].encode())
    assert key.public_bytes(Encoding.Raw, PublicFormat.Raw).hex() == told["public_key"]
    signed = Signer(read_root_key(data / "server.key")).sign(ErasureReceipt(user="users/ann"))
    assert told["key_id"] == signed.key_id
    assert verify(signed, bytes.fromhex(told["public_key"]))
    assert not verify(signed, Signer(b"x" * 32).public_key)


def test_wrong_settings_are_one_line_that_names_them(tmp_path: Path):
    said = pocketune("serve", "--host", "0.0.0.0", "--data-dir", tmp_path)
    assert (said.returncode, said.stderr.count("\n")) == (2, 1)
    assert "set tls_cert_file" in said.stderr
    said = pocketune("doctor", POCKETUNE_STALL_S="soon", POCKETUNE_PORT="-1")
    assert said.returncode == 2
    assert "stall_s" in said.stderr
    assert "port" in said.stderr
    said = pocketune("serve", POCKETUNE_TEACHERS="nonsense")
    assert (said.returncode, "teachers" in said.stderr) == (2, True)


def test_doctor_finds_what_would_stop_a_server(serve, tmp_path: Path):
    well = pocketune("doctor", "--data-dir", tmp_path / "data")
    assert well.returncode == 0, well.stdout
    assert not (tmp_path / "data").exists()
    server = serve("--no-worker")
    port = server.address.split(":")[1]
    said = pocketune("doctor", "--data-dir", tmp_path / "data", "--json", POCKETUNE_PORT=port)
    found = {each["what"]: each for each in json.loads(said.stdout)}
    assert found["port"]["level"] == "warn"
    assert "answers" in found["database"]["text"]
    assert "takes, gives and deletes" in found["blobs"]["text"]
    (tmp_path / "short").write_bytes(b"short")
    (tmp_path / "data/root.key").chmod(0o644)
    ill = pocketune(
        "doctor", "--data-dir", tmp_path / "data",
        "--database-url", "postgresql+psycopg://ann:hush@127.0.0.1:1/x",
        POCKETUNE_API_KEYS_FILE=str(tmp_path / "short"),
    )  # fmt: skip
    assert ill.returncode == 1
    assert re.search(r"fail +database", ill.stdout)
    assert re.search(r"fail +callers", ill.stdout)
    assert re.search(r"warn +root key .*chmod 600", ill.stdout)
    assert "hush" not in ill.stdout + ill.stderr


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_metrics_count_calls_and_what_waits(serve, tmp_path: Path):
    from cloud.client import Client
    from protos.v1 import profiles_pb2

    port = free_port()
    server = serve("--no-worker", "--metrics-port", str(port), POCKETUNE_LOG_LEVEL="warning")
    with Client(server.address) as client:
        client.create_user("ann")
        profile = client.create_profile("users/ann", "LaMP_4").name
        client.upload(profile, [profiles_pb2.Item(input=f"{n}", output="x") for n in range(9)])
        client.augment(profiles_pb2.AugmentProfileRequest(name=profile))
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        text = answer.read().decode()
    assert 'calls_total{code="OK",method="/pocketune.v1.UserService/CreateUser"} 1.0' in text
    assert 'pocketune_open_operations{method="AugmentProfile",stage="queued"} 1.0' in text
    assert "pocketune_workers 0.0" in text
    assert "ann" not in text
    assert server.errors.read_text() == ""  # all went well
    taken = pocketune("serve", "--data-dir", tmp_path / "other", "--port", "0", "--no-worker",
                      "--metrics-port", str(port))  # fmt: skip
    assert (taken.returncode, f"metrics on 127.0.0.1:{port}" in taken.stderr) == (2, True)


@pytest.mark.slow
def test_a_worker_of_its_own_takes_the_servers_jobs_and_hands_them_back(serve, tmp_path: Path):
    from cloud.client import Client
    from protos.v1 import bases_pb2

    server = serve("--no-worker")
    with Client(server.address) as client:
        begun = client.create_base("pocket", "pocket")
        worker = Served(tmp_path, "worker", "--data-dir", tmp_path / "data")
        assert "takes jobs from cpu" in worker.greeting
        made = client.wait(begun)
        assert isinstance(made, bases_pb2.Base)
        assert made.architecture
        client.create_user("ann")
    receipt = tmp_path / "receipt.json"
    gone = pocketune("remote", "delete", "ann", "--yes", "--receipt", receipt,
                     "--server", server.address)  # fmt: skip
    assert gone.returncode == 0, gone.stderr
    key = pocketune("keys", "receipts", "--data-dir", tmp_path / "data").stdout.strip()
    said = pocketune("keys", "verify", receipt, "--public-key", key)
    assert said.stdout.startswith("users/ann was erased on 2")
    receipt.write_text(receipt.read_text().replace("users/ann", "users/bob"))
    assert pocketune("keys", "verify", receipt, "--public-key", key).returncode == 3
    assert worker.end()[0] == 0
