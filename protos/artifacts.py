"""Artifacts: directories with a `manifest.json`, the only thing that stages hand to each other.

In: files that a stage has written, its parents' ids and its resolved config. Out: a directory whose
content decides its identity, verified whenever it is opened. This module knows nothing about what
the files mean.

A directory is made as a sibling called `.NAME.XXXXXXXX.partial`, synced, and renamed into place, so
that an interrupted command leaves either the old artifact or the new one. What a killed command
leaves behind is removed by the next one that writes the same artifact.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import secrets
import shutil
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, cast

from protos.errors import ArtifactError, InputError

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
WITHDRAWN = "withdrawn.json"
"""Beside the manifest of what somebody's items went into who has withdrawn them since."""
KINDS = (
    "Profile", "Dataset", "Adapter", "BaseBundle", "ProbeBundle", "AdapterBundle", "ParityReport",
    "Evaluation", "TaskBase", "Lowering",
)  # fmt: skip
_INSTALL_ATTEMPTS = 5
_LONGEST_NAME = 255
_RECORDED_TOOLS = (
    "pocketune", "torch", "transformers", "peft", "torchao", "executorch", "apache-tvm",
    "tokenizers",
)  # fmt: skip


@dataclass(frozen=True)
class FileEntry:
    """One file of an artifact."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` says.

    id: sha256 over kind, schema version, the sorted (path, sha256) pairs, parents and config; never
        over time, versions or measurements, so the same content has the same id on any machine.
    parents: role -> id of the artifact or base model that this one was made from.
    measured: figures of the run that made it (counts, losses, seconds); not part of the id.
    """

    kind: str
    id: str
    files: Mapping[str, FileEntry]
    parents: Mapping[str, str]
    config: Mapping[str, Any]
    tools: Mapping[str, str]
    created: str
    measured: Mapping[str, Any]
    schema_version: int = SCHEMA_VERSION

    @property
    def size_bytes(self) -> int:
        """Bytes of all files, the manifest itself aside."""
        return sum(entry.size_bytes for entry in self.files.values())


@dataclass(frozen=True)
class Artifact:
    """An opened artifact: every file was there and had its digest when it was opened."""

    path: Path
    manifest: Manifest

    @property
    def id(self) -> str:
        return self.manifest.id

    @property
    def config(self) -> Mapping[str, Any]:
        return self.manifest.config

    def file(self, name: str) -> Path:
        """The path of a file that the manifest lists.

        Raises:
            ArtifactError: the manifest lists no such file.
        """
        if name not in self.manifest.files:
            raise ArtifactError(f"{self.path}: this {self.manifest.kind} holds no file {name!r}")
        return self.path / name


@dataclass
class Draft:
    """An artifact that is being written: put files under `path`, figures into `measured`."""

    path: Path
    measured: dict[str, Any] = field(default_factory=dict[str, Any])


def canonical_json(value: object) -> bytes:
    """The one spelling of a JSON value that digests are taken over."""
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode()


def digest_json(value: object) -> str:
    """sha256 of the canonical JSON of `value`, 64 hex characters."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def digest_file(path: Path) -> str:
    """sha256 of a file's bytes, 64 hex characters; the file is never read whole into memory."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def tool_versions() -> dict[str, str]:
    """Versions of Python and of the packages whose version can change a result."""
    versions = {"python": platform.python_version()}
    for name in _RECORDED_TOOLS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def identity(
    kind: str,
    files: Mapping[str, FileEntry],
    parents: Mapping[str, str],
    config: Mapping[str, Any],
) -> str:
    """The id of an artifact with this content."""
    pairs = sorted((name, entry.sha256) for name, entry in files.items())
    return digest_json([SCHEMA_VERSION, kind, pairs, dict(parents), dict(config)])


def open_artifact(path: Path, kind: str | None = None) -> Artifact:
    """Open an artifact and verify every byte of it.

    Raises:
        InputError: nothing is there, or a contributor has withdrawn.
        ArtifactError: it is of another kind, of an unknown schema version, truncated or altered.
    """
    _recover(path)
    if not path.is_dir():
        raise InputError(f"{path}: no such artifact directory")
    refuse_withdrawn(path)
    manifest = _read_manifest(path)
    if kind is not None and manifest.kind != kind:
        raise ArtifactError(f"{path}: this is a {manifest.kind}, expected a {kind}")
    problems = [
        problem
        for name, entry in manifest.files.items()
        if (problem := _file_problem(path / name, entry))
    ]
    if problems:
        raise ArtifactError(f"{path}: {'; '.join(problems)}; restore it or make it again")
    try:
        expected = identity(manifest.kind, manifest.files, manifest.parents, manifest.config)
    except ValueError as error:
        raise ArtifactError(f"{path / MANIFEST}: malformed manifest ({error})") from None
    if manifest.id != expected:
        raise ArtifactError(
            f"{path / MANIFEST}: id is {manifest.id[:12]}, but its content says {expected[:12]}; "
            "the manifest was altered"
        )
    return Artifact(path, manifest)


