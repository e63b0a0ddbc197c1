"""How a stage tells how far it is, and how a terminal shows it.

A stage takes a `Progress` and calls it with a message and a fraction from 0 to 1; it knows nothing
about terminals. Commands show it with `shown`, on standard error, so that standard output stays for
results.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Generator

Progress = Callable[[str, float], None]
_LINE_EVERY_S = 5.0


def silent(message: str, fraction: float) -> None:
    """The `Progress` that shows nothing."""


@contextlib.contextmanager
def shown(title: str) -> Generator[Progress]:
    """Show a stage on standard error: a bar with the time left on a terminal, else some lines."""
    with _bar(title) if sys.stderr.isatty() else _lines(title) as progress:
        yield progress


@contextlib.contextmanager
def _bar(title: str) -> Generator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn(f"{title:<14}"),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Bars(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task("", total=1.0)
        yield lambda message, fraction: bars.update(task, description=message, completed=fraction)
        bars.update(task, completed=1.0)


@contextlib.contextmanager
def _lines(title: str) -> Generator[Progress]:
    started = time.monotonic()
    printed = started - _LINE_EVERY_S

    def progress(message: str, fraction: float) -> None:
        nonlocal printed
        now = time.monotonic()
        if now - printed >= _LINE_EVERY_S:
            printed = now
            left = f", {(now - started) * (1 - fraction) / fraction:.0f} s left" if fraction else ""
            print(f"{title}: {fraction:4.0%} {message}{left}", file=sys.stderr, flush=True)  # noqa: T201

    yield progress
    print(f"{title}: done in {time.monotonic() - started:.1f} s", file=sys.stderr, flush=True)  # noqa: T201


def part(progress: Progress, start: float, stop: float) -> Progress:
    """A `Progress` for one piece of the work, which is `start` to `stop` of the whole."""
    return lambda message, fraction: progress(message, start + fraction * (stop - start))
