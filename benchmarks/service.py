"""How fast the service is: against bare grpc.aio servers, under many uploads, with long lists.

The real `pocketune serve` and the bare servers are processes, called from a third one, in turns, in
one run: ratios hold where the machine is busy, absolute figures do not. It ends with an error where
an answer was wrong or an item lost.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.rows import Row
from benchmarks.service_processes import client, client_running, finished, pocketune, sample_rss
from benchmarks.service_site import (
    FILE,
    MIB,
    USER,
    Site,
    add_adapters,
    databases,
    furnished,
    make_user,
)
from benchmarks.turns import compared
from cloud.service.parts import open_parts
from cloud.service.settings import Settings

BARE = "bare grpc.aio server"
_PAGE = 4096
"""Bytes; no growth at all is given as one page."""
FLAT = 1 / 1.5
"""The least ratio of a figure that should not grow: half as much again is noise."""


@dataclass(frozen=True)
class Sizes:
    """How much of everything. count: calls of each caller. *_s: seconds."""

    rounds: int = 25
    callers: int = 16
    count: int = 50
    file_mib: int = 64
    download_rounds: int = 25
    users: int = 1000
    items: int = 50
    uploaders: int = 32
    adapters: int = 10_000
    page_size: int = 100
    page_repeats: int = 100
    memory_mib: tuple[int, int] = (8, 64)
    streams: int = 100
    stream_s: float = 20.0
    stream_pause_s: float = 0.2


QUICK = Sizes(
    rounds=2, count=20, file_mib=8, download_rounds=2, users=20, items=10, uploaders=8,
    adapters=300, page_size=10, page_repeats=5, memory_mib=(8, 16), streams=20, stream_s=3.0,
    stream_pause_s=0.1,
)  # fmt: skip


def rows(quick: bool, work: Path) -> list[Row]:
    """Everything, one after another."""
    sizes = QUICK if quick else Sizes()
    measured = (calls, downloads, uploads, lists, memory)
    found: list[Row] = []
    for measure in measured:
        folder = work / measure.__name__
        folder.mkdir()
        found += measure(folder, sizes)
    return found


def calls(work: Path, sizes: Sizes) -> list[Row]:
    """Get calls on SQLite against a bare server that answers the same messages.

    Latency is that of one caller alone, calls per second those of many at once.
    """
    found: list[Row] = []
    with furnished(work, 1) as site:
        targets = {"pocketune": site.server, "bare": site.bare}
        for method, name in site.gets.items():
            series = client(
                "calls", targets=targets, method=method, name=name, rounds=sizes.rounds,
                callers=sizes.callers, count=sizes.count,
            )  # fmt: skip
            found += _call_rows(method, series, sizes)
    return found


def _call_rows(method: str, series: Mapping[str, Any], sizes: Sizes) -> list[Row]:
    ours, plain = series["pocketune"], series["bare"]
    p99 = f"p99: {ours['p99_ms'][0]:.2f} ms, bare {plain['p99_ms'][0]:.2f}"
    found = [
        compared(
            f"{method}, SQLite, {sizes.callers} callers", "calls/s", BARE, ours["calls_per_s"],
            plain["calls_per_s"], less_is_better=False, aim=0.5,
        ),
        compared(
            f"{method}, SQLite, one caller, median latency", "ms", BARE, ours["p50_ms"],
            plain["p50_ms"], less_is_better=True, note=p99,
        ),
    ]  # fmt: skip
    if all(ours["cpu_us"]):  # there is a /proc
        found.append(
            compared(
                f"{method}, SQLite, server's CPU a call", "µs", BARE, ours["cpu_us"],
                plain["cpu_us"], less_is_better=True,
            )
        )  # fmt: skip
    return found


def downloads(work: Path, sizes: Sizes) -> list[Row]:
    """A sealed bundle against a bare stream of the same bytes from memory, and from a file."""
    found: list[Row] = []
    with furnished(work, sizes.file_mib) as site:
        targets = {
            "pocketune": (*site.server, FILE), "bare": (*site.bare, "memory"),
            "bare_file": (*site.bare, "file"),
        }  # fmt: skip
        for streams in (1, 4):
            series = client(
                "downloads", targets=targets, name=site.bundle, sha256=_sha256(site.content),
                size=site.content.stat().st_size, rounds=sizes.download_rounds, streams=streams,
            )  # fmt: skip
            for source, label, aim in (("memory", "bare", 0.8), ("a file", "bare_file", None)):
                found.append(
                    compared(
                        f"download of {sizes.file_mib} MiB, sealed, {streams} at once", "MiB/s",
                        f"{BARE}, from {source}", series["pocketune"]["mib_per_s"],
                        series[label]["mib_per_s"], less_is_better=False, aim=aim,
                    )
                )  # fmt: skip
    return found


def uploads(work: Path, sizes: Sizes) -> list[Row]:
    """Many users' items at once, on each database; all of them must be there afterwards."""
    found: list[Row] = []
    for database, url in databases(work):
        with pocketune(work / database, database_url=url) as server:
            took = client(
                "uploads", address=server.address, users=sizes.users, items=sizes.items,
                callers=sizes.uploaders,
            )  # fmt: skip
        figure = f"upload, {sizes.users:,} users x {sizes.items} items, {sizes.uploaders} at once"
        note = f"{took['seconds']:.1f} s, none lost"
        found.append(Row(f"{figure}, {database}", took["items_per_s"], "items/s", note=note))
    return found


