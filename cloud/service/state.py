"""The database: one engine, migrations, and the two ways to touch it.

In: a URL. Out: `Database`, whose `read` and `write` run a function in one transaction each.
On SQLite (WAL) a read is a few dozen microseconds, so it runs where it is asked for, and all
writes of a process queue in one thread: they never meet each other's lock. On PostgreSQL both run
in threads. Workers, which are not asynchronous, use `transaction`.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import time
import uuid
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy
from sqlalchemy import Connection, Engine, event, make_url
from sqlalchemy.exc import DBAPIError, IntegrityError

from cloud.service.errors import Conflict

T = TypeVar("T")
_MIGRATIONS = Path(__file__).parent / "migrations"
_POOL_SIZE = 20
_RETRIES = 3


def now() -> int:
    """Microseconds since 1970, UTC."""
    return time.time_ns() // 1000


def new_uid() -> str:
    """A random id, which no other row has or ever had."""
    return str(uuid.uuid4())


class Database:
    """All state but blobs and keys."""

    def __init__(self, url: str, answer_s: float = 60.0) -> None:
        """answer_s: how long `read` and `write` wait for an answer."""
        self.url = url
        self._answer_s = answer_s
        self.is_sqlite = make_url(url).get_backend_name() == "sqlite"
        self.engine = _sqlite(url) if self.is_sqlite else _postgresql(url)
        self._reading = self.engine.execution_options(pocketune_write=False)
        self._reader: Connection | None = None
        self._writers = ThreadPoolExecutor(1 if self.is_sqlite else _POOL_SIZE, "database")

    def migrate(self) -> None:
        """Bring the tables to this version; several processes may call it at once."""
        from alembic import command
        from alembic.config import Config

        config = Config()
        config.set_main_option("script_location", str(_MIGRATIONS))
        with self.engine.connect() as connection:
            if not self.is_sqlite:
                connection.exec_driver_sql("SELECT pg_advisory_lock(7305311)")
                connection.commit()
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            connection.commit()
            if not self.is_sqlite:
                connection.exec_driver_sql("SELECT pg_advisory_unlock(7305311)")
                connection.commit()

    @contextlib.contextmanager
    def transaction(self, write: bool = True) -> Generator[Connection]:
        """One transaction, in the calling thread."""
        with (self.engine if write else self._reading).begin() as connection:
            yield connection

    async def read(self, query: Callable[[Connection], T]) -> T:
        """Run a query that changes nothing; from one event loop only.

        A query may stop in the middle of a result, but must not keep it: on SQLite an open result
        holds on to what the database was when it was begun.
        """
        if self.is_sqlite:
            return self._read_here(query)
        return await self._in_thread(query, write=False)

    async def write(self, change: Callable[[Connection], T]) -> T:
        """Run a change in one transaction: when this returns, it is on the disk.

        A change may run again if another writer was in its way, so it touches nothing else. One
        that breaks a unique constraint runs again too: it looks before it inserts, and then sees
        what was in its way.
        """
        return await self._in_thread(change, write=True)

    def _read_here(self, query: Callable[[Connection], T]) -> T:
        """Fetching a connection takes as long as the query, so the event loop keeps one."""
        if self._reader is None:
            self._reader = self._reading.connect()
        try:
            with self._reader.begin():
                return query(self._reader)
        except DBAPIError:  # whatever was wrong with it, the next query begins anew
            self._reader.close()
            self._reader = None
            raise

    def close(self) -> None:
        """Let go of every connection."""
        self._writers.shutdown()
        if self._reader is not None:
            self._reader.close()
        self.engine.dispose()

    def erase_traces(self) -> None:
        """Rewrite what the database keeps of deleted rows outside the tables, where it can.

        SQLite: overwritten pages (secure_delete) leave the write-ahead log at once. PostgreSQL
        keeps dead rows until its vacuum; they are ciphertext, and the key is gone.
        """
        if self.is_sqlite:
            with self.engine.connect() as connection:
                raw: Any = connection.connection.driver_connection
                raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    async def _in_thread(self, work: Callable[[Connection], T], write: bool) -> T:
        loop = asyncio.get_running_loop()
        # With the context of the call: the span that this is a part of stands there.
        context = contextvars.copy_context()
        async with asyncio.timeout(self._answer_s):
            return await loop.run_in_executor(
                self._writers, lambda: context.run(self._run, work, write)
            )

    def _run(self, work: Callable[[Connection], T], write: bool) -> T:
        for _ in range(_RETRIES):
            try:
                with self.transaction(write) as connection:
                    return work(connection)
            except DBAPIError as error:
                if not isinstance(error, IntegrityError) and not _is_serialization(error):
                    raise
        raise Conflict("too many writers at the same rows; try again")


def _is_serialization(error: DBAPIError) -> bool:
    return getattr(error.orig, "sqlstate", "") in ("40001", "40P01")


def _postgresql(url: str) -> Engine:
    return sqlalchemy.create_engine(
        url, pool_size=_POOL_SIZE, max_overflow=0, pool_timeout=5, pool_pre_ping=True,
        connect_args={
            "connect_timeout": 5,
            # A host that has vanished is noticed in half a minute, and no thread waits for hours.
            "tcp_user_timeout": 30_000, "keepalives_idle": 15, "keepalives_interval": 5,
            "keepalives_count": 3,
            # A worker that froze in a transaction gives up its locks, for the others to go on.
            "options": "-c idle_in_transaction_session_timeout=15000",
        },
    )  # fmt: skip


def _sqlite(url: str) -> Engine:
    path = make_url(url).database or ""
    Path(path).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    engine = sqlalchemy.create_engine(
        url, pool_size=_POOL_SIZE, max_overflow=0, connect_args={"check_same_thread": False}
    )

    @event.listens_for(engine, "connect")
    def set_up(raw: Any, _: Any) -> None:  # pyright: ignore[reportUnusedFunction]
        raw.isolation_level = None  # we say BEGIN ourselves, see below
        for pragma in (
            "busy_timeout=10000", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON",
            "secure_delete=ON",
        ):  # fmt: skip
            raw.execute(f"PRAGMA {pragma}").fetchall()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:  # pyright: ignore[reportUnusedFunction]
        # A transaction that will write takes its lock at once: one that began by reading cannot
        # get it later if another process wrote in between, however long it waits.
        write = connection.get_execution_options().get("pocketune_write", True)
        raw: Any = connection.connection.driver_connection
        raw.execute("BEGIN IMMEDIATE" if write else "BEGIN")

    return engine
