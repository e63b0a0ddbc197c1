"""One operation from begin to end: its stages in order, each with its tries, and its outcome.

In: the uid of an operation, and `step`, which remembers a stage's result (the engine's part). Out:
the operation's row, ended. Errors are results too, so that they are remembered like any other.
A stage that is cut off because this worker stops, or was taken for dead, never returns: whatever it
returned would be kept as its result, and the next worker would find it.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import structlog
from google.protobuf.message import Message
from google.rpc import status_pb2
from sqlalchemy import Connection, Row

from cloud.service import checkpoints, child, operations, scratch, traces
from cloud.service.errors import Cancelled, is_away, is_transient, to_status
from cloud.service.pipeline import Job, Pipeline, Stage
from cloud.service.settings import Settings
from cloud.service.state import Database
from cloud.service.turns import Turn, Turns
from cloud.service.vault import Vault
from protos.errors import PocketuneError
from protos.v1 import operations_pb2

T = TypeVar("T")
Kept = dict[str, Any]
Step = Callable[[str, Callable[[], Kept]], Kept]
"""Runs a function once for each operation and name; later calls get the first one's result."""
_POLL_S = 0.25
_REPORT_EVERY_S = 0.5
_BACKOFF_S, _MAX_BACKOFF_S = 1.0, 15.0
_log = structlog.get_logger(__name__)


