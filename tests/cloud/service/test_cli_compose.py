"""compose.yaml, without docker: its server and worker run from what the file says.

What is not run here are the images themselves: there is no docker engine where the tests run.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cloud.client import Client
from cloud.service.settings import Settings

ROOT = Path(__file__).parents[3]
SERVICES: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]


def ours(service: str) -> dict[str, str]:
    found: dict[str, str] = SERVICES[service]["environment"]
    return {name: value for name, value in found.items() if name.startswith("POCKETUNE_")}


@pytest.mark.parametrize("service", ["server", "worker"])
def test_every_setting_is_one_and_all_together_are_sound(service: str, monkeypatch):
    for name, value in ours(service).items():
        assert name.removeprefix("POCKETUNE_").lower() in Settings.model_fields
        monkeypatch.setenv(name, value)
    assert Settings().resolved_database_url.startswith("postgresql+psycopg://")


def test_the_images_are_what_the_tests_use():
    import moto

    assert SERVICES["s3"]["image"] == f"motoserver/moto:{moto.__version__}"
    from importlib.metadata import version

    assert moto.__version__ == version("moto")
    dockerfile = (ROOT / "Dockerfile").read_text()
    for source in re.findall(r"^COPY (.*) \S+$", dockerfile, re.MULTILINE):
        assert all((ROOT / name).exists() for name in source.split())


@pytest.mark.slow
def test_server_and_worker_run_from_the_file(
    fresh_postgresql: str, s3: str, tmp_path: Path, free_ports: list[int]
):
    there = {
        "POCKETUNE_DATABASE_URL": fresh_postgresql, "POCKETUNE_S3_ENDPOINT_URL": s3,
        "POCKETUNE_DATA_DIR": str(tmp_path), "POCKETUNE_HOST": "127.0.0.1",
        "POCKETUNE_PORT": str(free_ports[0]), "POCKETUNE_METRICS_PORT": str(free_ports[1]),
        "POCKETUNE_METRICS_HOST": "127.0.0.1",
    }  # fmt: skip
    shared = {**os.environ, **SERVICES["server"]["environment"], **there}
    bucket = SERVICES["bucket"]
    subprocess.run([sys.executable, "-c", *bucket["command"]], check=True, env=shared)

    def start(service: str) -> subprocess.Popen[str]:
        of_worker = {} if service == "server" else {"POCKETUNE_METRICS_PORT": "0"}
        return subprocess.Popen(
            [sys.executable, "-m", "pocketune", *SERVICES[service]["command"]], text=True,
            cwd=ROOT, env={**shared, **of_worker}, stdout=subprocess.PIPE,
        )  # fmt: skip

    server = start("server")
    assert server.stdout
    assert "serves on" in server.stdout.readline()
    workers = [start("worker"), start("worker")]
    address = f"127.0.0.1:{free_ports[0]}"
    with grpc.insecure_channel(address) as channel:
        asked = health_pb2.HealthCheckRequest()
        assert health_pb2_grpc.HealthStub(channel).Check(asked).status == 1
    with Client(address) as client:
        made = client.wait(client.create_base("pocket", "pocket"))
        client.create_user("ann")
        receipt = client.wait(client.delete_user("users/ann"))
    assert made.name == "bases/pocket"
    assert receipt.signature
    with urllib.request.urlopen(f"http://127.0.0.1:{free_ports[1]}/metrics") as answer:
        assert b"pocketune_workers 2.0" in answer.read()
    for process in (*workers, server):
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        process.communicate()


@pytest.fixture
def free_ports() -> list[int]:
    import socket

    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        return [one.getsockname()[1], two.getsockname()[1]]
