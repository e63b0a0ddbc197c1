"""Where stages work: the parts of the service, what the composition root injects, and the things
that all operations of a host share: base models and BaseBundles, fetched once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row, select

from cloud.service import artifacts_store, messages, operations
from cloud.service.artifacts_store import Facts, Owner
from cloud.service.cache import Cache
from cloud.service.errors import Cancelled, NotFound
from cloud.service.pipeline import Job
from cloud.service.settings import Settings
from cloud.service.stages.together import Together
from cloud.service.state import Database
from cloud.service.tables import Base, User
from cloud.service.vault import StoredFile, Vault
from protos.artifacts import Artifact, open_artifact
from protos.base_model import BaseModel, open_base
from protos.errors import ArtifactError

_GIB = 1 << 30


@dataclass(frozen=True)
class Tools:
    """What other packages do, injected: functions of modules, since they run in a child process.

    The last argument of each is a `Progress`, the one before it the number of threads; `out` is
    where the artifact goes.

    check_export: (base folder, recipe, rank, context length or None, …); raises what `export_base`
    would, before it has written anything.
    export_base: (base folder, recipe, rank, context length or None, out, …).
    export_adapter: (adapter, BaseBundle, base folder, Dataset for its prompts or None, out, …).
    measure_parity: (BaseBundle, AdapterBundle, out, …); writes a ParityReport.
    """

    check_export: Callable[..., None]
    export_base: Callable[..., None]
    export_adapter: Callable[..., None]
    measure_parity: Callable[..., None]


@dataclass(frozen=True)
class Site:
    """What every stage is given beside its job."""

    database: Database
    vault: Vault
    settings: Settings
    tools: Tools
    together: Together = field(default_factory=lambda: Together(1))

    def artifact(self, job: Job, uid: str, name: str) -> Artifact:
        """One of the user's artifacts, in the job's folder as `name`."""
        with self.database.transaction(write=False) as connection:
            row = artifacts_store.by_uid(connection, uid)
        return artifacts_store.fetch(job.space, row, job.folder / name, job.check)

    def base_bundle(self, job: Job, uid: str) -> Artifact:
        """A BaseBundle, in the cache of this host."""
        with self.database.transaction(write=False) as connection:
            row = artifacts_store.by_uid(connection, uid)
        files = artifacts_store.opened(self.vault.shared, row).files
        return open_artifact(self._cached(job, f"bundles/{row.artifact_id}", "bundle", files))

    def base_model(self, job: Job, row: Row[Any]) -> Path:
        """A base model as a Hugging Face folder, in the cache of this host."""
        return self._cached(job, f"bases/{row.digest}", row.base_id, messages.base_files(row))

    def keep(self, job: Job, artifact: Artifact, owner: Owner, kind: str) -> str:
        """Store an artifact of the user, and return the uid of its row."""
        job.report("storing", 0.99)
        facts = artifacts_store.store(job.space, artifact, job.check)
        return self.enter(job, owner, kind, artifact.id, facts)

    def enter(self, job: Job, owner: Owner, kind: str, artifact_id: str, facts: Facts) -> str:
        """Write the row of an artifact whose files are stored.

        Raises:
            Cancelled: the operation is no longer wanted: nothing is written.
        """
        uid, attempt = job.operation.uid, job.operation.attempt
        with self.database.transaction() as connection:
            if not operations.is_wanted(connection, uid, attempt):
                raise Cancelled("cancelled")
            return artifacts_store.put(connection, job.space, owner, kind, artifact_id, facts)

    def _cached(self, job: Job, entry: str, leaf: str, files: Sequence[StoredFile]) -> Path:
        """Files of the shared space as a folder of this host, which stays while the stage runs."""
        root, limit = self.settings.data_dir.absolute() / "cache", self.settings.cache_gib
        size = sum(file.size for file in files)

        def fetch(folder: Path) -> None:
            artifacts_store.fetch_files(self.vault.shared, files, folder, job.check)

        return Cache(root, round(limit * _GIB)).use(job.held, entry, leaf, size, fetch)


def base_of(connection: Connection, uid: str) -> Row[Any]:
    """The row of a base.

    Raises:
        NotFound: it is gone.
    """
    row = connection.execute(select(*Base.__table__.columns).where(Base.uid == uid)).first()
    if row is None:
        raise NotFound("the base")
    return row


def user_of(connection: Connection, job: Job) -> Row[Any]:
    """The row of the user whom the operation works for.

    Raises:
        NotFound: they are erased.
    """
    wanted = select(*User.__table__.columns).where(User.uid == job.operation.user_uid)
    row = connection.execute(wanted).first()
    if row is None:
        raise NotFound("the user")
    return row


def open_checked(folder: str, digest: str) -> BaseModel:
    """A base model from the cache, every byte of it verified.

    Raises:
        ArtifactError: it was altered.
    """
    model = open_base(folder)
    if model.digest != digest:
        raise ArtifactError(f"{folder}: digest is {model.digest[:12]}, expected {digest[:12]}")
    return model