def refuse_withdrawn(path: Path) -> None:
    """Refuse to make anything new of what a contributor has withdrawn from.

    Raises:
        InputError: names the day, and what to do.
    """
    mark = path / WITHDRAWN
    if mark.is_file():
        raise InputError(
            f"{path}: a contributor withdrew on {max(read_json(mark).values())[:10]}; train it "
            "again without them (`pocketune task train`)"
        )


def finished(
    path: Path, kind: str, parents: Mapping[str, str], config: Mapping[str, Any]
) -> Artifact | None:
    """The artifact at `path` if it was made from these very inputs by these very tools.

    A stage whose result is there already returns it and does nothing. Anything else at `path`,
    also a damaged artifact, gives None and is replaced by the stage.
    """
    try:
        artifact = open_artifact(path, kind)
    except (InputError, ArtifactError):
        return None
    manifest = artifact.manifest
    same = (
        manifest.parents == dict(parents)
        and canonical_json(dict(manifest.config)) == canonical_json(dict(config))
        and manifest.tools == tool_versions()
    )
    return artifact if same else None


@contextlib.contextmanager
def create(
    path: Path, kind: str, parents: Mapping[str, str], config: Mapping[str, Any]
) -> Generator[Draft]:
    """Write an artifact: fill the draft inside the `with`; leaving it seals and installs.

    If the block raises, nothing is left and what stood at `path` before stays.

    Raises:
        InputError: `path` holds something that is not an artifact of this kind.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown artifact kind {kind!r}")
    path = path.absolute()
    _recover(path)
    refuse_to_replace(path, kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path)
    staging, lock = _locked_staging(path)
    try:
        draft = Draft(staging)
        yield draft
        _seal(draft, kind, parents, config)
        _install(staging, path)
    finally:
        os.close(lock)
        shutil.rmtree(staging, ignore_errors=True)


@contextlib.contextmanager
def work_dir(path: Path, parents: Mapping[str, str], config: Mapping[str, Any]) -> Generator[Path]:
    """Where a stage keeps checkpoints of the artifact it is making at `path`.

    The name holds a digest of the inputs, so a run never resumes from another run's checkpoint;
    those of other inputs are removed. It goes when the block ends well, and stays if it raises, for
    the next run to resume from.

    Raises:
        InputError: another process is making this artifact from these inputs.
    """
    key = digest_json([dict(parents), dict(config), tool_versions()])[:16]
    with _held(path.absolute(), key) as mine:
        yield mine
        shutil.rmtree(mine, ignore_errors=True)


@contextlib.contextmanager
def kept_dir(path: Path, parents: Mapping[str, str]) -> Generator[Path]:
    """A `work_dir` that stays, whatever the config: for what was paid for.

    It is removed by the next run for the artifact at `path` that has other parents.

    Raises:
        InputError: another process is making this artifact from these parents.
    """
    with _held(path.absolute(), digest_json(dict(parents))[:16]) as mine:
        yield mine


@contextlib.contextmanager
def _held(path: Path, key: str) -> Generator[Path]:
    """The one work folder of the artifact at `path`, which no other process has at the time."""
    mine = path.parent / f".{path.name}.{key}.work"
    mine.mkdir(parents=True, exist_ok=True)
    lock = os.open(mine, os.O_RDONLY)
    try:
        if not _locked(lock):
            raise InputError(
                f"{path}: another process is making this artifact right now; let it finish, then "
                "run this again"
            )
        for other in path.parent.glob(f".{path.name}.{'?' * len(key)}.work"):
            if other != mine:
                _remove_unlocked(other)
        yield mine
    finally:
        os.close(lock)


def write_json(path: Path, value: object) -> None:
    """Write a value as readable JSON, UTF-8, keys in the order given."""
    text = json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        InputError: it is missing, not UTF-8 or not JSON; the message names file and line.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
        return json.loads(text, parse_float=_finite, parse_constant=_finite)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}, line {error.lineno}, column {error.colno}: not JSON ({error.msg})"
        ) from None
    except ValueError as error:
        raise InputError(f"{path}: a number that cannot be read ({error})") from None
    except RecursionError:
        raise InputError(f"{path}: JSON nested too deeply") from None


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number} is not finite")
    return value


def _read_manifest(path: Path) -> Manifest:
    source = path / MANIFEST
    if not source.is_file():
        raise ArtifactError(f"{path}: no {MANIFEST} in it, so it is not a Pocketune artifact")
    try:
        return _parse_manifest(read_json(source))
    except InputError as error:
        raise ArtifactError(str(error)) from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(f"{source}: malformed manifest ({error!r})") from None


def _parse_manifest(raw: Any) -> Manifest:
    version = raw["schema_version"]
    if version != SCHEMA_VERSION:
        raise ValueError(f"schema_version is {version!r}, this build reads {SCHEMA_VERSION}")
    if raw["kind"] not in KINDS:
        raise ValueError(f"kind is {raw['kind']!r}, expected one of {', '.join(KINDS)}")
    entries: dict[str, FileEntry] = {}
    for name, entry in raw["files"].items():
        _check_name(name)
        entries[name] = FileEntry(str(entry["sha256"]), int(entry["size_bytes"]))
    return Manifest(
        kind=raw["kind"],
        id=str(raw["id"]),
        files=entries,
        parents=cast("dict[str, str]", dict(raw["parents"])),
        config=dict(raw["config"]),
        tools=dict(raw["tools"]),
        created=str(raw["created"]),
        measured=dict(raw["measured"]),
    )


def _check_name(name: str) -> None:
    pure = PurePosixPath(name)
    if any(len(part.encode()) > _LONGEST_NAME for part in pure.parts):
        raise ValueError(f"file name {name[:40]!r}… is too long")
    if not name or "\0" in name or "\\" in name or pure.is_absolute() or ".." in pure.parts:
        raise ValueError(f"file name {name!r} leaves the directory")


def _file_problem(path: Path, entry: FileEntry) -> str | None:
    if path.is_symlink() or not path.is_file():
        return f"{path.name} is missing"
    size = path.stat().st_size
    if size != entry.size_bytes:
        return f"{path.name} has {size} bytes, expected {entry.size_bytes}"
    if digest_file(path) != entry.sha256:
        return f"{path.name} was altered (its sha256 differs from the manifest's)"
    return None


def _seal(
    draft: Draft, kind: str, parents: Mapping[str, str], config: Mapping[str, Any]
) -> Manifest:
    """Digest and sync every file of the draft, and write its manifest."""
    files: dict[str, FileEntry] = {}
    for path in sorted(p for p in draft.path.rglob("*") if p.is_file()):
        name = path.relative_to(draft.path).as_posix()
        files[name] = FileEntry(digest_file(path), path.stat().st_size)
        sync(path)
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "kind": kind,
        "id": identity(kind, files, parents, config),
        "files": {name: vars(entry) for name, entry in files.items()},
        "parents": dict(parents),
        "config": dict(config),
        "tools": tool_versions(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "measured": draft.measured,
    }
    write_json(draft.path / MANIFEST, manifest)
    sync(draft.path / MANIFEST)
    for folder in [*(p for p in draft.path.rglob("*") if p.is_dir()), draft.path]:
        sync(folder)
    return _parse_manifest(manifest)


def _locked_staging(path: Path) -> tuple[Path, int]:
    """A new draft directory and the open handle whose lock says that its writer lives.

    It gets the name that `_remove_abandoned` looks for only after it is locked.
    """
    staging = path.parent / f".{path.name}.{secrets.token_hex(4)}.partial"
    unlocked = staging.with_suffix(".new")
    unlocked.mkdir()
    lock = os.open(unlocked, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    unlocked.rename(staging)
    return staging, lock


def sync(path: Path) -> None:
    """Have the disk hold a file, or a folder's names, before anything else is done."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _old(path: Path) -> Path:
    return path.parent / f".{path.name}.old"


