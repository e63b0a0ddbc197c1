"""Artifacts in the vault: stored, found again, fetched whole or not at all, let go."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import insert

from cloud.service import artifacts_store
from cloud.service.artifacts_store import Owner
from cloud.service.errors import Cancelled
from cloud.service.settings import Settings
from cloud.service.state import Database
from cloud.service.tables import User
from cloud.service.vault import Vault, open_vault
from protos.artifacts import Artifact, create, open_artifact
from protos.errors import ArtifactError


@pytest.fixture
def vault(database: Database, tmp_path: Path) -> Vault:
    found = open_vault(Settings(data_dir=tmp_path / "data"))
    found.create("t", "u1")
    with database.transaction() as connection:
        row = {"uid": "u1", "tenant": "t", "user_id": "ann", "create_time": 1, "purpose": "p",
               "retention_days": 1, "third_party": False, "consent_version": 1,
               "consent_time": 1, "erasing": False}  # fmt: skip
        connection.execute(insert(User).values(row))
    return found


def make(path: Path, own: str) -> Artifact:
    with create(path, "Adapter", {"base_model": "b"}, {}) as draft:
        (draft.path / "folder").mkdir()
        (draft.path / "folder" / "own").write_text(own)
        (draft.path / "same").write_text("the same in all")
        draft.measured["loss"] = 1.5
    return open_artifact(path)


def put(database: Database, vault: Vault, artifact: Artifact) -> str:
    space = vault.space("t", "u1")
    facts = artifacts_store.store(space, artifact)
    with database.transaction() as connection:
        return artifacts_store.put(
            connection, space, Owner("u1"), "Adapter", artifact.id, facts
        )  # fmt: skip


def test_an_artifact_comes_back_byte_by_byte_and_is_stored_once(database, vault, tmp_path):
    artifact, space = make(tmp_path / "one", "1"), vault.space("t", "u1")
    uid = put(database, vault, artifact)
    assert put(database, vault, artifact) == uid
    with database.transaction(write=False) as connection:
        row = artifacts_store.find(connection, "u1", "Adapter", artifact.id)
        assert row == artifacts_store.by_uid(connection, uid)
    facts = artifacts_store.opened(space, row)
    assert facts.measured == {"loss": 1.5}
    assert facts.file("folder/own").size == 1
    fetched = artifacts_store.fetch(space, row, tmp_path / "back")
    assert fetched.manifest == artifact.manifest
    assert b"folder/own" not in row.sealed


def test_a_fetch_that_is_cut_off_leaves_nothing_and_the_next_one_cleans_up(
    database, vault, tmp_path
):
    uid, space = put(database, vault, make(tmp_path / "one", "1")), vault.space("t", "u1")
    with database.transaction(write=False) as connection:
        row = artifacts_store.by_uid(connection, uid)
    target = tmp_path / "there" / "back"
    left = target.parent / ".back.0123.fetching"
    left.mkdir(parents=True)

    def stop() -> None:
        raise Cancelled("cancelled")

    with pytest.raises(Cancelled):
        artifacts_store.fetch(space, row, target, stop)
    assert not list(target.parent.iterdir())
    for key in list(vault.blobs.keys(space.prefix))[:1]:
        vault.blobs.delete(key)
    with pytest.raises(ArtifactError, match="gone from the blob store"):
        artifacts_store.fetch(space, row, target)
    assert not list(target.parent.iterdir())


def test_release_names_only_blobs_that_nobody_else_needs(database, vault, tmp_path):
    uid = put(database, vault, make(tmp_path / "one", "1"))
    put(database, vault, make(tmp_path / "two", "2"))
    space = vault.space("t", "u1")
    before = set(vault.blobs.keys(space.prefix))
    with database.transaction() as connection:
        keys = artifacts_store.release(
            connection, space, artifacts_store.by_uid(connection, uid)
        )  # fmt: skip
    assert len(keys) == 2  # its own file and its manifest, not the shared one
    assert set(keys) < before
