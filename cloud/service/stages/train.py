"""Train: a Dataset becomes an Adapter, in the user's space.

Operations of one tenant that a worker has at this stage at the same time, over the same base, are
trained together in one child process (`together.py`, `POCKETUNE_TRAIN_TOGETHER`). Its memory then
holds the texts of several users; each one's files are read from and written to that user's own
folder, and stored in that user's own space by that user's own operation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import Message

import cloud.train
from cloud.service import artifacts_store, checkpoints, messages, options
from cloud.service.artifacts_store import Owner
from cloud.service.pipeline import Job, Result
from cloud.service.stages import together
from cloud.service.stages.site import Site, base_of, open_checked, user_of
from cloud.train import TrainConfig
from protos.artifacts import Artifact, open_artifact
from protos.base_model import BaseModel, skeleton
from protos.errors import InputError, PocketuneError
from protos.progress import Progress
from protos.v1 import adapters_pb2, profiles_pb2


@dataclass(frozen=True)
class Member:
    """One adapter to train: its dataset's folder, where it goes, and how."""

    dataset: str
    out: str
    config: TrainConfig


def run(site: Site, job: Job) -> Result:
    """The stage."""
    with site.database.transaction(write=False) as connection:
        base = base_of(connection, job.value("base"))
    dataset = site.artifact(job, job.value("dataset"), "dataset")
    model, out = site.base_model(job, base), job.folder / "adapter"
    config = options.training(_options(job), base.source, site.settings)
    member, key = Member(str(dataset.path), str(out), config), (job.operation.tenant, base.digest)
    with checkpoints.kept(site.database, site.vault, job, site.settings.checkpoint_s):
        site.together.run(key, job, member, out, train_members, str(model), base.digest,
                          site.settings.jobs_at_once)  # fmt: skip
    adapter = open_artifact(out, "Adapter")
    for name in ("steps", "epochs", "valid_loss_before", "valid_loss_after"):
        job.counters[name] = adapter.manifest.measured[name]
    owner = Owner(job.operation.user_uid, job.value("profile"), base.uid, parent_id=dataset.id)
    return {"adapter": site.keep(job, adapter, owner, "Adapter")}


def _options(job: Job) -> adapters_pb2.TrainOptions:
    if job.operation.method == "TrainAdapter":
        return job.request(adapters_pb2.TrainAdapterRequest()).options
    return job.request(profiles_pb2.PersonalizeProfileRequest()).train


def train_members(
    members: Sequence[Member],
    base: str,
    digest: str,
    jobs_at_once: int,
    threads: int,
    progress: Progress,
) -> list[PocketuneError | None]:
    """In the child: the stage function itself, for all members; gives each one's error.

    jobs_at_once: of this worker, each of which may be a training; they share what is free.
    """
    model = open_checked(base, digest)
    opened = [_dataset(member) for member in members]

    def numbered(number: int) -> Progress:
        return lambda message, share: progress(f"{number} {message}", share)

    asked = [
        cloud.train.Member(
            dataset, Path(member.out), member.config,
            together.asked(Path(member.out).parent), numbered(number),
        )
        for number, (member, dataset) in enumerate(zip(members, opened, strict=True))
        if isinstance(dataset, Artifact)
    ]  # fmt: skip
    memory = None if jobs_at_once == 1 else _memory_budget(members, model, jobs_at_once)
    made = iter(cloud.train.train_many(asked, model, threads, memory))
    answers = [next(made) if isinstance(each, Artifact) else each for each in opened]
    return [each if isinstance(each, PocketuneError) else None for each in answers]


def _dataset(member: Member) -> Artifact | PocketuneError:
    """A member's dataset, or why there is none: it may have left, and its folder be gone."""
    try:
        return open_artifact(Path(member.dataset), "Dataset")
    except PocketuneError as error:
        return error
    except FileNotFoundError:
        return InputError(f"{member.dataset}: removed while it was read")


def _memory_budget(members: Sequence[Member], base: BaseModel, jobs_at_once: int) -> int:
    """Bytes beside the model's own: one of equal shares of what is free before it is loaded."""
    import torch

    from cloud.trainer.memory import free_bytes

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    width = max(cloud.train.frozen_dtype(member.config).itemsize for member in members)
    weights = sum(width * each.numel() for each in skeleton(base).parameters())
    return max(0, free_bytes(device) // jobs_at_once - weights)


def answer(site: Site, job: Job) -> Message:
    """The response of TrainAdapter."""
    return adapter_of(site, job)


def adapter_of(site: Site, job: Job) -> adapters_pb2.Adapter:
    """The adapter of the operation, as clients see it."""
    with site.database.transaction(write=False) as connection:
        row = artifacts_store.by_uid(connection, job.value("adapter"))
        user = user_of(connection, job)
    return messages.adapter(row, artifacts_store.opened(job.space, row), user.user_id)
