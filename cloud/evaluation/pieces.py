"""Small results that a killed run goes on from: a file each, there as a whole or not at all.

In: a path and a plain value. Out: a JSON file.
"""

from __future__ import annotations

from pathlib import Path

from protos.artifacts import write_json


def store(path: Path, value: object) -> None:
    """Write a value as JSON and move it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    write_json(partial, value)
    partial.rename(path)
