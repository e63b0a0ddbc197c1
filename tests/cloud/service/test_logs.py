"""Nothing secret is logged, whichever way it comes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from cloud.service.logs import GONE, without_secrets

JWT = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJl"
KEY = "pkt_Zm9vYmFyYmF6Zm9vYmFyYmF6Zm9vYmFyYmF6"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (f"key {KEY} is unknown", f"key {GONE} is unknown"),
        (f"authorization: Bearer {JWT}", f"authorization: Bearer {GONE}"),
        ("postgresql+psycopg://ann:hush@db/x", f"postgresql+psycopg://ann:{GONE}@db/x"),
        ("-----BEGIN EC PRIVATE KEY-----\nMHcC\n-----END EC PRIVATE KEY-----", GONE),
        ("AKIAIOSFODNN7EXAMPLE", GONE),
        ("teacher said sk-abcdefghijklmnop1234", f"teacher said {GONE}"),
        ("?password=hush&x=1", f"?password={GONE}&x=1"),
        ("stage train: 3 of 10", "stage train: 3 of 10"),
    ],
)
def test_what_looks_like_a_secret_goes(text: str, left: str):
    assert without_secrets(text) == left


PROGRAM = f"""
import logging, structlog
from cloud.service.logs import configure
configure("json", "info")
log = structlog.get_logger("ours")
log.info("call", operation="o1", api_key="hush1", request={{"password": "hush2", "n": 3}},
         headers=["Bearer {JWT}"], raw=b"hush3")
logging.getLogger("theirs").warning("connecting to %s", "postgresql://ann:hush4@db/x")
logging.getLogger("sqlalchemy.engine").info("INSERT hush5")
try:
    local = "hush6"
    raise ValueError("token {KEY}")
except ValueError:
    log.exception("failed")
log.debug("hush7")
"""


def test_events_of_ours_and_of_libraries_are_json_without_secrets():
    said = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    ).stderr
    first, second, third = (json.loads(line) for line in said.splitlines())
    assert first["operation"] == "o1"
    assert first["api_key"] == first["request"]["password"] == GONE
    assert first["request"]["n"] == 3
    assert second["logger"] == "theirs"
    assert third["level"] == "error"
    assert "ValueError" in third["exception"]
    assert not any(secret in said for secret in ("hush", KEY, JWT))
