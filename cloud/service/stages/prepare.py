"""Prepare: find everything that an operation works on, and hold on to it by its uid.

Out: uids, and `last_seq`: items that come in later are left out, so that a stage that runs again
sees the same profile. What could not be exported in the end is refused here, before a teacher is
paid.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, func, select

from cloud.service import beginnings, names
from cloud.service.pipeline import Job, Result
from cloud.service.profiles import find_profile
from cloud.service.stages import lower as lowering
from cloud.service.stages.site import Site
from cloud.service.tables import Item
from protos.v1 import adapters_pb2, bases_pb2, bundles_pb2, profiles_pb2


def augment(site: Site, job: Job) -> Result:
    """For AugmentProfile."""
    request = job.request(profiles_pb2.AugmentProfileRequest())
    with site.database.transaction(write=False) as connection:
        return _items(connection, _profile(connection, job, request.name))


def train(site: Site, job: Job) -> Result:
    """For TrainAdapter."""
    request = job.request(adapters_pb2.TrainAdapterRequest())
    with site.database.transaction(write=False) as connection:
        profile = _profile(connection, job, request.profile)
        dataset = beginnings.find_dataset(connection, profile, request.dataset)
        base = beginnings.find_base(connection, job.operation.tenant, request.base)
        return {"profile": profile.uid, "dataset": dataset.uid, "base": base.uid}


def export(site: Site, job: Job) -> Result:
    """For ExportBundle."""
    request = job.request(bundles_pb2.ExportBundleRequest())
    with site.database.transaction(write=False) as connection:
        row = beginnings.find_adapter(connection, job.operation.user_uid, request.adapter)
        return {"adapter": row.uid, "base": row.base_uid, "recipe": request.recipe}


def personalize(site: Site, job: Job) -> Result:
    """For PersonalizeProfile."""
    request = job.request(profiles_pb2.PersonalizeProfileRequest())
    with site.database.transaction(write=False) as connection:
        profile = _profile(connection, job, request.name)
        base = beginnings.find_base(connection, job.operation.tenant, request.base)
        found = {**_items(connection, profile), "base": base.uid, "recipe": request.recipe}
    lowering.check(site, job, base, request.recipe)
    return found


def lower(site: Site, job: Job) -> Result:
    """For LowerBase."""
    request = job.request(bases_pb2.LowerBaseRequest())
    with site.database.transaction(write=False) as connection:
        base = beginnings.find_base(connection, job.operation.tenant, request.name)
    return {"base": base.uid, "recipe": request.recipe}


def _profile(connection: Connection, job: Job, name: str) -> Row[Any]:
    path = names.parts("pocketune.dev/Profile", name)
    return find_profile(connection, job.operation.tenant, *path)


def _items(connection: Connection, profile: Row[Any]) -> Result:
    last = select(func.max(Item.seq)).where(Item.profile_uid == profile.uid)
    return {"profile": profile.uid, "last_seq": connection.execute(last).scalar() or 0}
