"""Durable jobs on DBOS: the only module that knows it.

In: operations (rows), and a pipeline of stages for each method. Out: every operation ends exactly
once, whoever is killed meanwhile. An operation is a workflow whose id is the operation's; a stage
is a step, whose small JSON result is kept, so that a finished stage never runs again. A stage that
was cut off runs again from its start, or from a checkpoint of its own.

What DBOS does: the queue, fairness between tenants (one partition each, visited in random order),
workers on many hosts, steps that are remembered. What is added here, because DBOS leaves it to its
paid Conductor: noticing that a worker is dead (`liveness.py`), and then putting its jobs back.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sqlite3
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import sqlalchemy
import structlog
from dbos import DBOS, DBOSClient, Serializer
from sqlalchemy import Connection, Engine, ExceptionContext, event

from cloud.service import scratch, traces
from cloud.service.liveness import Roll
from cloud.service.pipeline import Pipeline
from cloud.service.runner import Kept, Runner
from cloud.service.settings import Settings
from cloud.service.state import Database, new_uid
from cloud.service.vault import Vault

APPLICATION = "pocketune"
PIPELINE_VERSION = "1"
"""DBOS gives a job to workers of its version only: raise it when stages change their results."""
WORKFLOW = "operation"
_POLL_S = 0.25
_log = structlog.get_logger(__name__)


class JsonSerializer(Serializer):
    """What DBOS keeps of a job is JSON: readable by others, and nothing runs when it is read."""

    def serialize(self, data: Any) -> str:
        if isinstance(data, BaseException):
            data = {"error": type(data).__name__}
        return json.dumps(data, separators=(",", ":"))

    def deserialize(self, serialized_data: str) -> Any:
        data = json.loads(serialized_data)
        if isinstance(data, dict) and set(data) == {"error"}:
            return RuntimeError(data["error"])
        return data

    def name(self) -> str:
        return "pocketune_json"


class JobQueue:
    """The server's side: put jobs into the queue, within the transaction of their operation."""

    def __init__(self, database: Database) -> None:
        self._client = DBOSClient(
            system_database_url=database.url, serializer=JsonSerializer(),
            application_name=APPLICATION, lazy=True, retry_connection_errors=False,
        )  # fmt: skip

    def put(self, connection: Connection, tenant: str, operation_uid: str, queue: str) -> None:
        """Queue an operation; it exists when the transaction commits, and not otherwise."""
        self._client.enqueue_in_transaction(
            connection,
            {
                "workflow_name": WORKFLOW, "queue_name": queue, "workflow_id": operation_uid,
                "queue_partition_key": tenant, "app_version": PIPELINE_VERSION,
            },
            operation_uid, traces.current(),
        )  # fmt: skip

    def forget(self, operation_uids: Sequence[str]) -> None:
        """Remove what DBOS keeps of operations that are cancelled or erased."""
        if operation_uids:
            self._client.cancel_workflows(list(operation_uids))
            self._client.delete_workflows(list(operation_uids))

    def close(self) -> None:
        """Let go of the connections."""
        self._client.destroy()


