"""The service of parity reports: what a device or the reference runtime measured with a bundle.

A report from outside is believed as far as it can be checked here: its bundle is there, its verdict
follows from its gates, and it does not pretend to be the reference.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.empty_pb2 import Empty
from sqlalchemy import Connection, Row, delete, insert, select

from cloud.service import artifacts_store, messages, names, pages, requests
from cloud.service.auth import Principal, principal
from cloud.service.boundary import Context
from cloud.service.errors import InvalidFields, NotFound, Violation
from cloud.service.owned import fitting, newest_first
from cloud.service.parts import Parts
from cloud.service.state import new_uid, now
from cloud.service.tables import ParityReport
from cloud.service.users import find_user
from cloud.service.vault import Space
from protos.v1 import parity_pb2, parity_pb2_grpc

REFERENCE = "reference"
"""What the pipeline calls the runtime of its own reports."""
_REPORT = "pocketune.dev/ParityReport"
_COLUMNS = ParityReport.__table__.columns


def store(
    connection: Connection,
    space: Space,
    user_uid: str,
    report: parity_pb2.ParityReport,
    uid: str = "",
) -> Row[Any]:
    """Write a report and return its row; `name` and `create_time` are not kept, the row says."""
    uid = uid or new_uid()
    kept = parity_pb2.ParityReport()
    kept.CopyFrom(report)
    kept.ClearField("name")
    kept.ClearField("create_time")
    sealed = space.seal(kept.SerializeToString(), messages.parity_context(uid))
    connection.execute(
        insert(ParityReport).values(
            uid=uid, user_uid=user_uid, sealed=sealed, create_time=now()
        )
    )  # fmt: skip
    return connection.execute(select(*_COLUMNS).where(ParityReport.uid == uid)).one()


class Parity(parity_pb2_grpc.ParityServiceServicer):
    """`pocketune.v1.ParityService`."""

    def __init__(self, parts: Parts) -> None:
        self._database = parts.database
        self._vault = parts.vault
        self._audit = parts.audit

    async def CreateParityReport(
        self, request: parity_pb2.CreateParityReportRequest, context: Context
    ) -> parity_pb2.ParityReport:
        caller = principal.get()
        _check(request)
        return await self._database.write(lambda c: self._create(c, caller, request))

    def _create(
        self,
        connection: Connection,
        caller: Principal,
        request: parity_pb2.CreateParityReportRequest,
    ) -> parity_pb2.ParityReport:
        (user_id,) = names.parts("pocketune.dev/User", request.parent)
        user = find_user(connection, caller.tenant, user_id)
        space = self._vault.space(caller.tenant, user.uid)
        empty = parity_pb2.ParityReport()
        answer = requests.replay(connection, caller.tenant, request, space, empty)
        if answer is not None:
            return answer
        _, bundle_id = names.parts("pocketune.dev/Bundle", request.parity_report.bundle)
        if artifacts_store.find(connection, user.uid, "AdapterBundle", bundle_id) is None:
            raise NotFound(request.parity_report.bundle)
        row = store(connection, space, user.uid, request.parity_report)
        answer = messages.parity_report(row, space, user_id)
        requests.remember(connection, caller.tenant, user.uid, request, space, answer)
        self._audit.record(connection, caller, "CreateParityReport", answer.name)
        return answer

    async def GetParityReport(
        self, request: parity_pb2.GetParityReportRequest, context: Context
    ) -> parity_pb2.ParityReport:
        tenant = principal.get().tenant
        row = await self._database.read(lambda c: _find(c, tenant, request.name))
        user_id, _ = names.parts(_REPORT, request.name)
        return messages.parity_report(row, await self._vault.open(tenant, row.user_uid), user_id)

    async def ListParityReports(
        self, request: parity_pb2.ListParityReportsRequest, context: Context
    ) -> parity_pb2.ListParityReportsResponse:
        tenant = principal.get().tenant
        (user_id,) = names.parts("pocketune.dev/User", request.parent)
        size = pages.size(request.page_size)
        collection = f"{request.parent}/parityReports"
        last = pages.after(request.page_token, collection, int, str)

        def query(connection: Connection) -> tuple[str, list[Row[Any]], bool]:
            user = find_user(connection, tenant, user_id)
            mine = select(*_COLUMNS).where(ParityReport.user_uid == user.uid)
            found = connection.execute(newest_first(mine, ParityReport, last, size))
            return user.uid, *fitting(found, size)

        uid, rows, more = await self._database.read(query)
        space = await self._vault.open(tenant, uid)
        return parity_pb2.ListParityReportsResponse(
            parity_reports=[messages.parity_report(row, space, user_id) for row in rows],
            next_page_token=pages.token(collection, [rows[-1].create_time, rows[-1].uid])
            if more
            else "",
        )

    async def DeleteParityReport(
        self, request: parity_pb2.DeleteParityReportRequest, context: Context
    ) -> Empty:
        caller = principal.get()
        return await self._database.write(lambda c: self._delete(c, caller, request))

    def _delete(
        self,
        connection: Connection,
        caller: Principal,
        request: parity_pb2.DeleteParityReportRequest,
    ) -> Empty:
        user_id, _ = names.parts(_REPORT, request.name)
        user = find_user(connection, caller.tenant, user_id)
        space = self._vault.space(caller.tenant, user.uid)
        answer = requests.replay(connection, caller.tenant, request, space, Empty())
        if answer is not None:
            return answer
        row = _find(connection, caller.tenant, request.name)
        connection.execute(delete(ParityReport).where(ParityReport.uid == row.uid))
        requests.remember(connection, caller.tenant, user.uid, request, space, Empty())
        self._audit.record(connection, caller, "DeleteParityReport", request.name)
        return Empty()


def _find(connection: Connection, tenant: str, name: str) -> Row[Any]:
    user_id, uid = names.parts(_REPORT, name)
    user = find_user(connection, tenant, user_id)
    same = (ParityReport.uid == uid) & (ParityReport.user_uid == user.uid)
    row = connection.execute(select(*_COLUMNS).where(same)).first()
    if row is None:
        raise NotFound(name)
    return row


def _check(request: parity_pb2.CreateParityReportRequest) -> None:
    """What `rules.py` cannot say, because it is about several fields at once."""
    report = request.parity_report
    violations: list[Violation] = []
    if not report.bundle.startswith(f"{request.parent}/"):
        violations.append(Violation("parity_report.bundle", f"is none of {request.parent}"))
    if report.runtime in ("", REFERENCE):
        problem = f"expected what the device calls itself, and not {REFERENCE!r}"
        violations.append(Violation("parity_report.runtime", problem))
    if not report.gates:
        violations.append(Violation("parity_report.gates", "expected at least one"))
    violations += _gate_violations(report)
    if report.passed != all(gate.passed for gate in report.gates):
        problem = "contradicts the gates: a report has passed if every gate has"
        violations.append(Violation("parity_report.passed", problem))
    if violations:
        raise InvalidFields(violations)


def _gate_violations(report: parity_pb2.ParityReport) -> list[Violation]:
    found: list[Violation] = []
    seen: set[str] = set()
    for index, gate in enumerate(report.gates):
        if not gate.metric or gate.metric in seen:
            problem = "is there already" if gate.metric else "is required"
            found.append(Violation(f"parity_report.gates[{index}].metric", problem))
        seen.add(gate.metric)
    return found
