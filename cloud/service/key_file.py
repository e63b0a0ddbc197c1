"""The file of API keys: `pocketune keys` writes it, the server reads it when it starts.

A key is shown once, when it is made; the file holds its sha256, so that reading the file lets
nobody in.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from cloud.service.auth import make_api_key, read_api_keys
from protos.artifacts import read_json
from protos.errors import InputError


def add_key(path: Path, tenant: str, key_id: str) -> str:
    """Add a new key to the file, which is made if need be; returns the key.

    Raises:
        InputError: the tenant is no id, or the key's id is taken.
    """
    rows = key_rows(path)
    if any(row["id"] == key_id for row in rows):
        raise InputError(f"{path}: there is a key {key_id!r} already; choose another id")
    try:
        key, row = make_api_key(tenant, key_id)
    except ValueError as error:
        raise InputError(f"{error}: expected letters, digits, `.`, `_` and `-`") from None
    _write(path, [*rows, row])
    return key


def remove_key(path: Path, key_id: str) -> None:
    """Take a key out of the file.

    Raises:
        InputError: there is none of that id.
    """
    rows = key_rows(path)
    left = [row for row in rows if row["id"] != key_id]
    if len(left) == len(rows):
        known = ", ".join(row["id"] for row in rows) or "none"
        raise InputError(f"{path}: no key {key_id!r} (known: {known})")
    _write(path, left)


def key_rows(path: Path) -> list[dict[str, str]]:
    """The rows of the file, none where there is no file yet.

    Raises:
        InputError: it is malformed.
    """
    if not path.exists():
        return []
    read_api_keys(path)
    return read_json(path)


def _write(path: Path, rows: list[dict[str, str]]) -> None:
    """Replace the file as a whole; only its owner may read it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".keys-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            json.dump(rows, stream, indent=1)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
