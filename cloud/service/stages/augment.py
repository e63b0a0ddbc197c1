"""Augment: the items of a profile become a Dataset, in the user's space."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

from google.protobuf.message import Message
from sqlalchemy import select

import cloud.augment
from cloud.augment import AugmentConfig
from cloud.profiles import Consent, Item, Profile, write_profile
from cloud.service import artifacts_store, checkpoints, names, options
from cloud.service.artifacts_store import Owner
from cloud.service.errors import WrongState, is_transient
from cloud.service.items import open_item
from cloud.service.pipeline import Job, Result
from cloud.service.profiles import message_of, task_of
from cloud.service.stages.site import Site, user_of
from cloud.service.tables import Item as Items
from cloud.service.tables import Profile as Profiles
from cloud.teachers import open_teacher
from protos.artifacts import open_artifact
from protos.progress import Progress
from protos.v1 import profiles_pb2

_ASK_S = 0.5


def run(site: Site, job: Job) -> Result:
    """The stage."""
    asked = _options(job)
    spec = options.teacher_spec(site.settings, asked.teacher)
    profile = read_profile(site, job)
    source = write_profile(profile, job.folder / "profile").path
    out, config = job.folder / "dataset", options.augmenting(asked)
    keeping = checkpoints.kept(site.database, site.vault, job, site.settings.checkpoint_s)
    with _while_allowed(site, job, spec), keeping:
        job.in_child(write_dataset, str(source), spec, str(out), config, job.threads)
    dataset = open_artifact(out, "Dataset")
    measured = dataset.manifest.measured
    rejected = {f"rejected_{name}": n for name, n in measured["rejected"].items()}
    figures = {name: measured[name] for name in ("real", "synthetic", "valid")} | rejected
    job.counters.update(figures)
    owner = Owner(job.operation.user_uid, job.value("profile"))
    return {"dataset": site.keep(job, dataset, owner, "Dataset")}


@contextlib.contextmanager
def _while_allowed(site: Site, job: Job, spec: str) -> Generator[None]:
    """Within the block the job is cut off when the user's consent does not allow the teacher.

    Raises:
        WrongState: it does not, now or a second ago.
    """
    if not options.is_third_party(spec):
        yield
        return
    _check_consent(site, job)
    is_wanted, asked_at = job.is_wanted, time.monotonic()

    def is_wanted_and_allowed() -> bool:
        nonlocal asked_at
        if is_wanted() and time.monotonic() - asked_at >= _ASK_S:
            with _unless_away():  # nobody can change a consent then, either
                _check_consent(site, job)
            asked_at = time.monotonic()
        return is_wanted()

    job.is_wanted = is_wanted_and_allowed
    try:
        yield
    finally:
        job.is_wanted = is_wanted


@contextlib.contextmanager
def _unless_away() -> Generator[None]:
    try:
        yield
    except Exception as error:
        if not is_transient(error):
            raise


def _check_consent(site: Site, job: Job) -> None:
    with site.database.transaction(write=False) as connection:
        user = user_of(connection, job)
    if not user.third_party:
        raise WrongState(
            f"{names.user(user.user_id)}/consent: does not allow a teacher that others operate "
            "(third_party); what it had written is dropped"
        )


def read_profile(site: Site, job: Job) -> Profile:
    """The profile as it stood when the operation was prepared, with the consent as it is now."""
    uid = job.value("profile")
    wanted = (
        select(Items.seq, Items.sealed)
        .where(Items.profile_uid == uid, Items.seq <= job.value("last_seq"))
        .order_by(Items.seq)
    )
    columns = select(*Profiles.__table__.columns).where(Profiles.uid == uid)
    with site.database.transaction(write=False) as connection:
        row = connection.execute(columns).one()
        user = user_of(connection, job)
        items = [_item(job, uid, each) for each in connection.execute(wanted).all()]
    message = message_of(row, user.user_id, job.space)
    consent = Consent(user.purpose, user.retention_days, user.third_party)
    task = task_of(row.task, message)
    return Profile(task, user.user_id, message.language or "und", consent, items, [])


def _item(job: Job, profile_uid: str, row: Any) -> Item:
    item = open_item(job.space, profile_uid, row)
    return Item(item.item_id, item.input, item.output, item.date)


def _options(job: Job) -> profiles_pb2.AugmentOptions:
    if job.operation.method == "AugmentProfile":
        return job.request(profiles_pb2.AugmentProfileRequest()).options
    return job.request(profiles_pb2.PersonalizeProfileRequest()).augment


def write_dataset(
    profile: str, spec: str, out: str, config: AugmentConfig, threads: int, progress: Progress
) -> None:
    """In the child: the stage function itself."""
    source = open_artifact(Path(profile), "Profile")
    cloud.augment.augment(source, open_teacher(spec, threads), Path(out), config, progress)


def answer(site: Site, job: Job) -> Message:
    """The response of AugmentProfile."""
    with site.database.transaction(write=False) as connection:
        row = artifacts_store.by_uid(connection, job.value("dataset"))
    measured = artifacts_store.opened(job.space, row).measured
    return profiles_pb2.AugmentProfileResponse(
        dataset=row.artifact_id,
        real_count=measured["real"],
        synthetic_count=measured["synthetic"],
        valid_count=measured["valid"],
        rejected_counts=measured["rejected"],
    )
