"""Every call that changes something leaves a row in the audit log, and no row says about whom."""

from __future__ import annotations

import uuid

import grpc
import pytest
from google.longrunning import operations_pb2 as longrunning
from sqlalchemy import select

from cloud.service import erasure
from cloud.service.audit import open_audit
from cloud.service.server import _FILES
from cloud.service.tables import Audit
from protos.v1 import (
    adapters_pb2,
    bases_pb2,
    bundles_pb2,
    parity_pb2,
    profiles_pb2,
    users_pb2,
)

CANARY = "CANARY-7f3e"
USER, PROFILE = "users/ann", "users/ann/profiles/LaMP_4"
RECIPE = "executorch-xnnpack-8da4w"
READS = ("Get", "List", "Download", "Wait")


def rows(site) -> list:
    with site.parts.database.transaction(write=False) as connection:
        wanted = select(*Audit.__table__.columns).order_by(Audit.create_time)
        return list(connection.execute(wanted).all())


def mutating() -> set[str]:
    """The methods of the API that change something, as the .proto files have them."""
    services = [s for file in _FILES for s in file.DESCRIPTOR.services_by_name.values()]
    methods = {method.name for service in services for method in service.methods}
    return {name for name in methods if not name.startswith(READS)}


def end(site, operation: longrunning.Operation) -> None:
    site.operations.CancelOperation(longrunning.CancelOperationRequest(name=operation.name))


def change_everything(site) -> list[tuple[str, str]]:
    """Call every mutating method once; returns methods and what each was about."""
    site.add_user("ann", (f"{CANARY} one", "two"))
    consent = users_pb2.Consent(name=f"{USER}/consent", purpose="p", retention_days=30)
    site.users.UpdateConsent(users_pb2.UpdateConsentRequest(consent=consent))
    told = [("CreateUser", USER), ("CreateProfile", PROFILE), ("AppendItems", PROFILE),
            ("UpdateConsent", f"{USER}/consent")]  # fmt: skip
    base, name = site.add_base(), "bases/pocket"
    bundle = f"{USER}/bundles/{site.furnish('ann', CANARY.encode(), base)}"
    adapter = f"{USER}/adapters/{site.artifact_ids('ann', 'Adapter')[0]}"
    new = bases_pb2.CreateBaseRequest(base_id="new", base={"source": "pocket"})
    train = adapters_pb2.TrainAdapterRequest(parent=USER, profile=PROFILE, base=name)
    export = bundles_pb2.ExportBundleRequest(parent=USER, adapter=adapter, recipe=RECIPE)
    lower = bases_pb2.LowerBaseRequest(name=name, recipe=RECIPE)
    whole = profiles_pb2.PersonalizeProfileRequest(name=PROFILE, base=name, recipe=RECIPE)
    for method, call, request, target in (
        ("AugmentProfile", site.profiles.AugmentProfile,
         profiles_pb2.AugmentProfileRequest(name=PROFILE), PROFILE),
        ("PersonalizeProfile", site.profiles.PersonalizeProfile, whole, PROFILE),
        ("TrainAdapter", site.adapters.TrainAdapter, train, PROFILE),
        ("ExportBundle", site.bundles.ExportBundle, export, adapter),
        ("CreateBase", site.bases.CreateBase, new, "bases/new"),
        ("LowerBase", site.bases.LowerBase, lower, name),
    ):  # fmt: skip
        begun = call(request)
        end(site, begun)
        told += [(method, target), ("CancelOperation", begun.name)]
    site.operations.DeleteOperation(longrunning.DeleteOperationRequest(name=begun.name))
    report = site.parity.CreateParityReport(
        parity_pb2.CreateParityReportRequest(
            parent=USER,
            parity_report=parity_pb2.ParityReport(
                bundle=bundle, runtime=CANARY, passed=True,
                gates=[parity_pb2.ParityGate(metric="m", passed=True)],
            ),
        )
    )  # fmt: skip
    site.parity.DeleteParityReport(parity_pb2.DeleteParityReportRequest(name=report.name))
    site.bundles.DeleteBundle(bundles_pb2.DeleteBundleRequest(name=bundle))
    site.adapters.DeleteAdapter(adapters_pb2.DeleteAdapterRequest(name=adapter))
    site.profiles.DeleteProfile(profiles_pb2.DeleteProfileRequest(name=PROFILE))
    site.users.DeleteUser(users_pb2.DeleteUserRequest(name=USER))
    return [
        *told, ("DeleteOperation", begun.name), ("CreateParityReport", report.name),
        ("DeleteParityReport", report.name), ("DeleteBundle", bundle),
        ("DeleteAdapter", adapter), ("DeleteProfile", PROFILE), ("DeleteUser", USER),
    ]  # fmt: skip


def test_every_change_has_its_row_and_no_row_names_anybody(site):
    told = change_everything(site)
    assert {method for method, _ in told} == mutating()
    log, found = open_audit(site.parts.settings), rows(site)
    assert [(row.method, row.subject_hash) for row in found] == [
        (method, log.hash_of("local", name)) for method, name in told
    ]
    assert {row.caller_hash for row in found} == {log.hash_of("local", "local")}
    said = "".join(str(cell) for row in found for cell in row)
    secrets = ("ann", "LaMP", "local", "pocket", CANARY, *(n for _, n in told))
    assert not [secret for secret in secrets if secret in said]
    assert not [n for _, n in told if n.split("/")[-1] in said]
    site.work({"DeleteUser": erasure.pipeline(site.parts)})
    last = rows(site)[-1]
    assert (last.method, last.outcome) == ("DeleteUser", "ERASED")
    assert last.subject_hash == log.hash_of("local", USER)


def test_what_is_refused_or_repeated_leaves_no_row(site):
    site.add_user("ann", ("one", "two"))
    request = profiles_pb2.AugmentProfileRequest(name=PROFILE, request_id=str(uuid.uuid4()))
    batch = profiles_pb2.AppendItemsRequest(
        parent=PROFILE, request_id=str(uuid.uuid4()), items=[{"input": "a", "output": "b"}]
    )
    for _ in range(2):
        site.profiles.AppendItems(iter([batch]))
        site.profiles.AugmentProfile(request)
    for call in (
        lambda: site.profiles.AugmentProfile(profiles_pb2.AugmentProfileRequest(name=PROFILE)),
        lambda: site.profiles.DeleteProfile(profiles_pb2.DeleteProfileRequest(name=PROFILE)),
        lambda: site.profiles.CreateProfile(
            profiles_pb2.CreateProfileRequest(parent="users/bob", profile_id="LaMP_4")
        ),
    ):
        with pytest.raises(grpc.RpcError):
            call()
    methods = [row.method for row in rows(site)]
    once = ["CreateUser", "CreateProfile", "AppendItems"]
    assert methods == [*once, "AppendItems", "AugmentProfile"]
