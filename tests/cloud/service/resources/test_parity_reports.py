"""Parity reports from devices: checked, sealed, listed and deleted, on both databases."""

from __future__ import annotations

import uuid

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from sqlalchemy import select

from cloud.service.errors import DETAILS_KEY
from cloud.service.tables import ParityReport
from protos.v1 import parity_pb2 as pp

Code = grpc.StatusCode


def report(bundle: str, **changes: object) -> pp.ParityReport:
    gates = [pp.ParityGate(metric="top1", value=0.99, threshold=0.95, passed=True)]
    fields = {"bundle": bundle, "runtime": "Pixel 9", "passed": True, "gates": gates,
              "versions": {"executorch": "1.4.1-canary"}}  # fmt: skip
    return pp.ParityReport(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.fixture
def bundle(site) -> str:
    site.add_user("ann")
    return f"users/ann/bundles/{site.furnish('ann', b'text', site.add_base())}"


def create(site, given: pp.ParityReport, request_id: str = "") -> pp.ParityReport:
    return site.parity.CreateParityReport(
        pp.CreateParityReportRequest(parent="users/ann", parity_report=given, request_id=request_id)
    )


def violations(site, given: pp.ParityReport) -> list[str]:
    with pytest.raises(grpc.RpcError) as error:
        create(site, given)
    assert error.value.code() is Code.INVALID_ARGUMENT
    raw = dict(error.value.trailing_metadata())[DETAILS_KEY]
    bad = error_details_pb2.BadRequest()
    assert any(detail.Unpack(bad) for detail in status_pb2.Status.FromString(raw).details)
    return [row.field.removeprefix("parity_report.") for row in bad.field_violations]


def test_a_report_is_kept_sealed_and_comes_back(site, bundle):
    request_id = str(uuid.uuid4())
    made = create(site, report(bundle), request_id)
    assert create(site, report(bundle), request_id) == made
    assert site.parity.GetParityReport(pp.GetParityReportRequest(name=made.name)) == made
    assert (made.runtime, made.gates[0].value) == ("Pixel 9", 0.99)
    with site.parts.database.transaction(write=False) as connection:
        (sealed,) = connection.execute(select(ParityReport.sealed)).scalars()
    assert b"canary" not in sealed
    others = [create(site, report(bundle)).name for _ in range(4)]
    seen, token = [], ""
    for _ in range(3):
        page = site.parity.ListParityReports(
            pp.ListParityReportsRequest(parent="users/ann", page_size=2, page_token=token)
        )
        seen += [each.name for each in page.parity_reports]
        token = page.next_page_token
    assert seen == [*reversed(others), made.name]
    assert not token
    site.parity.DeleteParityReport(pp.DeleteParityReportRequest(name=made.name))
    with pytest.raises(grpc.RpcError) as gone:
        site.parity.GetParityReport(pp.GetParityReportRequest(name=made.name))
    assert gone.value.code() is Code.NOT_FOUND


def test_a_report_that_contradicts_itself_is_refused(site, bundle):
    failed = pp.ParityGate(metric="top1", value=0.5, threshold=0.9, passed=False)
    assert violations(site, report(bundle, gates=[failed])) == ["passed"]
    assert violations(site, report(bundle, gates=[failed, failed], passed=False)) == [
        "gates[1].metric"
    ]
    assert violations(site, report(bundle, gates=[])) == ["gates"]
    assert violations(site, report(bundle, runtime="reference")) == ["runtime"]
    assert violations(site, report(bundle, runtime="")) == ["runtime"]
    nan = pp.ParityGate(metric="top1", value=float("nan"), passed=True)
    assert violations(site, report(bundle, gates=[nan])) == ["gates[0].value"]
    assert violations(site, report(bundle.replace("ann", "bob"))) == ["bundle"]
    with pytest.raises(grpc.RpcError) as missing:
        create(site, report(f"users/ann/bundles/{'0' * 64}"))
    assert missing.value.code() is Code.NOT_FOUND
    create(site, report(bundle, gates=[failed], passed=False))
