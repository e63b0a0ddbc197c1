"""The benchmarks still run, and notice what is wrong. What they measure is not looked at here."""

import hashlib
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.mark.slow
def test_a_quick_run_of_the_service_measures_everything_and_finds_nothing_lost(tmp_path: Path):
    out = tmp_path / "results.json"
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "service.py"), "--quick", "--out", str(out)],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text("utf-8"))
    figures = result["figures"]
    assert list(figures) == ["calls", "downloads", "uploads", "lists", "memory"]
    assert set(figures["calls"]) == {"GetUser", "GetProfile", "GetAdapter"}
    for method in figures["calls"].values():
        assert len(method["pocketune"]["rounds"]) == result["sizes"]["rounds"]
        assert method["pocketune"]["p99_ms"] >= method["pocketune"]["p50_ms"] > 0
    for found in figures["uploads"].values():
        assert (found["items"], found["errors"]) == (20 * 10, 0)
    for found in figures["lists"].values():
        assert (found["adapters"], found["pages"]) == (300, 30)
    assert figures["memory"]["file_16_mib"]["mib_read_least"] > 0
    for what in ("GetUser, calls", "download, 4 at once", "upload, sqlite", "list, sqlite"):
        assert what in done.stdout


def test_wrong_bytes_end_a_benchmark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.syspath_prepend(BENCHMARKS)
    processes = importlib.import_module("service_processes")
    for method in ("GetUser", "GetProfile", "GetAdapter"):
        (tmp_path / method).write_bytes(b"")
    content = b"altered" * 100_000
    (tmp_path / "content").write_bytes(content)

    def download(sha256: str) -> None:
        with processes.bare(tmp_path, tmp_path / "content") as plain:
            processes.client(
                "downloads", targets={"bare": (*plain, "memory")}, name="", size=len(content),
                sha256=sha256, rounds=1, streams=1,
            )  # fmt: skip

    download(hashlib.sha256(content).hexdigest())
    with pytest.raises(SystemExit):
        download(hashlib.sha256(b"what was stored").hexdigest())
    assert "bare: what was downloaded is not what was stored" in capfd.readouterr().err