class Runner:
    """Works off operations; one for each worker. stopping: set when the worker is to end."""

    def __init__(
        self,
        database: Database,
        vault: Vault,
        settings: Settings,
        pipelines: Mapping[str, Pipeline],
        stopping: threading.Event,
    ) -> None:
        self._database = database
        self._vault = vault
        self._settings = settings
        self._pipelines = pipelines
        self._stopping = stopping
        self._turns, self._aside = (Turns(settings.jobs_at_once) for _ in range(2))

    def operate(self, uid: str, worker: str, step: Step, traceparent: str = "") -> str:
        """All stages of one operation, when it is its turn, then its end; says how it ended."""
        with structlog.contextvars.bound_contextvars(operation=uid):
            row = self._write(lambda c: operations.by_uid(c, uid))
            if row is None or row.end_time is not None:
                return "gone"
            pipeline = self._pipelines.get(row.method)
            turns = self._turns if pipeline is None or pipeline.in_turn else self._aside
            with turns.joined(row.tenant, row.base_uid, row.create_time) as turn:
                # Not begun, it is cancelled without us, and no worker has died over it.
                if turn.take(self._asked(operations.may_begin, row)):
                    return self._operate(uid, worker, step, traceparent, turn)
                if self._stopping.is_set():
                    threading.Event().wait()
                return self._finish(row, to_status(Cancelled("cancelled")))

    def _operate(self, uid: str, worker: str, step: Step, traceparent: str, turn: Turn) -> str:
        row = self._write(lambda c: operations.begin(c, uid, worker))
        if row is None:
            return "gone"
        told = {"operation": uid, "attempt": row.attempt}
        with traces.span(f"operation {row.method}", traceparent, **told) as failed:
            outcome = self._outcome(row, step, turn)
            if isinstance(outcome, status_pb2.Status):
                failed()
        return self._finish(row, outcome)

    def _finish(self, row: Row[Any], outcome: Message | status_pb2.Status) -> str:
        """Write the end, unless it is another's to write; says how it ended."""
        self._clean(row)
        space = self._vault.shared
        if not isinstance(outcome, status_pb2.Status) and row.user_uid:
            space = self._vault.space(row.tenant, row.user_uid)
        self._write(lambda c: operations.finish(c, row.uid, row.attempt, space, outcome))
        return "failed" if isinstance(outcome, status_pb2.Status) else "done"

    def _outcome(self, row: Row[Any], step: Step, turn: Turn) -> Message | status_pb2.Status:
        """The operation's response, or the status that it failed with."""
        if too_many := self._too_many(row):
            return too_many
        pipeline = self._pipelines.get(row.method)
        if pipeline is None:
            return to_status(PocketuneError(f"this worker knows no pipeline {row.method}"))
        try:
            job = self._job(row, turn)
        except PocketuneError as error:  # the user was erased, and the key destroyed
            return to_status(error)
        if failed := self._stages(job, pipeline, step):
            return failed
        try:
            return pipeline.answer(job)
        except Exception as error:  # the boundary of a job: all errors become statuses
            return to_status(error)

    def _job(self, row: Row[Any], turn: Turn) -> Job:
        space = self._vault.space(row.tenant, row.user_uid) if row.user_uid else self._vault.shared
        folder = scratch.folder(self._settings.resolved_scratch_dir, row.uid, row.attempt)
        cores = os.cpu_count() or 1
        threads = self._settings.threads or max(1, cores // self._settings.jobs_at_once)
        return Job(row, space, threads, folder, turn=turn)

    def _stages(self, job: Job, pipeline: Pipeline, step: Step) -> status_pb2.Status | None:
        """Run the stages in order; a status if one failed for good."""
        before = 0.0
        for stage in pipeline.stages:
            job.report = self._reporter(job, stage, before)
            job.is_wanted = self._asked(operations.is_wanted, job.operation)
            kept = step(stage.name, partial(self._traced, job, stage))
            if "status" in kept:
                return status_pb2.Status.FromString(bytes.fromhex(kept["status"]))
            job.results[stage.name] = kept["result"]
            job.counters.update(kept["counters"])
            before += stage.share
            job.turn.came_to_training |= stage.number == operations_pb2.STAGE_TRAIN
        return None

    def _traced(self, job: Job, stage: Stage) -> Kept:
        with traces.span(f"stage {stage.name}") as failed:
            kept = self._stage(job, stage)
            if "status" in kept:
                failed()
            return kept

    def _stage(self, job: Job, stage: Stage) -> Kept:
        """The tries of one stage; not begun again once it has returned, whoever is killed."""
        _log.info("stage begins", stage=stage.name, attempt=job.operation.attempt)
        job.report("", 0.0)
        tries = pauses = 0
        until = time.monotonic() + self._settings.outage_s
        while True:
            try:
                job.check()
                job.take_turn()
                return {"result": stage.run(job), "counters": job.counters}
            except Exception as error:  # the boundary of a job: all errors become statuses
                self._halt_if_not_mine(job)
                # While the database or the blob store is away, no try counts.
                is_outage = is_away(error) and time.monotonic() < until
                tries += not is_outage
                is_passing = is_transient(error) or isinstance(error, child.ChildDied)
                if tries == self._settings.stage_tries or not is_passing:
                    return {"status": _failed(stage, error).hex()}
                _log.warning("stage retried", stage=stage.name, error=type(error).__name__)
            pauses += 1
            self._back_off(job, min(_BACKOFF_S * pauses, _MAX_BACKOFF_S))

    def _back_off(self, job: Job, seconds: float) -> None:
        """Wait, but not where the operation is no longer wanted."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and job.is_wanted():
            self._stopping.wait(_POLL_S)

    def _halt_if_not_mine(self, job: Job) -> None:
        """Never return where a stage was cut off because this worker stops or counts as dead.

        Waits for a database that is away: until it answers, nobody knows.
        """
        row = self._write(lambda c: operations.by_uid(c, job.operation.uid))
        if row is not None and row.attempt != job.operation.attempt:
            threading.Event().wait()
        if self._stopping.is_set():
            threading.Event().wait()

    def _too_many(self, row: Row[Any]) -> status_pb2.Status | None:
        """A job over which workers keep dying is given up."""
        limit = self._settings.job_attempts
        if row.attempt <= limit:
            return None
        stage = row.stage
        error = PocketuneError(f"given up: {limit} workers ended during it, last at stage {stage}")
        return to_status(error)

    def _clean(self, row: Row[Any]) -> None:
        """Leave nothing of the operation but its results; before its end, so that it is sure."""
        root = self._settings.resolved_scratch_dir
        scratch.discard(scratch.path(root, row.uid, row.attempt))
        if row.user_uid:
            with contextlib.suppress(PocketuneError):  # an erased user has none
                checkpoints.drop(self._database, self._vault, row)

    def _write(self, change: Callable[[Connection], T]) -> T:
        """A change that must not be lost: tried until the database takes it."""
        while True:
            try:
                with self._database.transaction() as connection:
                    return change(connection)
            except Exception as error:
                if not is_transient(error):
                    raise
                _log.warning("database away", error=type(error).__name__)
            if self._stopping.wait(_BACKOFF_S):
                threading.Event().wait()

    def _asked(
        self, question: Callable[[Connection, str, int], bool], row: Row[Any]
    ) -> Callable[[], bool]:
        """Asks the database, at most four times a second; no, once this worker stops."""
        last = [0.0, True]

        def asked() -> bool:
            if self._stopping.is_set():
                return False
            if time.monotonic() - last[0] >= _POLL_S:
                with contextlib.suppress(Exception), self._database.transaction(False) as c:
                    last[1] = question(c, row.uid, row.attempt)
                last[0] = time.monotonic()
            return bool(last[1])

        return asked

    def _reporter(self, job: Job, stage: Stage, before: float) -> Callable[[str, float], None]:
        """`report` for a stage: writes progress, at most twice a second.

        A stage that is tried again does less at first than was told already, which stays.
        """
        last, told = [0.0], [before]

        def report(message: str, share: float) -> None:
            if share and time.monotonic() - last[0] < _REPORT_EVERY_S:
                return
            last[0] = time.monotonic()
            told[0] = max(told[0], before + stage.share * min(max(share, 0.0), 1.0))
            with contextlib.suppress(Exception), self._database.transaction() as connection:
                operations.advance(
                    connection, job.operation.uid, job.operation.attempt, stage=stage.number,
                    progress=told[0], message=message, counters=job.counters,
                )  # fmt: skip

        return report


def _failed(stage: Stage, error: Exception) -> bytes:
    if isinstance(error, child.ChildFailed):
        # The type alone: the message may quote an item, and no item is ever logged.
        _log.error("stage failed", stage=stage.name, error=str(error).partition(":")[0])
    status = to_status(error)
    if not isinstance(error, Cancelled):
        status.message = f"stage {stage.name}: {status.message}"
    return status.SerializeToString()
