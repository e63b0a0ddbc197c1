"""Artifacts in the service: a row that says what it is, and its files in the space of its owner.

In: an artifact directory that a stage has made. Out: a row in `artifacts`, and from the row the
same directory again, on any host, every byte verified. Datasets, adapters and bundles stand in
their user's space, under the user's key; BaseBundles in the shared one, once for everybody.

Order of things: files first, the row after them; a row is never without its files. What a crash
leaves between the two is found again by its address when the stage runs again, or swept.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row, Select, bindparam, delete, insert, select

from cloud.service.errors import NotFound
from cloud.service.state import new_uid, now
from cloud.service.tables import Artifact as Artifacts
from cloud.service.tables import Base, Profile
from cloud.service.vault import Space, StoredFile
from protos.artifacts import MANIFEST, Artifact, digest_file, open_artifact

DRAFT = "Draft"
"""Kind of a bundle that is stored but not yet proven: nobody but its operation sees it."""
CHECKPOINT = "Checkpoint"
"""Kind of the files from which a cut-off stage goes on; `artifact_id` is the operation's uid."""
_FETCHING = ".fetching"
Check = Callable[[], None]


@dataclass(frozen=True)
class Owner:
    """Whose an artifact is and what it was made from, as far as columns say it.

    user_uid: None for a BaseBundle. parent_id: of an adapter its dataset's artifact id, of a bundle
    its adapter's, of a BaseBundle the digest of the model.
    """

    user_uid: str | None
    profile_uid: str | None = None
    base_uid: str | None = None
    recipe: str = ""
    parent_id: str = ""


@dataclass(frozen=True)
class Facts:
    """What the sealed column holds. parents: role to id, as in the manifest."""

    files: Sequence[StoredFile]
    parents: Mapping[str, str]
    measured: Mapping[str, Any]

    def file(self, path: str) -> StoredFile:
        """The file of this path.

        Raises:
            NotFound: the artifact has none.
        """
        for found in self.files:
            if found.path == path:
                return found
        raise NotFound(f"file {path!r}")


_COLUMNS = (
    *Artifacts.__table__.columns,
    Profile.task.label("task"),
    Base.base_id.label("base_id"),
    Base.digest.label("base_digest"),
)


def rows() -> Select[Any]:
    """All artifacts; a row has its own columns, and `task`, `base_id` and `base_digest`."""
    return (
        select(*_COLUMNS)
        .outerjoin(Profile, Profile.uid == Artifacts.profile_uid)
        .outerjoin(Base, Base.uid == Artifacts.base_uid)
    )


_FIND = rows().where(
    Artifacts.user_uid == bindparam("user_uid"),
    Artifacts.kind == bindparam("kind"),
    Artifacts.artifact_id == bindparam("artifact_id"),
)
_BY_UID = rows().where(Artifacts.uid == bindparam("uid"))


def find(connection: Connection, user_uid: str, kind: str, artifact_id: str) -> Row[Any] | None:
    """The row of a user's artifact."""
    key = {"user_uid": user_uid, "kind": kind, "artifact_id": artifact_id}
    return connection.execute(_FIND, key).first()


def by_uid(connection: Connection, uid: str) -> Row[Any]:
    """The row of an artifact that an earlier stage has stored.

    Raises:
        NotFound: it was deleted meanwhile.
    """
    row = connection.execute(_BY_UID, {"uid": uid}).first()
    if row is None:
        raise NotFound("an artifact that the operation needs")
    return row


def newest(connection: Connection, user_uid: str, kind: str, profile_uid: str) -> Row[Any] | None:
    """The newest artifact of a kind that was made for a profile."""
    wanted = rows().where(
        Artifacts.user_uid == user_uid,
        Artifacts.kind == kind,
        Artifacts.profile_uid == profile_uid,
    )
    newest_first = wanted.order_by(Artifacts.create_time.desc(), Artifacts.uid.desc())
    return connection.execute(newest_first.limit(1)).first()


def base_bundle(connection: Connection, base_uid: str, recipe: str) -> Row[Any] | None:
    """What a base was lowered to with a recipe, if it was."""
    return connection.execute(
        rows().where(
            Artifacts.base_uid == base_uid,
            Artifacts.recipe == recipe,
            Artifacts.kind == "BaseBundle",
        )
    ).first()


