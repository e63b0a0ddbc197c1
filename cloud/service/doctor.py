"""What `pocketune doctor` looks at: whether a server or worker with these settings would run.

In: settings. Out: a list of findings, each with what to do about it. Nothing is changed, except
that a few bytes are written to the blob store and the key store and deleted again.
"""

from __future__ import annotations

import shutil
import socket
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError

from cloud.service.blobs import BlobStore, open_store
from cloud.service.settings import Settings
from cloud.service.state import Database
from cloud.service.tables import Worker
from cloud.service.vault import VERSIONS

_LEAST_FREE_BYTES = 2 * 1024**3
_SOON = timedelta(days=30)
_LOCAL = "file://"
_LEAST = {"grpcio": (1, 80), "protobuf": (6, 33), "dbos": (3, 4), "torch": (2, 13)}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. level: `ok`, `warn` or `fail`."""

    level: str
    what: str
    text: str


def examine(settings: Settings) -> list[Finding]:
    """Look at everything; a check that cannot be made is a finding, too."""
    findings: list[Finding] = []
    for check in _CHECKS:
        try:
            findings += check(settings)
        except Exception as error:  # a doctor must not fall ill: it says what is wrong instead
            what = check.__name__.removeprefix("_").replace("_", " ")
            findings.append(Finding("fail", what, f"{type(error).__name__}: {error}"))
    return findings


def _python(_: Settings) -> Iterator[Finding]:
    is_known = (3, 11) <= sys.version_info[:2] <= (3, 13)
    yield Finding("ok" if is_known else "fail", "python", sys.version.split()[0])


def _packages(_: Settings) -> Iterator[Finding]:
    for name, least in _LEAST.items():
        wanted = ".".join(map(str, least))
        try:
            found = version(name)
        except PackageNotFoundError:
            yield Finding("fail", name, f"not installed, expected {wanted} or newer")
            continue
        is_new = tuple(int(part) for part in found.split("+")[0].split(".")[:2]) >= least
        yield Finding("ok" if is_new else "fail", name, f"{found} (needs {wanted})")


def _database(settings: Settings) -> Iterator[Finding]:
    url = settings.resolved_database_url
    kind = "SQLite" if url.startswith("sqlite") else "PostgreSQL"
    path = Path(url.removeprefix("sqlite:///"))
    if kind == "SQLite" and not path.exists():
        yield Finding("ok", "database", f"SQLite in {path}, made at the first start")
        return
    database = Database(url)
    try:
        with database.transaction(False) as connection:
            workers = connection.execute(select(func.count()).select_from(Worker)).scalar()
        yield Finding("ok", "database", f"{kind} answers; {workers} workers have signed in")
    except SQLAlchemyError as error:
        cause = type(getattr(error, "orig", None) or error).__name__
        yield Finding("fail", "database", f"{kind} does not answer as it should ({cause})")
    finally:
        database.close()


def _stores(settings: Settings) -> Iterator[Finding]:
    for what, url in (
        ("blobs", settings.resolved_blobs_url),
        ("keys", settings.resolved_keys_url),
    ):
        if url.startswith(_LOCAL) and not Path(url.removeprefix(_LOCAL)).exists():
            yield Finding("ok", what, f"{url}, made at the first start")
            continue
        store, name = open_store(url, settings.s3_endpoint_url), f"doctor/{uuid.uuid4().hex}"
        try:
            store.put(name, [b"well"])
            is_sound = b"".join(store.read(name, 0, 4)) == b"well"
        finally:
            store.delete(name)
        text = f"{url} takes, gives and deletes" if is_sound else f"{url} gave back other bytes"
        yield Finding("ok" if is_sound else "fail", what, text)
        yield from _versions(settings, what, store)


def _versions(settings: Settings, what: str, store: BlobStore) -> Iterator[Finding]:
    """Where deleted things stay. Of blobs, only what nobody has a key to any more."""
    try:
        if not store.keeps_versions():
            return
    except OSError as error:
        text = f"may not ask whether its bucket keeps old versions ({error}); it must not"
        yield Finding("warn", what, text)
        return
    if what == "blobs" and settings.encrypt:
        yield Finding("warn", what, "its bucket keeps old versions: of erased users, ciphertext")
    else:
        yield Finding("fail", what, VERSIONS)


def _root_key(settings: Settings) -> Iterator[Finding]:
    path = settings.root_key_file or settings.data_dir / "root.key"
    if not settings.encrypt:
        yield Finding("warn", "encryption", "off: users' data is stored in clear text")
    elif not path.exists():
        is_wanted = settings.root_key_file is not None
        text = "is missing; `pocketune keys root` makes it" if is_wanted else "made at first start"
        yield Finding("fail" if is_wanted else "ok", "root key", f"{path}: {text}")
    else:
        mode, size = path.stat().st_mode & 0o777, path.stat().st_size
        if size < 32:
            yield Finding("fail", "root key", f"{path}: {size} bytes, expected 32")
        elif mode & 0o077:
            yield Finding("warn", "root key", f"{path}: mode {mode:o}; chmod 600 it")
        else:
            yield Finding(
                "ok", "root key", f"{path}; keep a copy elsewhere: without it all is lost"
            )


def _teachers(settings: Settings) -> Iterator[Finding]:
    """Whether personal data can be taken out of what remote teachers are sent."""
    remote = [name for name, spec in settings.teachers.items() if spec.startswith("openai:")]
    if not remote:
        return
    names = ", ".join(remote)
    if all(find_spec(name) for name in ("presidio_analyzer", "spacy")):
        yield Finding("ok", "teachers", f"{names}: personal data is taken out of what they see")
    else:
        text = f"{names}: a worker that asks them needs pip install 'pocketune[privacy]'"
        yield Finding("fail", "teachers", text)


def _hosts(settings: Settings) -> Iterator[Finding]:
    """What several hosts must have in common, where the database says that there may be several."""
    if settings.resolved_database_url.startswith("sqlite"):
        return
    if settings.resolved_blobs_url.startswith(_LOCAL):
        yield Finding("warn", "hosts", "blobs are a folder: every host must see the same one")
    for name in ("root_key_file", "server_key_file"):
        if getattr(settings, name) is None:
            text = f"{name} is not set: {settings.data_dir} must be the same on every host"
            yield Finding("warn", "hosts", text)


def _disk(settings: Settings) -> Iterator[Finding]:
    folder = settings.data_dir.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    level = "ok" if free >= _LEAST_FREE_BYTES else "warn"
    yield Finding(level, "disk", f"{free / 1e9:.1f} GB free in {folder}")


def _port(settings: Settings) -> Iterator[Finding]:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as found:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind((settings.host, settings.port))
        except OSError as error:
            text = f"{settings.host}:{settings.port}: {error.strerror}; is a server running?"
            yield Finding("warn", "port", text)
            return
    yield Finding("ok", "port", f"{settings.host}:{settings.port} is free")


def _tls(settings: Settings) -> Iterator[Finding]:
    if settings.tls_cert_file is None:
        level = "ok" if settings.is_loopback else "warn"
        yield Finding(level, "tls", "off; only sound on loopback or behind a proxy that speaks it")
        return
    from cryptography import x509

    until = x509.load_pem_x509_certificate(settings.tls_cert_file.read_bytes()).not_valid_after_utc
    left = until - datetime.now(UTC)
    level = "fail" if left < timedelta() else "warn" if left < _SOON else "ok"
    yield Finding(level, "tls", f"{settings.tls_cert_file} is valid until {until:%Y-%m-%d}")


def _callers(settings: Settings) -> Iterator[Finding]:
    from cloud.service.auth import Authenticator

    Authenticator(settings)  # reads the keys, and says what is wrong with them
    if settings.has_credentials:
        yield Finding("ok", "callers", "must show an API key or a token")
    else:
        level = "ok" if settings.is_loopback else "warn"
        yield Finding(level, "callers", "anybody who reaches the port is the tenant `local`")


_CHECKS: tuple[Callable[[Settings], Iterator[Finding]], ...] = (
    _python, _packages, _database, _stores, _root_key, _teachers, _hosts, _disk, _port, _tls,
    _callers,
)  # fmt: skip