class JobWorker:
    """A process that takes jobs. One for each process: DBOS is a singleton."""

    def __init__(
        self,
        database: Database,
        vault: Vault,
        settings: Settings,
        pipelines: Mapping[str, Pipeline],
        on_fenced: Callable[[], None] = lambda: os._exit(70),
    ) -> None:
        self.executor_id = f"{socket.gethostname()}-{os.getpid()}-{new_uid()[:8]}"
        self._database = database
        self._settings = settings
        self._on_fenced = on_fenced
        self._stopping = threading.Event()
        self._runner = Runner(database, vault, settings, pipelines, self._stopping)
        self._roll = Roll(self.executor_id, settings.worker_timeout_s)

    def start(self) -> None:
        """Begin to take jobs. Returns at once; the work is done in threads and children."""
        scratch.sweep(self._settings.resolved_scratch_dir, self._database)
        prepare(self._database, self.executor_id)

        @DBOS.workflow(name=WORKFLOW, max_recovery_attempts=1000)
        def operate(  # pyright: ignore[reportUnusedFunction]
            operation_uid: str, traceparent: str = ""
        ) -> str:
            return self._operate(operation_uid, traceparent)

        DBOS.listen_queues(list(self._settings.queues))
        self._roll.sign(self._database)
        DBOS.launch()
        for queue in self._settings.queues:
            most = max(self._settings.jobs_at_once, self._settings.tenant_jobs_at_once)
            held = min(most, self._settings.jobs_held)
            DBOS.register_queue(
                queue,
                worker_concurrency=2 * held,  # one tenant leaves room for another
                partition_worker_concurrency=held,
                partition_concurrency=most,
                polling_interval_sec=_POLL_S,
                on_conflict="always_update",
            )
        threading.Thread(target=self._watch, name="worker-watch", daemon=True).start()

    def stop(self) -> None:
        """Hand back what is running: children end, unfinished stages wait for another worker.

        The process must end after this: threads that were inside a stage never come back.
        """
        self._stopping.set()
        with contextlib.suppress(Exception):
            self._roll.strike(self._database)

    def _operate(self, operation_uid: str, traceparent: str) -> str:
        return self._runner.operate(operation_uid, self.executor_id, _remembered, traceparent)

    def _watch(self) -> None:
        """Beat, and bury the dead."""
        while not self._stopping.wait(self._settings.worker_timeout_s / 5):
            try:
                living = self._roll.call(self._database)
                if living is not None:
                    _put_back(living)
                elif not self._stopping.is_set():
                    _log.error("declared dead by another worker", worker=self.executor_id)
                    self._on_fenced()
                    return
            except Exception as error:  # the database may be away; the next beat tries again
                _log.warning("watch failed", error=type(error).__name__)


def _remembered(name: str, stage: Callable[[], Kept]) -> Kept:
    """A stage as a step of the workflow that runs."""
    return DBOS.run_step({"name": name}, stage)


def prepare(database: Database, executor_id: str = "setup") -> None:
    """Configure DBOS for this process."""
    DBOS(
        config={
            "name": APPLICATION,
            "system_database_url": database.url,
            "system_database_engine": _patient(database.url) if database.is_sqlite else None,
            "executor_id": executor_id,
            "application_version": PIPELINE_VERSION,
            "serializer": JsonSerializer(),
            "log_level": "WARNING",
            "console_log_level": "WARNING",
        }
    )


def _patient(url: str) -> Engine:
    """DBOS's SQLite, made as it makes it, but a disk without room is waited for like a lock.

    DBOS waits so for PostgreSQL. Here it would lose the workflow: the operation would never end.
    """
    engine = sqlalchemy.create_engine(url, pool_size=20)

    @event.listens_for(engine, "connect")
    def set_up(raw: Any, _: Any) -> None:  # pyright: ignore[reportUnusedFunction]
        raw.isolation_level = "IMMEDIATE"
        raw.execute("PRAGMA busy_timeout=30000")
        raw.execute("PRAGMA foreign_keys=ON")

    @event.listens_for(engine, "handle_error")
    def wait(context: ExceptionContext) -> None:  # pyright: ignore[reportUnusedFunction]
        code = getattr(context.original_exception, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
            raise sqlite3.OperationalError("database is locked: its disk is full or away")

    return engine


def make_tables(database: Database) -> None:
    """Create DBOS's own tables, for a server that runs no worker itself."""
    DBOS.migrate(database.url)


def _put_back(living: set[str]) -> None:
    """Queue again what is held by workers that are not alive; doing so twice changes nothing."""
    pending = DBOS.list_workflows(status="PENDING", load_input=False, load_output=False)
    dead = {w.executor_id for w in pending if w.executor_id} - living
    if dead:
        _log.warning("jobs of dead workers put back", workers=sorted(dead))
        # What DBOS's own admin server calls; it has no public name.
        DBOS._recover_pending_workflows(sorted(dead))  # pyright: ignore[reportPrivateUsage]