def store(space: Space, artifact: Artifact, check: Check = lambda: None) -> Facts:
    """Store every file of an artifact, its manifest among them; outside of any transaction."""
    known = {name: entry.sha256 for name, entry in artifact.manifest.files.items()}
    known[MANIFEST] = digest_file(artifact.path / MANIFEST)
    files = [
        space.store(name, artifact.path / name, digest, check)
        for name, digest in sorted(known.items())
    ]
    return Facts(files, dict(artifact.manifest.parents), dict(artifact.manifest.measured))


def put(
    connection: Connection,
    space: Space,
    owner: Owner,
    kind: str,
    artifact_id: str,
    facts: Facts,
) -> str:
    """Write the row of an artifact whose files are stored, and return its uid.

    One that is there already stays as it is: a stage that runs twice changes nothing.
    """
    found = _same(connection, owner, kind, artifact_id)
    if found is not None:
        return found
    uid = new_uid()
    connection.execute(
        insert(Artifacts).values(
            uid=uid,
            kind=kind,
            artifact_id=artifact_id,
            **asdict(owner),
            sealed=seal(space, uid, facts),
            size_bytes=sum(file.size for file in facts.files),
            create_time=now(),
        )
    )
    return uid


def _same(connection: Connection, owner: Owner, kind: str, artifact_id: str) -> str | None:
    if owner.user_uid is None:
        row = base_bundle(connection, owner.base_uid or "", owner.recipe)
    else:
        row = find(connection, owner.user_uid, kind, artifact_id)
    return None if row is None else row.uid


def seal(space: Space, uid: str, facts: Facts) -> bytes:
    """The content of the column `sealed`."""
    return space.seal(json.dumps(asdict(facts)).encode(), f"artifacts/{uid}")


def opened(space: Space, row: Row[Any]) -> Facts:
    """What a row's sealed column says. space: the user's, or the shared one for a BaseBundle."""
    raw = json.loads(space.unseal(row.sealed, f"artifacts/{row.uid}"))
    return Facts([StoredFile(**file) for file in raw["files"]], raw["parents"], raw["measured"])


def fetch(space: Space, row: Row[Any], folder: Path, check: Check = lambda: None) -> Artifact:
    """Put an artifact's files into `folder`, all or none, and open it.

    Raises:
        ArtifactError: a file is gone or altered.
    """
    if not folder.is_dir():
        fetch_files(space, opened(space, row).files, folder, check)
    return open_artifact(folder)


def fetch_files(
    space: Space, files: Iterable[StoredFile], folder: Path, check: Check = lambda: None
) -> None:
    """Write stored files below `folder`, which appears when all of them are there."""
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    _remove_abandoned(folder)
    partial = folder.parent / f".{folder.name}.{secrets.token_hex(4)}{_FETCHING}"
    partial.mkdir(mode=0o700)
    lock = os.open(partial, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for file in files:
            write(space, file, partial / file.path, check)
        _install(partial, folder)
    finally:
        os.close(lock)
        shutil.rmtree(partial, ignore_errors=True)


def _remove_abandoned(folder: Path) -> None:
    """Remove what a killed worker has half fetched: nobody holds its lock."""
    for partial in folder.parent.glob(f".{folder.name}.*{_FETCHING}"):
        with contextlib.suppress(OSError):
            lock = os.open(partial, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(partial, ignore_errors=True)
            finally:
                os.close(lock)


def _install(partial: Path, folder: Path) -> None:
    try:
        partial.rename(folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # else somebody was faster
            raise


def write(space: Space, file: StoredFile, path: Path, check: Check = lambda: None) -> None:
    """Write one stored file to a path where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with path.open("xb") as stream:
        for piece in space.read(file):
            check()
            stream.write(piece)


def release(connection: Connection, space: Space, row: Row[Any]) -> list[str]:
    """Delete a row; returns the keys of the blobs that no other artifact of the user needs.

    The caller removes them from the blob store once the transaction is committed.
    """
    connection.execute(delete(Artifacts).where(Artifacts.uid == row.uid))
    others = connection.execute(rows().where(Artifacts.user_uid == row.user_uid)).all()
    needed = {file.address for other in others for file in opened(space, other).files}
    addresses = {file.address for file in opened(space, row).files}
    return [f"{space.prefix}/{address}" for address in sorted(addresses - needed)]
