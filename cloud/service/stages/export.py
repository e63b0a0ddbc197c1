"""Export: an Adapter becomes an AdapterBundle for the BaseBundle of its base.

What is stored here is a draft: nobody sees the bundle before parity has been proven.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf.message import Message
from sqlalchemy import Row

from cloud.service import artifacts_store, messages
from cloud.service.artifacts_store import DRAFT, Owner
from cloud.service.pipeline import Job, Result
from cloud.service.stages.site import Site, base_of, user_of
from protos.artifacts import open_artifact
from protos.v1 import bundles_pb2


def run(site: Site, job: Job) -> Result:
    """The stage."""
    with site.database.transaction(write=False) as connection:
        base = base_of(connection, job.value("base"))
        row = artifacts_store.by_uid(connection, job.value("adapter"))
    adapter = site.artifact(job, row.uid, "adapter")
    lowered = site.base_bundle(job, job.value("base_bundle"))
    model, out = site.base_model(job, base), job.folder / "adapter-bundle"
    job.in_child(
        site.tools.export_adapter, str(adapter.path), str(lowered.path), str(model),
        _dataset(site, job, row), str(out), job.threads,
    )  # fmt: skip
    bundle = open_artifact(Path(out), "AdapterBundle")
    job.counters["bundle_bytes"] = bundle.manifest.size_bytes
    with site.database.transaction(write=False) as connection:
        proven = artifacts_store.find(connection, row.user_uid, "AdapterBundle", bundle.id)
    if proven is not None:
        return {"bundle": proven.uid}
    owner = Owner(row.user_uid, row.profile_uid, base.uid, lowered.config["recipe"], adapter.id)
    return {"bundle": site.keep(job, bundle, owner, DRAFT)}


def _dataset(site: Site, job: Job, adapter: Row[Any]) -> str | None:
    """The dataset of the adapter, whose prompts the goldens take; None if it was deleted."""
    with site.database.transaction(write=False) as connection:
        row = artifacts_store.find(connection, adapter.user_uid, "Dataset", adapter.parent_id)
    return str(site.artifact(job, row.uid, "dataset").path) if row else None


def answer(site: Site, job: Job) -> Message:
    """The response of ExportBundle."""
    return bundle_of(site, job)


def bundle_of(site: Site, job: Job) -> bundles_pb2.Bundle:
    """The bundle of the operation, as clients see it."""
    with site.database.transaction(write=False) as connection:
        row = artifacts_store.by_uid(connection, job.value("bundle"))
        user = user_of(connection, job)
    return messages.bundle(row, artifacts_store.opened(job.space, row), user.user_id)
