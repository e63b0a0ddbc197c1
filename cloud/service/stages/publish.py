"""Publish: a bundle that was proven becomes visible; one that was not is removed."""

from __future__ import annotations

from google.protobuf.message import Message
from sqlalchemy import update

from cloud.service import artifacts_store, operations
from cloud.service.artifacts_store import DRAFT
from cloud.service.errors import Cancelled, NotFound
from cloud.service.pipeline import Job, Result
from cloud.service.stages.export import bundle_of
from cloud.service.stages.parity import report_of
from cloud.service.stages.site import Site
from cloud.service.stages.train import adapter_of
from cloud.service.tables import Artifact as Artifacts
from protos.errors import GateError
from protos.v1 import profiles_pb2


def run(site: Site, job: Job) -> Result:
    """The stage.

    Raises:
        GateError: the bundle would not answer as trained.
    """
    if not job.value("passed"):
        _remove(site, job)
        raise GateError(f"parity failed, stage at fault: {job.value('fault')}; see the report")
    uid, attempt = job.operation.uid, job.operation.attempt
    draft = (Artifacts.uid == job.value("bundle")) & (Artifacts.kind == DRAFT)
    with site.database.transaction() as connection:
        if not operations.is_wanted(connection, uid, attempt):
            raise Cancelled("cancelled")
        connection.execute(update(Artifacts).where(draft).values(kind="AdapterBundle"))
    return {}


def _remove(site: Site, job: Job) -> None:
    keys: list[str] = []
    with site.database.transaction() as connection:
        try:
            row = artifacts_store.by_uid(connection, job.value("bundle"))
        except NotFound:  # this stage has removed it before
            return
        if row.kind == DRAFT:
            keys = artifacts_store.release(connection, job.space, row)
    for key in keys:
        site.vault.blobs.delete(key)


def personalized(site: Site, job: Job) -> Message:
    """The response of PersonalizeProfile."""
    return profiles_pb2.PersonalizeProfileResponse(
        adapter=adapter_of(site, job),
        bundle=bundle_of(site, job),
        parity_report=report_of(site, job),
    )