def _install(staging: Path, path: Path) -> None:
    """Rename the sealed draft into place; `_recover` undoes the first half if we die between.

    The second rename fails while somebody else (a reader that recovers, a second writer) puts a
    directory there: then it is moved away again, a few times at most.
    """
    old = _old(path)
    for attempt in range(_INSTALL_ATTEMPTS):
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
            path.rename(old)
        try:
            staging.rename(path)
            break
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            if attempt == _INSTALL_ATTEMPTS - 1:
                raise InputError(f"{path}: another process keeps writing this artifact") from None
    sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def _recover(path: Path) -> None:
    """Put an artifact back whose replacement was interrupted between the two renames."""
    if _old(path).is_dir() and not path.exists():
        with contextlib.suppress(FileNotFoundError):
            _old(path).rename(path)


def refuse_to_replace(path: Path, kind: str) -> None:
    """Refuse a place that `create` would not write to; for asking before the work.

    Raises:
        InputError: `path` holds something that is not an artifact of this kind.
    """
    if not path.exists():
        return
    if not path.is_dir():
        raise InputError(f"{path}: exists and is a file; choose another place for the {kind}")
    if not any(path.iterdir()):
        return
    manifest = path / MANIFEST
    found = None
    if manifest.is_file():
        with contextlib.suppress(InputError, AttributeError):
            found = read_json(manifest).get("kind")
    if found != kind:
        what = f"a {found}" if found in KINDS else "not a Pocketune artifact"
        raise InputError(f"{path}: exists and is {what}; choose another place for the {kind}")


def _remove_abandoned(path: Path) -> None:
    """Remove drafts of the same artifact whose writer is dead: nobody holds their lock."""
    for partial in path.parent.glob(f".{path.name}.*.partial"):
        _remove_unlocked(partial)


def _remove_unlocked(directory: Path) -> None:
    with contextlib.suppress(OSError):
        handle = os.open(directory, os.O_RDONLY)
        try:
            if _locked(handle):
                shutil.rmtree(directory, ignore_errors=True)
        finally:
            os.close(handle)


def _locked(handle: int) -> bool:
    """Take the lock of an open directory; False if another process has it."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
