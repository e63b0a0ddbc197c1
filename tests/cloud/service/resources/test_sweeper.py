"""The sweeper: retention, forgetting, and what crashes leave behind; on both databases."""

from __future__ import annotations

import time
import uuid

import grpc
import pytest
from google.longrunning import operations_pb2 as longrunning
from sqlalchemy import func, select, update

from cloud.service import erasure, operations
from cloud.service.state import now
from cloud.service.sweeper import Sweeper
from cloud.service.tables import Artifact, Item, Operation, ParityReport, Request, User
from protos.v1 import adapters_pb2, bases_pb2, parity_pb2, profiles_pb2, users_pb2

DAY = 86_400_000_000
Code = grpc.StatusCode


def shift(site, table, days: float, *conditions) -> None:
    """Make rows older than they are."""
    with site.parts.database.transaction() as connection:
        connection.execute(
            update(table).where(*conditions).values(create_time=table.create_time - int(days * DAY))
        )


def blobs_of(site, user: str) -> int:
    uid, _ = site._uids("local", user)
    return sum(1 for _ in site.parts.vault.blobs.keys(f"users/local/{uid}"))


def count(site, table) -> int:
    with site.parts.database.transaction(write=False) as connection:
        return connection.execute(select(func.count()).select_from(table)).scalar_one()


def test_what_is_older_than_the_consent_allows_is_deleted(site):
    base = site.add_base()
    for user in ("ann", "bob"):
        site.add_user(user, ("one", "two", "three"))
        bundle = f"users/{user}/bundles/{site.furnish(user, b'text', base)}"
        gates = [parity_pb2.ParityGate(metric="m", passed=True)]
        site.parity.CreateParityReport(
            parity_pb2.CreateParityReportRequest(
                parent=f"users/{user}",
                parity_report=parity_pb2.ParityReport(
                    bundle=bundle, runtime="phone", passed=True, gates=gates
                ),
            )
        )
    for table in (Item, Artifact, ParityReport):
        shift(site, table, 30.5)
    young = site.put("Adapter", {"adapter.bin": b"text" * 9, "n": b"2"}, "ann", base_uid=base)
    consent = users_pb2.Consent(name="users/ann/consent", retention_days=30, purpose="p")
    site.users.UpdateConsent(users_pb2.UpdateConsentRequest(consent=consent))
    assert Sweeper(site.parts).sweep()["expired"] == 3 + 3 + 1
    profile = site.profiles.GetProfile(
        profiles_pb2.GetProfileRequest(name="users/ann/profiles/LaMP_4")
    )
    assert profile.item_count == 0
    assert site.artifact_ids("ann", "Adapter") == [young]
    adapter = f"users/ann/adapters/{young}"
    chunks = site.adapters.DownloadAdapter(
        adapters_pb2.DownloadAdapterRequest(name=adapter, file="adapter.bin")
    )
    assert b"".join(c.data for c in chunks) == b"text" * 9  # shared with one that expired
    assert blobs_of(site, "ann") == 3
    assert blobs_of(site, "bob") == 6
    assert (count(site, Item), count(site, ParityReport)) == (3, 1)
    assert Sweeper(site.parts).sweep()["expired"] == 0


def test_old_operations_and_answers_are_forgotten(site):
    site.add_user("ann", ("a", "b"))
    request = profiles_pb2.AugmentProfileRequest(
        name="users/ann/profiles/LaMP_4", request_id=str(uuid.uuid4())
    )
    names = []
    for _ in range(2):
        names.append(site.profiles.AugmentProfile(request).name)
        site.operations.CancelOperation(longrunning.CancelOperationRequest(name=names[-1]))
        request.request_id = str(uuid.uuid4())
    with site.parts.database.transaction() as connection:
        first = Operation.uid == names[0].removeprefix("operations/")
        connection.execute(update(Operation).where(first).values(end_time=now() - 8 * DAY))
    shift(site, Request, 8)
    done = Sweeper(site.parts).sweep()
    assert (done["operations"], done["answers"]) == (1, 2)
    site.operations.GetOperation(longrunning.GetOperationRequest(name=names[1]))
    with pytest.raises(grpc.RpcError) as gone:
        site.operations.GetOperation(longrunning.GetOperationRequest(name=names[0]))
    assert gone.value.code() is Code.NOT_FOUND