def lists(work: Path, sizes: Sizes) -> list[Row]:
    """Pages of a long list, on each database: the last costs what the first does."""
    found: list[Row] = []
    for database, url in databases(work):
        settings = Settings(data_dir=work / database, database_url=url, worker=False)
        with pocketune(work / database, database_url=url) as server, open_parts(settings) as parts:
            uid = make_user(server)
            add_adapters(parts, uid, work / "adapter", sizes.adapters)
            took = client(
                "pages", address=server.address, parent=USER, total=sizes.adapters,
                size=sizes.page_size, repeats=sizes.page_repeats,
            )  # fmt: skip
        last, first = took["last_p50_ms"], took["first_p50_ms"]
        figure = f"last page of {sizes.page_size} of {sizes.adapters:,} adapters, {database}"
        note = f"middle page: {took['middle_p50_ms']:.1f} ms"
        found.append(
            Row(figure, last, "ms", "the first page", first, first / last, aim=FLAT, note=note)
        )
    return found


def memory(work: Path, sizes: Sizes) -> list[Row]:
    """Memory of the server while slow readers download a file, a small one and a large one."""
    if not Path("/proc/self/status").exists():
        return [Row("memory of the server", 0.0, "not measured", note="there is no /proc here")]
    growth: dict[int, float] = {}
    for mib in sizes.memory_mib:
        with furnished(work / f"{mib}", mib) as site:
            growth[mib], before = _memory(site, sizes)
    small, large = sizes.memory_mib
    figure = f"server's memory grows, {sizes.streams} slow downloads of {large} MiB"
    ratio = growth[small] / growth[large]
    peer, note = f"of {small} MiB each", f"{before:.0f} MiB before"
    return [Row(figure, growth[large], "MiB", peer, growth[small], ratio, aim=FLAT, note=note)]


def _memory(site: Site, sizes: Sizes) -> tuple[float, float]:
    """How many MiB the server grows by, and had before."""
    server = site.server
    given = {
        "address": server.address, "name": site.bundle, "file": FILE, "content": str(site.content),
    }  # fmt: skip
    client("slow_streams", **given, streams=1, seconds=1.0, pause_s=0.0)  # everything is imported
    before = server.rss_bytes()
    with client_running(
        "slow_streams", **given, streams=sizes.streams, seconds=sizes.stream_s,
        pause_s=sizes.stream_pause_s,
    ) as process:  # fmt: skip
        samples = sample_rss(server, process, 0.1)
        finished(process)
    return max(max(samples) - before, _PAGE) / MIB, before / MIB


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
