"""Erasure: nothing of the user is left, others keep everything, and a receipt proves it."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
import sqlalchemy
from google.longrunning import operations_pb2 as longrunning
from sqlalchemy import select

from cloud.service import artifacts_store, erasure, operations
from cloud.service.audit import server_key
from cloud.service.receipts import Signer, verify
from cloud.service.tables import Operation
from protos.errors import ArtifactError
from protos.v1 import operations_pb2, parity_pb2, profiles_pb2, users_pb2

Code = grpc.StatusCode
CANARY = "CANARY-7f3e"
WORKER = Path(__file__).with_name("erasing_worker.py")
PROFILE = "users/ann/profiles/LaMP_4"


def furnish(site, user: str, text: str, base: str) -> None:
    """A user with something of every kind."""
    site.add_user(user, (f"{text} one", f"{text} two"))
    bundle = f"users/{user}/bundles/{site.furnish(user, text.encode(), base)}"
    uid, profile = site._uids("local", user)
    space = site.parts.vault.space("local", uid)
    path = site.folder / uuid.uuid4().hex
    path.write_text(text)
    stored = space.store("state.pt", path, artifacts_store.digest_file(path))
    with site.parts.database.transaction() as connection:
        owner, facts = artifacts_store.Owner(uid, profile), artifacts_store.Facts([stored], {}, {})
        artifacts_store.put(connection, space, owner, "Checkpoint", str(uuid.uuid4()), facts)
    gates = [parity_pb2.ParityGate(metric=text, passed=True)]
    report = parity_pb2.ParityReport(bundle=bundle, runtime="phone", passed=True, gates=gates)
    site.parity.CreateParityReport(
        parity_pb2.CreateParityReportRequest(
            parent=f"users/{user}", parity_report=report, request_id=str(uuid.uuid4())
        )
    )


def delete(site, request_id: str = "") -> longrunning.Operation:
    return site.users.DeleteUser(
        users_pb2.DeleteUserRequest(name="users/ann", request_id=request_id)
    )


def receipt_of(site, name: str) -> users_pb2.ErasureReceipt:
    done = site.operations.GetOperation(longrunning.GetOperationRequest(name=name))
    assert done.done, done
    receipt = users_pb2.ErasureReceipt()
    assert done.response.Unpack(receipt), done.error
    return receipt


def work(site) -> None:
    site.work({"DeleteUser": erasure.pipeline(site.parts)})


def everything(site, folder: Path) -> bytes:
    """All bytes of the database, of the blob store and of the folder."""
    found = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    if site.parts.database.is_sqlite:
        url = sqlalchemy.make_url(site.parts.database.url)
        for path in Path(str(url.database)).parent.glob(Path(str(url.database)).name + "*"):
            found += path.read_bytes()
        return found
    with site.parts.database.engine.connect() as connection:
        tables = connection.exec_driver_sql(
            "SELECT schemaname, tablename FROM pg_tables WHERE schemaname IN ('public', 'dbos')"
        ).all()
        for schema, table in tables:
            rows = connection.exec_driver_sql(f'SELECT * FROM {schema}."{table}"').all()
            cells = (cell for row in rows for cell in row)
            found += b"\n".join(c if isinstance(c, bytes) else str(c).encode() for c in cells)
    return found


def bucket_bytes(url: str, endpoint: str) -> bytes:
    """All bytes of a bucket, old versions and unfinished uploads included, and all names."""
    import boto3

    client, name = boto3.client("s3", endpoint_url=endpoint), url.split("/")[2]
    versions = client.list_object_versions(Bucket=name).get("Versions", [])
    found = str(versions) + str(client.list_multipart_uploads(Bucket=name).get("Uploads"))
    bodies = [
        client.get_object(Bucket=name, Key=each["Key"], VersionId=each["VersionId"])["Body"].read()
        for each in versions
    ]
    return b"\n".join([found.encode(), *bodies])


def test_a_canary_is_found_before_and_not_after(make_site, database_url, tmp_path: Path):
    site = make_site(database_url=database_url, encrypt=False)
    _canary(site, lambda: everything(site, tmp_path / "data"))


def test_a_canary_is_found_before_and_not_after_on_s3(
    make_site, fresh_postgresql, bucket, s3, tmp_path: Path
):
    stores = {"blobs_url": bucket, "s3_endpoint_url": s3}
    site = make_site(database_url=fresh_postgresql, encrypt=False, **stores)
    _canary(site, lambda: everything(site, tmp_path / "data") + bucket_bytes(bucket, s3))


def test_on_s3_the_key_is_destroyed_with_everything_else(make_site, bucket, s3):
    site = make_site(blobs_url=bucket, s3_endpoint_url=s3)
    furnish(site, "ann", CANARY, site.add_base())
    uid, _ = site._uids("local", "ann")
    assert bucket_bytes(bucket, s3).count(uid.encode()) == 6 + 1
    name = delete(site).name
    work(site)
    assert receipt_of(site, name).counts["blobs"] == 6
    assert uid.encode() not in bucket_bytes(bucket, s3)


def _canary(site, everywhere: Callable[[], bytes]) -> None:
    base = site.add_base()
    furnish(site, "ann", CANARY, base)
    furnish(site, "bob", "bob's own text", base)
    site.profiles.AugmentProfile(profiles_pb2.AugmentProfileRequest(
        name=PROFILE, request_id=str(uuid.uuid4()),
        options=profiles_pb2.AugmentOptions(teacher=""),
    ))  # fmt: skip
    before = everywhere()
    assert before.count(CANARY.encode()) > 100
    assert before.count(b"bob's own text") > 100
    assert site.artifact_ids("ann", "Adapter")[0].encode() in before
    work_before = site._uids("local", "ann")
    delete(site)
    work(site)
    after = everywhere()
    assert CANARY.encode() not in after
    assert work_before[1].encode() not in after  # nor does anything name the profile's row
    assert after.count(b"bob's own text") > 100


def test_the_receipt_lists_what_was_removed_and_is_signed(site):
    base = site.add_base()
    furnish(site, "ann", CANARY, base)
    kinds = ("Dataset", "Adapter", "AdapterBundle")
    digests = sorted(d for kind in kinds for d in site.artifact_ids("ann", kind))
    uid, _ = site._uids("local", "ann")
    name = delete(site).name
    work(site)
    receipt = receipt_of(site, name)
    assert list(receipt.digests) == digests
    assert (receipt.user, receipt.uid) == ("users/ann", uid)
    assert dict(receipt.counts) == {
        "items": 2, "profiles": 1, "parityReports": 1, "jobs": 0, "datasets": 1, "adapters": 1,
        "bundles": 1, "checkpoints": 1, "blobs": 6,
    }  # fmt: skip
    key = Signer(server_key(site.parts.settings)).public_key
    assert verify(receipt, key)
    assert not verify(receipt, Signer(b"x" * 32).public_key)
    receipt.digests.pop()
    assert not verify(receipt, key)


def test_the_key_is_destroyed_and_the_user_gone_at_once(site):
    furnish(site, "ann", CANARY, site.add_base())
    uid, _ = site._uids("local", "ann")
    space = site.parts.vault.space("local", uid)
    sealed = space.seal(b"kept in a backup", "backup")
    request_id = str(uuid.uuid4())
    operation = delete(site, request_id)
    assert delete(site, request_id).name == operation.name
    for call in (
        lambda: site.users.GetUser(users_pb2.GetUserRequest(name="users/ann")),
        lambda: site.profiles.GetProfile(profiles_pb2.GetProfileRequest(name=PROFILE)),
        lambda: delete(site),
        lambda: delete(site, str(uuid.uuid4())),
    ):
        with pytest.raises(grpc.RpcError) as gone:
            call()
        assert gone.value.code() is Code.NOT_FOUND
    work(site)
    assert delete(site, request_id).done
    site.parts.vault._cache.clear()
    with pytest.raises(ArtifactError, match="destroyed"):
        site.parts.vault.space("local", uid)
    assert space.unseal(sealed, "backup")  # the key itself would still open it
    again = site.users.CreateUser(users_pb2.CreateUserRequest(user_id="ann"))
    assert again.uid != uid


def test_a_repeated_delete_gets_the_same_operation_across_a_restart(make_site, database_url):
    first = make_site(database_url=database_url)
    furnish(first, "ann", CANARY, first.add_base())
    request_id = str(uuid.uuid4())
    name = delete(first, request_id).name
    second = make_site(database_url=database_url)
    assert delete(second, request_id).name == name
    work(second)
    assert delete(make_site(database_url=database_url), request_id).done


def test_stages_that_run_twice_give_the_same_receipt(site):
    furnish(site, "ann", CANARY, site.add_base())
    name = delete(site).name
    pipeline = erasure.pipeline(site.parts)
    for stage in (0, 1, 2):
        site_stage = pipeline.stages[stage]
        once = site_stage.run
        object.__setattr__(site_stage, "run", lambda job, once=once: (once(job), once(job))[0])
    site.work({"DeleteUser": pipeline})
    receipt = receipt_of(site, name)
    assert len(receipt.digests) == 3
    assert receipt.counts["items"] == 2


def test_an_erasure_cannot_be_cancelled(site):
    furnish(site, "ann", CANARY, site.add_base())
    name = delete(site).name
    site.operations.CancelOperation(longrunning.CancelOperationRequest(name=name))
    work(site)
    assert receipt_of(site, name).counts["items"] == 2


def test_who_does_not_stop_is_fenced_off(make_site, database_url):
    site = make_site(database_url=database_url, worker_timeout_s=0.3)
    furnish(site, "ann", CANARY, site.add_base())
    uid, _ = site._uids("local", "ann")
    request = profiles_pb2.AugmentProfileRequest(name=PROFILE)
    new = operations.New("local", uid, "AugmentProfile", PROFILE, uid, request)
    with site.parts.database.transaction() as connection:
        operations.create(connection, new, site.parts.vault.space("local", uid))
        held = operations.begin(connection, new.uid, "a worker that hangs")
    delete(site)
    with site.parts.database.transaction(write=False) as connection:
        erasing = connection.execute(
            select(Operation.uid).where(Operation.method == "DeleteUser")
        ).scalar_one()
    import threading

    from cloud.service.runner import Runner

    parts = site.parts
    pipelines = {"DeleteUser": erasure.pipeline(parts)}
    Runner(parts.database, parts.vault, parts.settings, pipelines, threading.Event()).operate(
        erasing, "test", lambda name, run: run()
    )
    assert receipt_of(site, f"operations/{erasing}").counts["jobs"] == 1
    assert held is not None
    with site.parts.database.transaction() as connection:
        assert not operations.is_wanted(connection, new.uid, held.attempt)
        late = profiles_pb2.AugmentProfileResponse()
        shared = site.parts.vault.shared
        assert not operations.finish(connection, new.uid, held.attempt, shared, late)


@contextlib.contextmanager
def worker(database_url: str, data: Path, *more: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, str(WORKER), database_url, str(data), *more],
        env={"PYTHONPATH": str(Path(__file__).parents[4])},
    )
    yield process
    process.kill()
    process.wait()


def waited(site, name: str, seconds: int) -> longrunning.Operation:
    wait = longrunning.WaitOperationRequest(name=name)
    wait.timeout.FromSeconds(seconds)
    return site.operations.WaitOperation(wait)


@pytest.mark.slow
def test_a_worker_killed_in_the_middle_leaves_the_rest_to_another(
    make_site, database_url, tmp_path: Path
):
    site = make_site(database_url=database_url, encrypt=True)
    furnish(site, "ann", CANARY, site.add_base())
    uid, _ = site._uids("local", "ann")
    with worker(database_url, tmp_path / "data", "die") as first:
        name = delete(site).name
        assert first.wait(timeout=40) == -9
    assert list(site.parts.vault.owners("local")) == []
    assert sum(1 for _ in site.parts.vault.blobs.keys(f"users/local/{uid}")) == 6
    with worker(database_url, tmp_path / "data"):
        assert waited(site, name, 40).HasField("response")
    receipt = receipt_of(site, name)
    assert (len(receipt.digests), receipt.counts["blobs"], receipt.counts["items"]) == (3, 6, 2)
    assert sum(1 for _ in site.parts.vault.blobs.keys(f"users/local/{uid}")) == 0
    assert uid.encode() not in b"".join(
        path.read_bytes() for path in (tmp_path / "data" / "blobs").rglob("*") if path.is_file()
    )


@pytest.mark.slow
def test_a_running_job_stops_and_a_worker_erases(site, database_url, tmp_path: Path):
    """Through real processes: the job sleeps for a minute, the erasure does not wait for it."""
    site.add_user("ann", (CANARY, "two"))
    with worker(database_url, tmp_path / "data") as process:
        job = site.profiles.AugmentProfile(profiles_pb2.AugmentProfileRequest(name=PROFILE)).name
        metadata = operations_pb2.OperationMetadata()
        deadline = time.monotonic() + 40
        while metadata.stage != operations_pb2.STAGE_AUGMENT or not metadata.progress:
            assert time.monotonic() < deadline
            time.sleep(0.1)
            found = site.operations.GetOperation(longrunning.GetOperationRequest(name=job))
            found.metadata.Unpack(metadata)
        assert list((tmp_path / "data" / "scratch").rglob("readable"))
        started = time.monotonic()
        done = waited(site, delete(site).name, 30)
        seconds = time.monotonic() - started
        print(f"erased with a running job in {seconds:.1f} s")
        assert done.HasField("response"), done
        assert seconds < 15
        assert receipt_of(site, done.name).counts["jobs"] == 1
        assert not list((tmp_path / "data" / "scratch").rglob("readable"))
        with pytest.raises(grpc.RpcError) as gone:
            site.operations.GetOperation(longrunning.GetOperationRequest(name=job))
        assert gone.value.code() is Code.NOT_FOUND
        assert process.poll() is None
