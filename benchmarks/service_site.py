"""What the service's benchmark measures: users, artifacts and files, put where a job would.

In: an empty folder. Out: a running service with something in it, and bare servers that answer and
stream the same. What the API can make without a worker is made through it, artifacts through the
service's own store.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import NamedTuple

import grpc
from sqlalchemy import insert

from benchmarks.service_processes import Server, bare, pocketune, postgresql
from cloud.service import artifacts_store
from cloud.service.artifacts_store import Owner
from cloud.service.parts import Parts, open_parts
from cloud.service.settings import Settings
from cloud.service.state import new_uid, now
from cloud.service.tables import Base
from protos import artifacts
from protos.v1 import (
    adapters_pb2,
    adapters_pb2_grpc,
    profiles_pb2,
    profiles_pb2_grpc,
    users_pb2,
    users_pb2_grpc,
)

MIB = 1 << 20
USER, FILE = "users/ann", "adapter.ptd"


def databases(work: Path) -> Generator[tuple[str, str]]:
    """Name and URL of an empty SQLite, and of an empty PostgreSQL where it is installed."""
    yield "sqlite", f"sqlite:///{work / 'state.db'}"
    with postgresql() as url:
        if url:
            yield "postgresql", url
        else:
            print("PostgreSQL is not installed: SQLite only")


class Site(NamedTuple):
    """A service and the bare servers like it. gets: the name that each Get method is asked for.

    content: what the file of the bundle holds.
    """

    server: Server
    bare: Server
    gets: dict[str, str]
    bundle: str
    content: Path


@contextlib.contextmanager
def furnished(work: Path, file_mib: int) -> Generator[Site]:
    """A service on SQLite with one user, who has a profile, an adapter and a bundle."""
    work.mkdir(parents=True, exist_ok=True)
    content = work / "content"
    content.write_bytes(random.Random(file_mib).randbytes(file_mib * MIB))
    data = work / "data"
    with (
        pocketune(data) as server,
        open_parts(Settings(data_dir=data, worker=False)) as parts,
    ):
        uid = make_user(server)
        base_uid = _add_base(parts)
        made = _make_artifact(work / "made", content)
        space = parts.vault.space("local", uid)
        facts = artifacts_store.store(space, made)
        owner = Owner(uid, base_uid=base_uid, recipe="executorch-xnnpack-8da4w", parent_id=made.id)
        with parts.database.transaction() as connection:
            for kind in ("Adapter", "AdapterBundle"):
                artifacts_store.put(connection, space, owner, kind, made.id, facts)
        gets = {
            "GetUser": USER, "GetProfile": f"{USER}/profiles/LaMP_4",
            "GetAdapter": f"{USER}/adapters/{made.id}",
        }  # fmt: skip
        answers = _write_answers(server, gets, work / "answers")
        with bare(answers, content) as plain:
            yield Site(server, plain, gets, f"{USER}/bundles/{made.id}", content)


def make_user(server: Server) -> str:
    """Ann with a profile, through the API; gives her uid."""
    with grpc.insecure_channel(server.address) as channel:
        user = users_pb2_grpc.UserServiceStub(channel).CreateUser(
            users_pb2.CreateUserRequest(user_id="ann")
        )
        profiles_pb2_grpc.ProfileServiceStub(channel).CreateProfile(
            profiles_pb2.CreateProfileRequest(parent=user.name, profile_id="LaMP_4")
        )
    return user.uid


def _write_answers(server: Server, names: Mapping[str, str], folder: Path) -> Path:
    """What the service answers now, for the bare server to answer, too."""
    folder.mkdir()
    with grpc.insecure_channel(server.address) as channel:
        answers = {
            "GetUser": users_pb2_grpc.UserServiceStub(channel).GetUser(
                users_pb2.GetUserRequest(name=names["GetUser"])
            ),
            "GetProfile": profiles_pb2_grpc.ProfileServiceStub(channel).GetProfile(
                profiles_pb2.GetProfileRequest(name=names["GetProfile"])
            ),
            "GetAdapter": adapters_pb2_grpc.AdapterServiceStub(channel).GetAdapter(
                adapters_pb2.GetAdapterRequest(name=names["GetAdapter"])
            ),
        }
    for method, answer in answers.items():
        (folder / method).write_bytes(answer.SerializeToString())
    return folder


def _add_base(parts: Parts) -> str:
    """A base by name only: making a real one needs a worker and a model."""
    row = {
        "uid": new_uid(), "tenant": "local", "base_id": "pocket", "source": "pocket",
        "digest": "d" * 64, "architecture": "Llama", "files": b"[]", "create_time": now(),
    }  # fmt: skip
    with parts.database.transaction() as connection:
        connection.execute(insert(Base).values(**row))
    return str(row["uid"])


def _make_artifact(path: Path, content: Path) -> artifacts.Artifact:
    """An artifact of three files, the one to download among them."""
    with artifacts.create(path, "AdapterBundle", {"base_bundle": "b" * 64}, {}) as draft:
        (draft.path / FILE).write_bytes(content.read_bytes())
        (draft.path / "program.pte").write_bytes(b"program")
        (draft.path / "golden.json").write_bytes(b"{}")
        draft.measured["wire_bytes"] = content.stat().st_size
    return artifacts.open_artifact(path)


def add_adapters(parts: Parts, uid: str, folder: Path, count: int) -> None:
    """So many adapters of one user, whose files are the same: a list reads rows only."""
    content = folder.with_suffix(".content")
    content.write_bytes(b"adapter")
    base_uid = _add_base(parts)
    space = parts.vault.space("local", uid)
    facts = artifacts_store.store(space, _make_artifact(folder, content))
    for start in range(0, count, 1000):
        with parts.database.transaction() as connection:
            for number in range(start, min(start + 1000, count)):
                name = hashlib.sha256(str(number).encode()).hexdigest()
                owner = Owner(uid, base_uid=base_uid)
                artifacts_store.put(connection, space, owner, "Adapter", name, facts)
