"""How fast the service is: against bare grpc.aio servers, under many uploads, with long lists.

`python benchmarks/service.py [--only NAME] [--quick] [--out results.json]` starts the real
`pocketune serve` and the bare servers as processes and calls them from a third one, in turns, in
one run: ratios hold where the machine is busy, absolute figures do not. Takes some 5 minutes on 2
cores, with `--quick` one, for less of everything. Exits with 1 where an answer was wrong or an item
lost; whether the aims are met is printed, and no failure: timings are noisy.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import grpc
from service_processes import client, client_running, finished, pocketune, sample_rss
from service_site import FILE, MIB, USER, Site, add_adapters, databases, furnished, make_user

from cloud.service.parts import open_parts
from cloud.service.settings import Settings
from protos.artifacts import tool_versions

Figures = dict[str, Any]


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


class Row(NamedTuple):
    """A line of the table. aim: what the value is held to, and whether it is met; None: no aim."""

    what: str
    value: str
    aim: str = ""
    met: bool | None = None


def calls(work: Path, sizes: Sizes) -> tuple[Figures, list[Row]]:
    """Get calls on SQLite against a bare server that answers the same messages.

    Latency is that of one caller alone, calls per second those of many at once.
    """
    figures: Figures = {}
    rows: list[Row] = []
    with furnished(work, 1) as site:
        targets = {"pocketune": site.server, "bare": site.bare}
        for method, name in site.gets.items():
            found = client(
                "calls", targets=targets, method=method, name=name, rounds=sizes.rounds,
                callers=sizes.callers, count=sizes.count,
            )  # fmt: skip
            figures[method] = _medians(found, "calls_per_s")
            rows += _call_rows(method, figures[method])
    return figures, rows


def _call_rows(method: str, found: Figures) -> list[Row]:
    ours, plain, ratio = found["pocketune"], found["bare"], found["ratio"]
    rate = f"{ours['calls_per_s']:,.0f}/s, bare {plain['calls_per_s']:,.0f}/s: {ratio:.2f}"
    latency = ", ".join(
        f"{each} {ours[f'{each}_ms']:.2f} ms, bare {plain[f'{each}_ms']:.2f}"
        for each in ("p50", "p99")
    )
    cpu = f"{ours['cpu_us']:.0f} µs, bare {plain['cpu_us']:.0f}"
    return [
        Row(f"{method}, calls", rate, "≥ 0.50", ratio >= 0.5),
        Row(f"{method}, latency", latency),
        Row(f"{method}, server CPU a call", cpu),
    ]


def downloads(work: Path, sizes: Sizes) -> tuple[Figures, list[Row]]:
    """A sealed bundle against a bare stream of the same bytes from memory, and from a file."""
    figures: Figures = {"file_mib": sizes.file_mib}
    rows: list[Row] = []
    with furnished(work, sizes.file_mib) as site:
        targets = {
            "pocketune": (*site.server, FILE), "bare": (*site.bare, "memory"),
            "bare_file": (*site.bare, "file"),
        }  # fmt: skip
        for streams in (1, 4):
            found = client(
                "downloads", targets=targets, name=site.bundle, sha256=_sha256(site.content),
                size=site.content.stat().st_size, rounds=sizes.download_rounds, streams=streams,
            )  # fmt: skip
            medians = figures[f"streams_{streams}"] = _medians(found, "mib_per_s")
            ours = {name: each["mib_per_s"] for name, each in medians.items() if name in targets}
            value = (
                f"{ours['pocketune']:,.0f} MiB/s, bare {ours['bare']:,.0f} "
                f"(from a file {ours['bare_file']:,.0f}): {medians['ratio']:.2f}"
            )
            met = medians["ratio"] >= 0.8
            rows.append(Row(f"download, {streams} at once", value, "≥ 0.80", met))
    return figures, rows


def uploads(work: Path, sizes: Sizes) -> tuple[Figures, list[Row]]:
    """Many users' items at once, on each database; all of them must be there afterwards."""
    figures: Figures = {}
    rows: list[Row] = []
    for database, url in databases(work):
        with pocketune(work / database, database_url=url) as server:
            found = figures[database] = client(
                "uploads", address=server.address, users=sizes.users, items=sizes.items,
                callers=sizes.uploaders,
            )  # fmt: skip
        value = (
            f"{found['items']:,} items of {found['users']:,} users in {found['seconds']:.1f} s "
            f"({found['items_per_s']:,.0f}/s), errors 0, lost 0"
        )
        rows.append(Row(f"upload, {database}", value))
    return figures, rows


