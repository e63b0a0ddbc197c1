"""Every benchmark, each in a process of its own, one by one; what they found becomes files.

`make bench` (`python -m benchmarks.suite`) writes `benchmarks/results/NAME.json`, and from them the
table of docs/benchmarks.md; `make bench-quick` (`--quick`) measures the bundled models or one layer
of their base, two benchmarks at a time, and writes into build/. `--only NAME` takes one benchmark,
or several. One that fails, because an answer was wrong or a part broke, has its error in its file,
the others run, and the exit code is 1. It is 1, too, where a peer of a full run could not be had. A
quick run says how long it took in all; longer than it is to take is a warning only, since that
depends on what else the machine does.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import models, peers
from benchmarks.alone import ROOT, alone
from protos.artifacts import tool_versions

HERE = Path(__file__).parent
BENCHMARKS = sorted(
    path.stem for path in HERE.glob("*.py") if "\ndef rows(" in path.read_text("utf-8")
)
RESULTS, QUICK_RESULTS = HERE / "results", ROOT / "build" / "bench" / "quick"
LOGS = ROOT / "build" / "bench" / "logs"
LIMIT_S = 7200.0
QUICK_S = 300
"""What a whole quick run is to take at most."""
QUICK_AT_ONCE = 2
"""Benchmarks of a quick run, which is to show that all still work, and not how fast."""


def main() -> None:
    """Run them, print their rows, write their files."""
    arguments = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.suite")
    arguments.add_argument("--quick", action="store_true", help="small models, few repeats")
    arguments.add_argument("--only", action="append", choices=BENCHMARKS, metavar="NAME")
    arguments.add_argument("--out", type=Path, help="where the files go, if not in their place")
    given = arguments.parse_args()
    out = given.out or (QUICK_RESULTS if given.quick else RESULTS)
    out.mkdir(parents=True, exist_ok=True)
    if not given.quick and not given.only:
        shutil.rmtree(models.LOWERINGS, ignore_errors=True)  # their seconds are figures, too
    failed: list[str] = []
    missing: list[str] = []
    started = time.perf_counter()
    with ThreadPoolExecutor(QUICK_AT_ONCE) as pool:
        each = pool.map if given.quick else map
        for result in each(partial(run, quick=given.quick), given.only or BENCHMARKS):
            show(result)
            name, text = result["benchmark"], json.dumps(result, indent=1) + "\n"
            (out / f"{name}.json").write_text(text, encoding="utf-8")
            failed += [name] if "error" in result else []
            missing += [f"{name}: {r['peer']}, {r['note']}" for r in result["rows"] if r["missing"]]
    if given.quick:
        print(in_all(time.perf_counter() - started))
    if out == RESULTS:
        subprocess.run([sys.executable, "docs/generate.py"], cwd=ROOT, check=True)
    problems = [f"failed: {', '.join(failed)}"] if failed else []
    if missing and not given.quick:
        problems.append(f"missing: {'; '.join(missing)}")
    if problems:
        sys.exit("\n".join(problems))


def run(name: str, *, quick: bool) -> dict[str, Any]:
    """One benchmark, with what must be known to judge its figures."""
    log = LOGS / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    print(f"{name} …", flush=True)
    load, started = os.getloadavg()[0], time.perf_counter()
    result: dict[str, Any] = {
        "benchmark": name,
        "command": shlex.join(["python", "-m", "benchmarks.suite", *sys.argv[1:]]),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "versions": tool_versions() | _peers(),
        "rows": [],
    }
    try:
        result["rows"] = alone(measure, log=log, limit_s=LIMIT_S, name=name, quick=quick).result
    except SystemExit as error:
        result["error"] = str(error)
    result["seconds"] = round(time.perf_counter() - started)
    result["load"] = [round(load, 1), round(os.getloadavg()[0], 1)]
    return result


def measure(name: str, quick: bool) -> list[dict[str, Any]]:
    """What the benchmark's `rows` gives, in a process of its own; see `run`."""
    module = importlib.import_module(f"benchmarks.{name}")
    with tempfile.TemporaryDirectory() as work:
        return [asdict(row) for row in module.rows(quick, Path(work))]


def show(result: dict[str, Any]) -> None:
    """The rows for people."""
    print(f"{result['benchmark']}: {result['seconds']} s")
    for row in result["rows"]:
        peer = f", {row['peer']} {row['theirs']:,.4g}" if row["theirs"] is not None else ""
        ratio = f": {row['ratio']:.2f}" if row["ratio"] is not None else ""
        note = f" ({row['note']})" if row["note"] else ""
        ours = "" if row["ours"] is None else f" {row['ours']:,.4g} {row['unit']}"
        print(f"  {row['figure']}:{ours}{peer}{ratio}{note}")
    if "error" in result:
        print(f"  FAILED: {result['error']}")
    sys.stdout.flush()


def _peers() -> dict[str, str]:
    """Versions of what we are compared with, where it is not one of our tools."""
    llama_cpp = peers.LLAMA_CPP[0].split("==")
    return {"grpcio": importlib.metadata.version("grpcio"), llama_cpp[0]: llama_cpp[1]}


def in_all(seconds: float) -> str:
    """How long a quick run took, with a warning if that was too long."""
    said = f"in all: {seconds:.0f} s of {QUICK_S} s"
    return said if seconds <= QUICK_S else f"{said}; warning: a quick run is to take less"


def machine() -> dict[str, Any]:
    """Processor, cores that we may use, memory."""
    cpuinfo = Path("/proc/cpuinfo")
    said = cpuinfo.read_text("utf-8") if cpuinfo.exists() else ""
    named = re.search(r"model name\s*: (.*)", said)
    usable = getattr(os, "sched_getaffinity", None)
    return {
        "cpu": named[1] if named else platform.processor() or platform.machine(),
        "cores": len(usable(0)) if usable else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": platform.system(),
    }


if __name__ == "__main__":
    main()
