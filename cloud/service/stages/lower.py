"""Lower: a base model becomes a BaseBundle, once for each base and recipe, whoever asks first.

The bundle stands in the shared space. Another tenant's base of the same digest, lowered with the
same recipe, is taken as it is: it is the same model, and nothing of a user is in it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf.message import Message
from sqlalchemy import Connection, Row

from cloud.service import artifacts_store, holds, messages
from cloud.service.artifacts_store import Facts, Owner
from cloud.service.pipeline import Job, Result
from cloud.service.stages.site import Site, base_of
from cloud.service.tables import Artifact as Artifacts
from cloud.service.tables import Base
from protos.artifacts import open_artifact
from protos.errors import MismatchError


def run(site: Site, job: Job) -> Result:
    """The stage."""
    recipe = job.value("recipe")
    with site.database.transaction(write=False) as connection:
        base = base_of(connection, job.value("base"))

    def is_done() -> bool:
        with site.database.transaction() as connection:
            return _found(site, connection, base, recipe) is not None

    with holds.held(site.database, job, f"lower/{base.digest}/{recipe}", is_done) as mine:
        if mine:
            _lower(site, job, base, recipe)
    with site.database.transaction() as connection:
        return {"base_bundle": _found(site, connection, base, recipe)}


def check(site: Site, job: Job, base: Row[Any], recipe: str) -> None:
    """Refuse early what could not be lowered; what is lowered already could.

    Raises:
        InputError, UnsupportedError: the recipe, the model's family or the context.
    """
    with site.database.transaction() as connection:
        if _found(site, connection, base, recipe):
            return
    job.in_child(
        site.tools.check_export, str(site.base_model(job, base)), recipe,
        *_shape(site), job.threads,
    )  # fmt: skip


def _shape(site: Site) -> tuple[int, int | None]:
    """Rank and context length that bases are lowered for."""
    return site.settings.lowered_rank, site.settings.context_length or None


def _found(site: Site, connection: Connection, base: Row[Any], recipe: str) -> str | None:
    """The uid of the bundle, if there is one; an equal base's counts too, and gets a row here."""
    if row := artifacts_store.base_bundle(connection, base.uid, recipe):
        return str(row.uid)
    equal = artifacts_store.rows().where(
        Base.digest == base.digest, Artifacts.recipe == recipe, Artifacts.kind == "BaseBundle"
    )
    other = connection.execute(equal.limit(1)).first()
    if other is None:
        return None
    facts = artifacts_store.opened(site.vault.shared, other)
    return _enter(site, connection, base, recipe, other.artifact_id, facts)


def _lower(site: Site, job: Job, base: Row[Any], recipe: str) -> None:
    model, out = site.base_model(job, base), job.folder / "base-bundle"
    job.in_child(site.tools.export_base, str(model), recipe, *_shape(site), str(out), job.threads)
    bundle = open_artifact(Path(out), "BaseBundle")
    if bundle.manifest.parents["base_model"] != base.digest:
        raise MismatchError(f"bases/{base.base_id}: its files on this host were altered")
    job.counters["lowering_seconds"] = bundle.manifest.measured["lowering_seconds"]
    facts = artifacts_store.store(site.vault.shared, bundle, job.check)
    with site.database.transaction() as connection:
        _enter(site, connection, base, recipe, bundle.id, facts)


def _enter(
    site: Site, connection: Connection, base: Row[Any], recipe: str, bundle_id: str, facts: Facts
) -> str:
    owner = Owner(None, None, base.uid, recipe, base.digest)
    return artifacts_store.put(
        connection, site.vault.shared, owner, "BaseBundle", bundle_id, facts
    )  # fmt: skip


def answer(site: Site, job: Job) -> Message:
    """The response of LowerBase and CreateBase."""
    with site.database.transaction(write=False) as connection:
        row = base_of(connection, job.value("base"))
        return messages.base(connection, row, site.vault.shared)
