"""The real pipeline with the bundled models: a server, a worker process, the generated stubs."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import grpc
import pytest
from google.longrunning import operations_pb2 as longrunning
from google.longrunning import operations_pb2_grpc as longrunning_grpc
from google.rpc import error_details_pb2
from sqlalchemy import select

from cloud.service import artifacts_store
from cloud.service.crypto import make_root_key
from cloud.service.settings import Settings
from cloud.service.state import Database
from cloud.service.tables import Artifact
from cloud.service.vault import open_vault
from cloud.train import TrainConfig, train
from protos.artifacts import Artifact as StageArtifact
from protos.artifacts import open_artifact
from protos.base_model import open_base
from protos.v1 import (
    adapters_pb2,
    adapters_pb2_grpc,
    bases_pb2,
    bases_pb2_grpc,
    bundles_pb2,
    bundles_pb2_grpc,
    operations_pb2,
    parity_pb2,
    parity_pb2_grpc,
    profiles_pb2,
    profiles_pb2_grpc,
    users_pb2,
    users_pb2_grpc,
)

T = TypeVar("T")
ROOT = Path(__file__).parents[3]
WORKER = Path(__file__).with_name("real_worker.py")
QUESTIONS = ROOT / "cloud/pocket/users/LaMP_4/dev_questions.json"
POCKET = ROOT / "cloud/pocket/models/base"
RECIPE = "executorch-xnnpack-8da4w"
_SMALL_STEPS = {"batch_size": 1, "learning_rate": 1e-5}
"""So that the validation loss keeps falling."""
_SERVED = {**_SMALL_STEPS, "patience": 3}  # the service's patience with the bundled base


class Service:
    """A server, workers that come and go, and the stubs."""

    def __init__(self, address: str, database_url: str, data: Path) -> None:
        self.database_url, self.data = database_url, data
        self.workers: list[subprocess.Popen[bytes]] = []
        self.channel = grpc.insecure_channel(address)
        self.users = users_pb2_grpc.UserServiceStub(self.channel)
        self.profiles = profiles_pb2_grpc.ProfileServiceStub(self.channel)
        self.adapters = adapters_pb2_grpc.AdapterServiceStub(self.channel)
        self.bundles = bundles_pb2_grpc.BundleServiceStub(self.channel)
        self.bases = bases_pb2_grpc.BaseServiceStub(self.channel)
        self.parity = parity_pb2_grpc.ParityServiceStub(self.channel)
        self.operations = longrunning_grpc.OperationsStub(self.channel)

    def settings(self, **given: object) -> dict[str, object]:
        ours = {"data_dir": str(self.data), "database_url": self.database_url, "threads": 1,
                "worker_timeout_s": 3, "checkpoint_s": 0.5, "context_length": 128}  # fmt: skip
        return {**ours, **given}

    def worker(self, **given: object) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, str(WORKER), json.dumps(self.settings(**given))],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
                 "OMP_WAIT_POLICY": "PASSIVE"},
        )  # fmt: skip
        self.workers.append(process)
        return process

    def profile(self, user: str, items: int = 12, index: int = 0) -> str:
        """A user with items of one of the bundled users, and two words that are in no other's."""
        self.users.CreateUser(users_pb2.CreateUserRequest(user_id=user))
        name = self.profiles.CreateProfile(
            profiles_pb2.CreateProfileRequest(parent=f"users/{user}", profile_id="LaMP_4")
        ).name
        rows = json.loads(QUESTIONS.read_text("utf-8"))[index]["profile"][:items]
        batch = [
            profiles_pb2.Item(item_id=row["id"], input=f"{row['text']} Canary {user}.",
                              output=row["title"], date=row.get("date", "")[:10])
            for row in rows
        ]  # fmt: skip
        self.profiles.AppendItems(
            iter([profiles_pb2.AppendItemsRequest(parent=name, request_id=str(uuid.uuid4()),
                                                  items=batch)])
        )  # fmt: skip
        return name

    def base(self, source: str = "pocket") -> str:
        request = bases_pb2.CreateBaseRequest(base_id=source, base={"source": source})
        self.done(self.bases.CreateBase(request))
        return f"bases/{source}"

    def personalize(self, name: str, base: str) -> longrunning.Operation:
        return self.profiles.PersonalizeProfile(
            profiles_pb2.PersonalizeProfileRequest(
                name=name, base=base, recipe=RECIPE,
                augment={"per_real": 1.0}, train={"epochs": 6},
            )
        )  # fmt: skip

    def train(self, user: str, epochs: int) -> longrunning.Operation:
        """A slow training: small steps, so that the validation loss keeps falling."""
        base, name = self.base(), self.profile(user)
        request = profiles_pb2.AugmentProfileRequest(name=name, options={"per_real": 1.0})
        self.done(self.profiles.AugmentProfile(request))
        options = {"epochs": epochs, "batch_size": 1, "learning_rate": 1e-5}
        return self.adapters.TrainAdapter(
            adapters_pb2.TrainAdapterRequest(
                parent=f"users/{user}", profile=name, base=base, options=options
            )
        )

    def trainings(self, **epochs: int) -> list[longrunning.Operation]:
        """A user each, with a dataset; then the trainings of all of them, one after another."""
        base = self.base()
        for number, user in enumerate(epochs):
            request = profiles_pb2.AugmentProfileRequest(
                name=self.profile(user, index=number), options={"per_real": 0.1}
            )
            self.done(self.profiles.AugmentProfile(request))
        return [
            self.adapters.TrainAdapter(
                adapters_pb2.TrainAdapterRequest(
                    parent=f"users/{user}", profile=f"users/{user}/profiles/LaMP_4", base=base,
                    options={**_SMALL_STEPS, "epochs": count},
                )
            )
            for user, count in epochs.items()
        ]  # fmt: skip

    def kept(self, user: str, kind: str) -> StageArtifact:
        """The newest artifact of this kind that the user has."""
        vault, database = open_vault(Settings(**self.settings())), Database(self.database_url)  # type: ignore[arg-type]
        uid = self.users.GetUser(users_pb2.GetUserRequest(name=f"users/{user}")).uid
        wanted = artifacts_store.rows().where(Artifact.user_uid == uid, Artifact.kind == kind)
        with database.transaction(write=False) as connection:
            row = connection.execute(wanted).first()
        database.close()
        folder = self.data.parent / "kept" / user / kind
        artifacts_store.fetch(vault.space("local", uid), row, folder)
        return open_artifact(folder, kind)

    def everything(self, user: str, *artifacts: StageArtifact) -> bytes:
        """All that the service has of a user, opened: items, operations, files of artifacts."""
        parent = f"users/{user}"
        profile = f"{parent}/profiles/LaMP_4"
        items = self.profiles.ListItems(profiles_pb2.ListItemsRequest(parent=profile))
        operations = self.operations.ListOperations(longrunning.ListOperationsRequest())
        own = [each for each in operations.operations if parent in str(self.metadata(each))]
        assert own
        files = [path.read_bytes() for artifact in artifacts for path in artifact.path.iterdir()]
        return b"".join([items.SerializeToString(), *(o.SerializeToString() for o in own), *files])

    def by_stages(self, profile: str, base: str) -> tuple[bundles_pb2.Bundle, Mapping[str, float]]:
        """The same way as `personalize`, call by call; gives what the last one answered."""
        user = profile.split("/profiles")[0]
        augment = profiles_pb2.AugmentProfileRequest(name=profile, options={"per_real": 1.0})
        dataset = profiles_pb2.AugmentProfileResponse()
        self.done(self.profiles.AugmentProfile(augment)).response.Unpack(dataset)
        assert dataset.synthetic_count > 0
        train = adapters_pb2.TrainAdapterRequest(
            parent=user, profile=profile, base=base, options={"epochs": 6}
        )
        adapter = adapters_pb2.Adapter()
        self.done(self.adapters.TrainAdapter(train)).response.Unpack(adapter)
        assert adapter.dataset == dataset.dataset
        export = bundles_pb2.ExportBundleRequest(parent=user, adapter=adapter.name, recipe=RECIPE)
        ended = self.done(self.bundles.ExportBundle(export))
        bundle = bundles_pb2.Bundle()
        assert ended.response.Unpack(bundle)
        assert bundle.adapter == adapter.name
        return bundle, self.metadata(ended).counters

    def get(self, operation: longrunning.Operation) -> longrunning.Operation:
        return self.operations.GetOperation(longrunning.GetOperationRequest(name=operation.name))

    def done(self, operation: longrunning.Operation, seconds: float = 300) -> longrunning.Operation:
        deadline = time.monotonic() + seconds
        while not operation.done:
            assert time.monotonic() < deadline, self.metadata(operation)
            request = longrunning.WaitOperationRequest(name=operation.name)
            request.timeout.FromSeconds(5)
            operation = self.operations.WaitOperation(request)
        assert not operation.HasField("error"), operation.error
        return operation

    def metadata(self, operation: longrunning.Operation) -> operations_pb2.OperationMetadata:
        found = operations_pb2.OperationMetadata()
        assert self.get(operation).metadata.Unpack(found)
        return found

    def until(self, what: Callable[[], T], seconds: float = 90) -> T:
        """Wait for a truth, and give it."""
        deadline = time.monotonic() + seconds
        while not (found := what()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return found

    def close(self) -> None:
        self.channel.close()
        for process in self.workers:
            process.kill()
            process.wait()


@pytest.fixture
def service(serve, tmp_path: Path) -> Iterator[Service]:
    """On SQLite, with one worker."""
    url = f"sqlite:///{tmp_path / 'state.db'}"
    found = Service(serve(database_url=url, context_length=128), url, tmp_path / "data")
    found.worker()
    yield found
    found.close()


@pytest.mark.slow
def test_a_user_is_personalized_and_the_base_lowered_once(service: Service, tmp_path: Path):
    base = service.base()
    ann, bob = service.profile("ann"), service.profile("bob", index=1)
    operation = service.done(service.personalize(ann, base))
    result = profiles_pb2.PersonalizeProfileResponse()
    assert operation.response.Unpack(result)
    assert result.parity_report.passed
    assert result.parity_report.runtime == "reference"
    assert result.bundle.adapter == result.adapter.name
    assert result.adapter.base == base
    measured = result.adapter.measured
    assert measured["valid_loss_after"] < measured["valid_loss_before"]

    before = service.metadata(operation)
    assert (before.stage, before.progress) == (operations_pb2.STAGE_DONE, 1.0)
    assert {"real", "synthetic", "steps", "lowering_seconds", "gates"} <= set(before.counters)

    exported, counters = service.by_stages(bob, base)
    assert "lowering_seconds" not in counters
    found = service.bases.GetBase(bases_pb2.GetBaseRequest(name=base))
    assert [each.id for each in found.base_bundles] == [result.bundle.base_bundle]
    assert exported.base_bundle == result.bundle.base_bundle

    stored = service.bundles.GetBundle(bundles_pb2.GetBundleRequest(name=result.bundle.name))
    assert stored == result.bundle
    reports = service.parity.ListParityReports(
        parity_pb2.ListParityReportsRequest(parent="users/ann")
    )
    assert list(reports.parity_reports) == [result.parity_report]
    _opens(service, result.bundle, tmp_path / "bundle")
    assert not any((service.data / "scratch").iterdir())


@pytest.mark.slow
def test_what_cannot_be_exported_is_refused_before_a_teacher_is_asked(serve, chat, tmp_path: Path):
    """A family, a recipe and a context that a base cannot be lowered with, in this order."""
    odd = shutil.copytree(POCKET, tmp_path / "odd")
    config = json.loads((odd / "config.json").read_text("utf-8"))
    config["architectures"] = ["OddForCausalLM"]
    (odd / "config.json").write_text(json.dumps(config), "utf-8")
    given = {
        "base_sources": {"odd": str(odd)}, "teachers": {"counted": chat.spec},
        "recipes": [RECIPE, "executorch-coreml"], "context_length": 63,
    }  # fmt: skip
    url = f"sqlite:///{tmp_path / 'state.db'}"
    service = Service(serve(database_url=url, **given), url, tmp_path / "data")
    try:
        service.worker(**given)
        bases, name = [service.base("pocket"), service.base("odd")], service.profile("ann")
        state, argument = grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.INVALID_ARGUMENT
        for base, recipe, code, reason, says in (
            (bases[1], RECIPE, state, "UNSUPPORTED", "architecture OddForCausalLM"),
            (
                bases[0],
                "executorch-coreml",
                state,
                "UNSUPPORTED",
                "no base apart from its adapters",
            ),
            (bases[0], RECIPE, argument, "INPUT", "context length 63 is too short"),
        ):
            request = profiles_pb2.PersonalizeProfileRequest(
                name=name, base=base, recipe=recipe, augment={"teacher": "counted"}
            )
            operation = service.profiles.PersonalizeProfile(request)
            service.until(lambda each=operation: service.get(each).done)
            error = service.get(operation).error
            info = error_details_pb2.ErrorInfo()
            assert error.details[0].Unpack(info)
            assert (error.code, info.reason) == (code.value[0], reason)
            assert error.message.startswith("stage prepare: ")
            assert says in error.message
            ended = service.metadata(operation)
            assert (ended.stage, dict(ended.counters)) == (operations_pb2.STAGE_PREPARE, {})
        assert not chat.bodies
        database = Database(url)
        with database.transaction(write=False) as connection:
            assert not connection.execute(select(Artifact.kind)).all()
        database.close()
        assert not any((service.data / "scratch").iterdir())
    finally:
        service.close()


def _opens(service: Service, bundle: bundles_pb2.Bundle, folder: Path) -> None:
    """What is stored is a whole AdapterBundle, byte by byte."""
    artifact_id = bundle.name.split("/")[-1]
    vault = open_vault(Settings(**service.settings()))  # type: ignore[arg-type]
    database = Database(service.database_url)
    user = service.users.GetUser(users_pb2.GetUserRequest(name="users/ann"))
    with database.transaction(write=False) as connection:
        row = artifacts_store.find(connection, user.uid, "AdapterBundle", artifact_id)
    database.close()
    artifacts_store.fetch(vault.space("local", user.uid), row, folder)
    opened = open_artifact(folder, "AdapterBundle")
    assert opened.id == artifact_id
    assert {file.path for file in bundle.files} == {*opened.manifest.files, "manifest.json"}


@pytest.mark.slow
def test_training_goes_on_from_its_checkpoint_on_another_host(
    serve, fresh_postgresql: str, bucket: str, s3: str, tmp_path: Path
):
    """Two workers that share PostgreSQL and S3, and no folder."""
    root_key = tmp_path / "root.key"
    make_root_key(root_key)
    shared = {"blobs_url": bucket, "s3_endpoint_url": s3, "root_key_file": str(root_key)}
    address = serve(database_url=fresh_postgresql, **shared)
    service = Service(address, fresh_postgresql, tmp_path)
    database = Database(fresh_postgresql)
    try:
        first = service.worker(**shared, data_dir=str(tmp_path / "host1"))
        operation = service.train("ann", epochs=12)
        service.until(lambda: _epoch(service, operation) > 2 and _checkpoints(database))
        first.send_signal(signal.SIGKILL)
        first.wait()
        service.worker(**shared, data_dir=str(tmp_path / "host2"))
        resumed_in = service.until(lambda: _epoch(service, operation, attempt=2))
        assert resumed_in > 1, "it did not begin with the first epoch again"
        service.done(operation)
        assert service.metadata(operation).attempt == 2
        assert not _checkpoints(database)
        assert not any((tmp_path / "host2" / "scratch").iterdir())
    finally:
        service.close()
        database.close()


@pytest.mark.slow
def test_cancel_ends_a_real_training_within_a_second_and_leaves_nothing(service: Service):
    operation = service.train("ann", epochs=100)
    service.until(lambda: _epoch(service, operation))
    started = time.monotonic()
    service.operations.CancelOperation(longrunning.CancelOperationRequest(name=operation.name))
    service.until(lambda: service.get(operation).done)
    took = time.monotonic() - started
    assert service.get(operation).error.code == grpc.StatusCode.CANCELLED.value[0]
    assert took < 1
    assert not any((service.data / "scratch").iterdir())
    database = Database(service.database_url)
    assert not _checkpoints(database)
    database.close()


@pytest.mark.slow
def test_waiting_trainings_share_a_child_and_each_is_as_if_alone(serve, tmp_path: Path):
    """Of a worker's own accord. One of three is cancelled meanwhile; the others' adapters are
    those of training alone."""
    url = f"sqlite:///{tmp_path / 'state.db'}"
    service = Service(serve(database_url=url, context_length=128), url, tmp_path / "data")
    try:
        service.worker()
        ann, bob, cid = service.trainings(ann=3, bob=100, cid=2)
        service.until(lambda: _epoch(service, bob))
        service.operations.CancelOperation(longrunning.CancelOperationRequest(name=bob.name))
        service.until(lambda: service.get(bob).done)
        assert service.get(bob).error.code == grpc.StatusCode.CANCELLED.value[0]
        folders = [path.name.partition(".")[0] for path in (service.data / "scratch").iterdir()]
        assert sorted(f"operations/{uid}" for uid in folders) == sorted([ann.name, cid.name])
        for operation, user, epochs in ((ann, "ann", 3), (cid, "cid", 2)):
            done = service.done(operation)
            assert service.metadata(done).attempt == 1
            made = adapters_pb2.Adapter()
            assert done.response.Unpack(made)
            kept, dataset = service.kept(user, "Adapter"), service.kept(user, "Dataset")
            assert kept.manifest.measured["users"] == 3  # all in one child, in one round
            assert kept.manifest.parents["dataset"] == dataset.id
            config = TrainConfig(**{**_SERVED, "epochs": epochs})
            alone = train(dataset, open_base(str(POCKET)), tmp_path / user, config, 1)
            found, wanted = kept.manifest.measured, alone.manifest.measured
            assert found["epochs"] == wanted["epochs"]
            for loss in ("valid_loss_before", "train_loss_after", "valid_loss_after"):
                assert found[loss] == pytest.approx(wanted[loss], rel=0.02)
            held, others = service.everything(user, kept, dataset), {"ann", "bob", "cid"} - {user}
            assert f"Canary {user}.".encode() in held
            assert not any(f"Canary {other}.".encode() in held for other in others)
        stored = b"".join(p.read_bytes() for p in tmp_path.glob("state.db*"))
        assert b"Canary" not in stored, "and nothing of anybody is in a row in the clear"
        assert not any((service.data / "scratch").iterdir())
    finally:
        service.close()


@pytest.mark.slow
def test_users_who_are_personalized_are_trained_together(service: Service):
    """Each has items to be written first, one user at a time."""
    base = service.base()
    names = [service.profile(user, 6, index) for index, user in enumerate(("ann", "bob", "cid"))]
    for operation in [service.personalize(name, base) for name in names]:
        service.until(lambda each=operation: _is_trained(service, each), 300)
    for user in ("ann", "bob", "cid"):
        assert service.kept(user, "Adapter").manifest.measured["users"] == 3


@pytest.mark.slow
def test_a_worker_killed_in_a_common_training_loses_nobody(serve, tmp_path: Path):
    """Each goes on from its own checkpoint; who was through before is not trained again."""
    url = f"sqlite:///{tmp_path / 'state.db'}"
    service = Service(serve(database_url=url, context_length=128), url, tmp_path / "data")
    database = Database(url)
    try:
        first = service.worker()
        short, ann, bob = service.trainings(short=1, ann=16, bob=20)
        service.done(short)
        service.until(
            lambda: (
                min(_epoch(service, ann), _epoch(service, bob)) > 2 and _checkpoints(database) == 2
            )
        )
        first.send_signal(signal.SIGKILL)
        first.wait()
        service.worker()
        for operation in (ann, bob):
            assert service.until(lambda each=operation: _epoch(service, each, attempt=2)) > 1
        for operation in (ann, bob):
            service.done(operation)
            assert service.metadata(operation).attempt == 2
        assert service.metadata(short).attempt == 1
        assert not _checkpoints(database)
        assert not any((service.data / "scratch").iterdir())
    finally:
        service.close()
        database.close()


def _is_trained(service: Service, operation: longrunning.Operation) -> bool:
    return service.metadata(operation).stage >= operations_pb2.STAGE_LOWER


def _epoch(service: Service, operation: longrunning.Operation, attempt: int = 1) -> int:
    """The epoch that a training says it is in; 0 while it says nothing in this attempt."""
    told = service.metadata(operation)
    found = re.match(r"epoch (\d+)/", told.message) if told.attempt == attempt else None
    return int(found[1]) if found else 0


def _checkpoints(database: Database) -> int:
    with database.transaction(write=False) as connection:
        kept = select(Artifact.uid).where(Artifact.kind == "Checkpoint")
        return len(connection.execute(kept).all())