def lists(work: Path, sizes: Sizes) -> tuple[Figures, list[Row]]:
    """Pages of a long list, on each database: the last costs what the first does."""
    figures: Figures = {}
    rows: list[Row] = []
    for database, url in databases(work):
        settings = Settings(data_dir=work / database, database_url=url, worker=False)
        with pocketune(work / database, database_url=url) as server, open_parts(settings) as parts:
            uid = make_user(server)
            add_adapters(parts, uid, work / "adapter", sizes.adapters)
            found = figures[database] = client(
                "pages", address=server.address, parent=USER, total=sizes.adapters,
                size=sizes.page_size, repeats=sizes.page_repeats,
            )  # fmt: skip
        places = [found[f"{place}_p50_ms"] for place in ("first", "middle", "last")]
        found["slowest_over_fastest"] = max(places) / min(places)
        value = "first, middle, last page of {:,}: {:.1f}, {:.1f}, {:.1f} ms".format(
            sizes.adapters, *places
        )
        flat = found["slowest_over_fastest"] <= 1.5
        rows.append(Row(f"list, {database}", value, "flat", flat))
    return figures, rows


def memory(work: Path, sizes: Sizes) -> tuple[Figures, list[Row]]:
    """Memory of the server while slow readers download a file, a small one and a large one."""
    if not Path("/proc/self/status").exists():
        return {}, [Row("memory", "not measured: there is no /proc here")]
    figures: Figures = {}
    for mib in sizes.memory_mib:
        with furnished(work / f"{mib}", mib) as site:
            figures[f"file_{mib}_mib"] = _memory(site, sizes)
    small, large = figures.values()
    figures["large_over_small"] = large["growth_mib"] / small["growth_mib"]
    value = "+{:.0f} MiB over {:.0f} in {} slow downloads of {} MiB; +{:.0f} of {} MiB".format(
        large["growth_mib"], large["before_mib"], sizes.streams, sizes.memory_mib[1],
        small["growth_mib"], sizes.memory_mib[0],
    )  # fmt: skip
    return figures, [Row("memory", value, "the same", figures["large_over_small"] <= 1.5)]


def _memory(site: Site, sizes: Sizes) -> Figures:
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
        read = finished(process)
    return {
        **read, "before_mib": before / MIB, "peak_mib": max(samples) / MIB,
        "growth_mib": (max(samples) - before) / MIB,
    }  # fmt: skip


def _medians(found: Figures, held: str) -> Figures:
    """Medians over the rounds, the rounds themselves, and ours over the bare one's."""
    medians: Figures = {
        label: {
            **{name: statistics.median(rounds) for name, rounds in series.items()},
            "rounds": series[held],
        }
        for label, series in found.items()
    }
    medians["ratio"] = medians["pocketune"][held] / medians["bare"][held]
    return medians


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


MEASUREMENTS: dict[str, Callable[[Path, Sizes], tuple[Figures, list[Row]]]] = {
    each.__name__: each for each in (calls, downloads, uploads, lists, memory)
}


def show(rows: Sequence[Row]) -> None:
    """The table for people."""
    width = max(len(row.what) for row in rows)
    for row in rows:
        verdict = {True: "met", False: "MISSED", None: ""}[row.met]
        print(f"{row.what:<{width}}  {row.value:<78} {row.aim:<9} {verdict}".rstrip(), flush=True)


def main() -> None:
    """Measure, print, and write the figures where `--out` says."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--out", type=Path)
    arguments.add_argument("--only", action="append", choices=MEASUREMENTS)
    arguments.add_argument("--quick", action="store_true")
    given = arguments.parse_args()
    sizes = QUICK if given.quick else Sizes()
    figures: Figures = {}
    for name in given.only or MEASUREMENTS:
        with tempfile.TemporaryDirectory() as work:
            figures[name], rows = MEASUREMENTS[name](Path(work), sizes)
        show(rows)
    result = {
        "benchmark": "service",
        "date": datetime.now(UTC).date().isoformat(),
        "figures": figures,
        "sizes": asdict(sizes),
        "machine": {
            "processor": platform.machine(), "system": platform.system(), "cores": os.cpu_count(),
        },
        "versions": tool_versions() | {"grpc": grpc.__version__},
    }  # fmt: skip
    if given.out:
        given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
