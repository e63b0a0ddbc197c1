"""A function in a process of its own: what it gave back, its seconds, and its peak memory.

`python -m benchmarks.alone MODULE.FUNCTION JSON` calls it with what the JSON holds and prints JSON.
`alone` does so from Python. The function's arguments and its result must be JSON.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
_KIB = 1024


@dataclass(frozen=True)
class Done:
    """seconds: those of the call, imports of the module before it left out."""

    result: Any
    seconds: float
    peak_bytes: int


def alone(
    function: Callable[..., Any],
    *,
    log: Path | None = None,
    limit_s: float | None = None,
    **given: Any,
) -> Done:
    """Call it in a process of its own.

    log: where all goes that it prints, and what it begins is ended with it; without one, it prints
    to this process's stderr. limit_s: after so long it is ended.

    Raises:
        SystemExit: it failed; with a log, the message is the log's last line.
    """
    name = f"{_module(function)}.{function.__name__}"
    command = [sys.executable, "-m", __name__, name, json.dumps(given)]
    with contextlib.ExitStack() as stack:
        errors = stack.enter_context(log.open("w", encoding="utf-8")) if log else None
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True,
            start_new_session=log is not None,
        )  # fmt: skip
        try:
            said, _ = process.communicate(timeout=limit_s)
        except BaseException as error:
            if log:
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            process.wait()
            if isinstance(error, subprocess.TimeoutExpired):
                raise SystemExit(f"{name} was not done after {limit_s:g} s") from None
            raise
    if process.returncode:
        raise SystemExit(_last_line(log) or f"{name} ended with {process.returncode}, see above")
    return Done(**json.loads(said))


def _module(function: Callable[..., Any]) -> str:
    """Its module's name, also where that module was started with `python -m`."""
    if function.__module__ != "__main__":
        return function.__module__
    return str(sys.modules["__main__"].__spec__.name)


def _last_line(log: Path | None) -> str:
    lines = log.read_text("utf-8", errors="replace").split("\n") if log else []
    return next((line for line in reversed(lines) if line.strip()), "")


def peak_bytes() -> int:
    """The most memory that this process has held at once.

    From /proc where there is one: `ru_maxrss` of a process begins with its parent's.
    """
    status = Path("/proc/self/status")
    if status.exists():
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        assert found
        return int(found[1]) * _KIB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * _KIB


def main() -> None:
    """Call, and print."""
    module, _, name = sys.argv[1].rpartition(".")
    given = sys.argv[2]
    function = getattr(importlib.import_module(module), name)
    said, sys.stdout = os.fdopen(os.dup(1), "w"), sys.stderr
    os.dup2(2, 1)  # also what libraries and processes of ours print
    started = time.perf_counter()
    result = function(**json.loads(given))
    seconds = time.perf_counter() - started
    json.dump({"result": result, "seconds": seconds, "peak_bytes": peak_bytes()}, said)


if __name__ == "__main__":
    main()