def test_blobs_and_keys_that_nothing_names_are_found(site):
    site.add_user("ann", ("a",))
    site.furnish("ann", b"text", site.add_base())
    uid, _ = site._uids("local", "ann")
    vault = site.parts.vault
    orphan, stranger = f"users/local/{uid}/{'0' * 64}", str(uuid.uuid4())
    vault.blobs.put(orphan, [b"left by a crash"])
    vault.create("local", stranger)
    vault.blobs.put(f"users/local/{stranger}/{'1' * 64}", [b"written after an erasure"])
    kept = blobs_of(site, "ann") - 1
    half = str(uuid.uuid4())
    vault.create("local", half)
    sweeper = Sweeper(site.parts)
    done = sweeper.sweep()
    assert (done["blobs"], done["keys"]) == (2, 0)
    assert blobs_of(site, "ann") == kept
    assert {uid, half} == set(vault.owners("local"))  # half a user may still become one
    assert sweeper.sweep()["keys"] == 1
    assert set(vault.owners("local")) == {uid}


def test_files_of_bases_that_no_row_names_go_once_nothing_may_be_adding_some(site):
    blobs, orphan = site.parts.vault.blobs, f"shared/{'0' * 64}"
    base = site.add_base()
    site.put("BaseBundle", {"base.pte": b"lowered"}, base_uid=base)
    named = set(blobs.keys("shared"))
    blobs.put(orphan, [b"left by a lowering that was killed"])
    new = operations.New("local", None, "CreateBase", "bases/b", "b", bases_pb2.Base())
    with site.parts.database.transaction() as connection:
        operations.create(connection, new, site.parts.vault.shared)
    assert Sweeper(site.parts).sweep()["bases"] == 0
    with site.parts.database.transaction() as connection:
        operations.request_cancel(connection, new.uid)
    assert Sweeper(site.parts).sweep()["bases"] == 1
    assert named
    assert set(blobs.keys("shared")) == named


def test_nothing_is_swept_from_under_an_operation(site):
    site.add_user("ann", ("a", "b"))
    uid, _ = site._uids("local", "ann")
    site.put("Adapter", {"a": b"1"}, "ann", base_uid=site.add_base())
    with site.parts.database.transaction() as connection:
        connection.execute(update(Artifact).values(kind="Checkpoint"))
    site.parts.vault.blobs.put(f"users/local/{uid}/{'0' * 64}", [b"not yet in a row"])
    request = profiles_pb2.AugmentProfileRequest(name="users/ann/profiles/LaMP_4")
    name = site.profiles.AugmentProfile(request).name
    scratch = site.parts.settings.resolved_scratch_dir
    with site.parts.database.transaction() as connection:
        row = operations.begin(connection, name.removeprefix("operations/"), "w")
    folder = scratch / f"{row.uid}.{row.attempt}"
    folder.mkdir(parents=True)
    assert not any(Sweeper(site.parts).sweep().values())
    with site.parts.database.transaction() as connection:
        connection.execute(update(Operation).values(end_time=now(), conflict_key=None))
    done = Sweeper(site.parts).sweep()
    assert (done["leftovers"], done["blobs"], done["scratch"]) == (1, 3, 1)
    assert not folder.exists()


def test_an_erasure_that_ended_early_is_begun_again(site):
    site.add_user("ann", ("a",))
    name = site.users.DeleteUser(users_pb2.DeleteUserRequest(name="users/ann")).name
    with site.parts.database.transaction() as connection:  # as if every try had failed
        connection.execute(update(Operation).values(end_time=now(), conflict_key=None))
    done = Sweeper(site.parts).sweep()
    assert done["erasures"] == 1
    assert Sweeper(site.parts).sweep()["erasures"] == 0
    site.work({"DeleteUser": erasure.pipeline(site.parts)})
    assert count(site, User) == 0
    assert count(site, Operation) == 2
    assert name


def test_it_sweeps_by_itself(make_site):
    site = make_site(sweep_s=0.1)
    site.add_user("ann", ("a",))
    shift(site, Item, 400)
    with Sweeper(site.parts).running():
        deadline = time.monotonic() + 10
        while count(site, Item):
            assert time.monotonic() < deadline
            time.sleep(0.05)
