"""Parity: the reference runtime replays the bundle's goldens; its report is kept in any case."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import select

from cloud.service import artifacts_store, messages
from cloud.service.parity import REFERENCE, store
from cloud.service.pipeline import Job, Result
from cloud.service.stages.site import Site, user_of
from cloud.service.tables import ParityReport
from protos.artifacts import open_artifact, read_json
from protos.v1 import parity_pb2

_REPORT_FILE = "report.json"
_MAX_GATES = 100


def run(site: Site, job: Job) -> Result:
    """The stage."""
    lowered = site.base_bundle(job, job.value("base_bundle"))
    bundle = site.artifact(job, job.value("bundle"), "adapter-bundle")
    out = job.folder / "parity"
    job.in_child(
        site.tools.measure_parity, str(lowered.path), str(bundle.path), str(out), job.threads
    )
    found = open_artifact(Path(out), "ParityReport")
    raw = read_json(found.file(_REPORT_FILE))
    report = message_of(raw)
    job.counters["gates"] = len(report.gates)
    return {"report": _keep(site, job, report), "passed": report.passed,
            "fault": raw["stage_at_fault"] or ""}  # fmt: skip


def message_of(raw: Mapping[str, Any]) -> parity_pb2.ParityReport:
    """The report as clients see it. A gate that compares no numbers has 1 for yes, 0 for no."""
    report = parity_pb2.ParityReport(
        runtime=REFERENCE, passed=raw["passed"], versions=raw["versions"]
    )
    for gate in raw["gates"][:_MAX_GATES]:
        value, limit = gate["value"], gate["limit"]
        if isinstance(value, str) or isinstance(limit, str):
            value, limit = float(gate["passed"]), 1.0
        report.gates.add(
            metric=gate["name"], value=value, threshold=limit, passed=gate["passed"]
        )  # fmt: skip
    return report


def _keep(site: Site, job: Job, report: parity_pb2.ParityReport) -> str:
    """Write the row, once for each operation, also where the stage runs twice."""
    uid = str(uuid.uuid5(uuid.UUID(job.operation.uid), "parity"))
    job.check()
    with site.database.transaction() as connection:
        if connection.execute(select(ParityReport.uid).where(ParityReport.uid == uid)).first():
            return uid
        user = user_of(connection, job)
        row = artifacts_store.by_uid(connection, job.value("bundle"))
        report.bundle = messages.bundle_name(user.user_id, row.artifact_id)
        store(connection, job.space, user.uid, report, uid)
    return uid


def report_of(site: Site, job: Job) -> parity_pb2.ParityReport:
    """The report of the operation, as clients see it."""
    wanted = select(*ParityReport.__table__.columns).where(ParityReport.uid == job.value("report"))
    with site.database.transaction(write=False) as connection:
        row = connection.execute(wanted).one()
        user = user_of(connection, job)
    return messages.parity_report(row, job.space, user.user_id)
