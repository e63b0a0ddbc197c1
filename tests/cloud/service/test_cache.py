"""The cache of a host: the least recently used go, what is in use stays, half a copy is no copy."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from cloud.service.blobs import LocalBlobs
from cloud.service.cache import Cache
from cloud.service.pipeline import Job
from cloud.service.settings import Settings
from cloud.service.stages.site import Site
from cloud.service.tables import Base
from cloud.service.vault import Space, Vault
from protos.artifacts import digest_file

ROOT = Path(__file__).parents[3]


class Host:
    """A cache for 25 bytes, whose entries have ten each."""

    def __init__(self, root: Path) -> None:
        self.root, self.cache, self.fetched = root, Cache(root, 25), []

    def use(self, name: str, held: ExitStack) -> None:
        def fetch(folder: Path) -> None:
            self.fetched.append(name)
            folder.mkdir(parents=True)
            (folder / "weights").write_bytes(b"0123456789")

        folder = self.cache.use(held, f"bases/{name}", "leaf", 10, fetch)
        assert (folder / "weights").read_bytes() == b"0123456789"

    def use_once(self, *names: str) -> None:
        for name in names:
            with ExitStack() as held:
                self.use(name, held)
            time.sleep(0.01)  # the next use is later, also by a coarse clock of the disk

    def kept(self) -> set[str]:
        return {path.parent.name for path in self.root.glob("bases/*/leaf")}


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path / "cache")


def test_the_least_recently_used_goes(host: Host):
    host.use_once("a", "b", "a", "c")
    assert host.fetched == ["a", "b", "c"]
    assert host.kept() == {"a", "c"}
    host.use_once("b")
    assert host.kept() == {"b", "c"}
    assert not list(host.root.glob("*/.*.gone"))


def test_what_is_in_use_stays_beyond_the_limit(host: Host):
    with ExitStack() as held:
        for name in "abc":
            host.use(name, held)
        assert host.kept() == {"a", "b", "c"}
    host.use_once("d")
    assert host.kept() == {"c", "d"}


HOLD = """
import sys, time
from contextlib import ExitStack
from pathlib import Path
from cloud.service.cache import Cache
held = ExitStack()
Cache(Path(sys.argv[1]), 25).use(held, "bases/a", "leaf", 10, None)
print("held", flush=True)
time.sleep(600)
"""


def test_another_process_holds_on_until_it_is_killed(host: Host):
    host.use_once("a")
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(host.root)], cwd=ROOT,
                               stdout=subprocess.PIPE, text=True)  # fmt: skip
    try:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        host.use_once("b", "c", "d")
        assert host.kept() == {"a", "d"}
    finally:
        process.kill()
        process.communicate()
    host.use_once("e")
    assert host.kept() == {"d", "e"}


FETCH = """
import os, signal, sys
from pathlib import Path
from cloud.service.artifacts_store import fetch_files
from cloud.service.blobs import LocalBlobs
from cloud.service.vault import Space, StoredFile
blobs, folder, *file = sys.argv[1:]
calls = []
def check():
    calls.append(1)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
stored = StoredFile(file[0], int(file[1]), file[2], file[3])
fetch_files(Space(LocalBlobs(Path(blobs)), "shared", None), [stored], Path(folder), check)
"""


def test_a_copy_that_a_kill_cut_short_is_made_again(tmp_path: Path):
    blobs, data = LocalBlobs(tmp_path / "blobs"), tmp_path / "data"
    source = tmp_path / "weights"
    source.write_bytes(bytes(range(256)) * 10_000)  # many blocks
    shared = Space(blobs, "shared", None)
    file = shared.store("weights", source, digest_file(source))
    folder = data / "cache/bases" / ("d" * 64) / "small"
    given = (tmp_path / "blobs", folder, *vars(file).values())
    killed = subprocess.run([sys.executable, "-c", FETCH, *map(str, given)], cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL
    (half,) = folder.parent.rglob("weights")
    assert 0 < half.stat().st_size < file.size
    assert not folder.exists()

    vault = Vault(blobs, LocalBlobs(tmp_path / "keys"), None)
    site = Site(None, vault, Settings(data_dir=data), None)  # type: ignore[arg-type]
    job = Job(None, shared, 1, tmp_path)  # type: ignore[arg-type]
    row = Base(digest="d" * 64, base_id="small", files=json.dumps([vars(file)]))
    assert site.base_model(job, row) == folder  # type: ignore[arg-type]
    assert (folder / "weights").read_bytes() == source.read_bytes()
    assert [path.name for path in folder.parent.iterdir()] == ["small"]
