"""A site: a running server, a channel to it, and its parts, to put artifacts where a job would."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.longrunning import operations_pb2_grpc as longrunning_grpc
from sqlalchemy import insert, select

from cloud.service import artifacts_store
from cloud.service.artifacts_store import Owner
from cloud.service.parts import Parts, open_parts
from cloud.service.runner import Runner
from cloud.service.settings import Settings
from cloud.service.state import new_uid, now
from cloud.service.tables import Base, Operation, Profile, User
from protos import artifacts
from protos.v1 import adapters_pb2_grpc as adapters
from protos.v1 import bases_pb2_grpc as bases
from protos.v1 import bundles_pb2_grpc as bundles
from protos.v1 import parity_pb2_grpc as parity
from protos.v1 import profiles_pb2, users_pb2
from protos.v1 import profiles_pb2_grpc as profiles
from protos.v1 import users_pb2_grpc as users

RECIPE = "executorch-xnnpack-8da4w"


class Site:
    """What a test needs of one server; `token` says as whom it calls."""

    def __init__(self, parts: Parts, channel: grpc.Channel, folder: Path) -> None:
        self.parts, self.channel, self.folder = parts, channel, folder
        self.users = users.UserServiceStub(channel)
        self.profiles = profiles.ProfileServiceStub(channel)
        self.adapters = adapters.AdapterServiceStub(channel)
        self.bundles = bundles.BundleServiceStub(channel)
        self.bases = bases.BaseServiceStub(channel)
        self.parity = parity.ParityServiceStub(channel)
        self.operations = longrunning_grpc.OperationsStub(channel)

    def add_user(self, user_id: str, texts: tuple[str, ...] = (), **call: Any) -> str:
        """A user with a profile and items; returns the user's uid."""
        made = self.users.CreateUser(users_pb2.CreateUserRequest(user_id=user_id), **call)
        name = self.profiles.CreateProfile(
            profiles_pb2.CreateProfileRequest(parent=made.name, profile_id="LaMP_4"), **call
        ).name
        items = [profiles_pb2.Item(input=text, output=f"{text} title") for text in texts]
        batch = profiles_pb2.AppendItemsRequest(parent=name, items=items)
        if items:
            self.profiles.AppendItems(iter([batch]), **call)
        return made.uid

    def add_base(self, base_id: str = "pocket", tenant: str = "local") -> str:
        row = {
            "uid": new_uid(), "tenant": tenant, "base_id": base_id, "source": "pocket",
            "digest": "d" * 64, "architecture": "Llama", "files": b"[]", "create_time": now(),
        }  # fmt: skip
        with self.parts.database.transaction() as connection:
            connection.execute(insert(Base).values(**row))
        return str(row["uid"])

    def put(
        self, kind: str, content: Mapping[str, bytes], user_id: str = "", tenant: str = "local",
        parents: Mapping[str, str] | None = None, **columns: Any,
    ) -> str:  # fmt: skip
        """Store an artifact as the publish stage does; returns its id."""
        path = self.folder / uuid.uuid4().hex
        with artifacts.create(path, kind, parents or {}, {"n": str(path)}) as draft:
            for name, data in content.items():
                (draft.path / name).parent.mkdir(parents=True, exist_ok=True)
                (draft.path / name).write_bytes(data)
        made = artifacts.open_artifact(path)
        owner, space = Owner(None, **columns), self.parts.vault.shared
        if user_id:
            user_uid, profile_uid = self._uids(tenant, user_id)
            space = self.parts.vault.space(tenant, user_uid)
            owner = Owner(user_uid, profile_uid, **columns)
        facts = artifacts_store.store(space, made)
        with self.parts.database.transaction() as connection:
            artifacts_store.put(connection, space, owner, kind, made.id, facts)
        return made.id

    def furnish(self, user_id: str, text: bytes, base_uid: str, tenant: str = "local") -> str:
        """One dataset, adapter and bundle; returns the bundle's id."""
        mine = {"user_id": user_id, "tenant": tenant, "base_uid": base_uid}
        dataset = self.put("Dataset", {"train.jsonl": text}, user_id, tenant)
        adapter = self.put("Adapter", {"adapter.bin": text * 9}, parent_id=dataset, **mine)
        return self.put(
            "AdapterBundle", {"adapter.ptd": text * 99, "goldens/one.json": text},
            parents={"base_bundle": "b" * 64}, parent_id=adapter, recipe=RECIPE, **mine,
        )  # fmt: skip

    def artifact_ids(self, user_id: str, kind: str, tenant: str = "local") -> list[str]:
        table = artifacts_store.Artifacts
        uid, _ = self._uids(tenant, user_id)
        mine = select(table.artifact_id).where(table.user_uid == uid, table.kind == kind)
        with self.parts.database.transaction(write=False) as connection:
            return list(connection.execute(mine).scalars())

    def work(self, pipelines: Mapping[str, Any]) -> None:
        """Work off every open operation, as a worker does, in this thread."""
        import threading

        parts = self.parts
        runner = Runner(parts.database, parts.vault, parts.settings, pipelines, threading.Event())
        is_open = select(Operation.uid).where(Operation.end_time.is_(None))
        with parts.database.transaction(write=False) as connection:
            uids = list(connection.execute(is_open).scalars())
        for uid in uids:
            runner.operate(uid, "test", lambda name, run: run())

    def _uids(self, tenant: str, user_id: str) -> tuple[str, str]:
        same = (User.tenant == tenant) & (User.user_id == user_id)
        wanted = select(User.uid, Profile.uid).join(Profile, Profile.user_uid == User.uid)
        with self.parts.database.transaction(write=False) as connection:
            found = connection.execute(wanted.where(same)).one()
        return found[0], found[1]


@pytest.fixture
def make_site(serve, tmp_path: Path) -> Iterator[Any]:
    """Start a server with these settings, and open its parts beside it."""
    import contextlib

    with contextlib.ExitStack() as stack:

        def make(**given: Any) -> Site:
            address = serve(**given)
            ours = {"data_dir": tmp_path / "data", "port": 0, "worker": False}
            parts = stack.enter_context(open_parts(Settings(**{**ours, **given})))
            channel = stack.enter_context(grpc.insecure_channel(address))
            return Site(parts, channel, tmp_path / "made")

        (tmp_path / "made").mkdir()
        yield make


@pytest.fixture
def site(make_site, database_url: str) -> Site:
    """A site on each of the databases."""
    return make_site(database_url=database_url)
