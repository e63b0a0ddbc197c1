"""Lowerings that are kept on this machine: the same one again is copied, not computed.

In: everything that a lowering depends on, and the function that does it. Out: its files in the
bundle that is being made, and in the manifest where they came from. An entry is an artifact: it is
verified by digest whenever it is taken, and a damaged one is removed and lowered anew. A merged
lowering holds its user's weights, so the folder is open to its owner only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from export.backend import Written
from export.recipes import Recipe
from protos.artifacts import Artifact, create, digest_json, finished, tool_versions
from protos.progress import Progress

KIND = "Lowering"
FOLDER_VARIABLE = "POCKETUNE_CACHE_DIR"
LIMIT_BYTES = 16 << 30
_LOCKS = "locks"


def _code_digest() -> str:
    """Of all our code that a lowering may run. It is more than what matters, so that nothing that
    matters can be missed.
    """
    root = Path(__file__).parents[1]
    files = sorted(path for part in ("export", "protos") for path in (root / part).rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


_CODE = _code_digest()
"""Taken while the code is imported, not later: files may change under a running worker."""


@dataclass(frozen=True)
class LoweringCache:
    """A folder of lowerings; beyond the limit the one that was not used for longest goes first.

    versions: of all that lowers, our own code included; what others made is not taken.
    """

    folder: Path
    limit_bytes: int = LIMIT_BYTES
    versions: Mapping[str, str] = field(default_factory=lambda: {**tool_versions(), "code": _CODE})


@dataclass(frozen=True)
class Inputs:
    """What the files of a lowering follow from, beside the versions of what lowers.

    kind: of the bundle. parents: ids of what is lowered. settings: rank, context and the like.
    """

    kind: str
    parents: Mapping[str, str]
    recipe: Recipe
    settings: Mapping[str, Any]

    @property
    def seed(self) -> str:
        """A digest of them, 64 hex characters."""
        return digest_json([dict(self.parents), self.config({})])

    def config(self, versions: Mapping[str, str]) -> dict[str, Any]:
        """All but the parents, for an entry; how parity judges a recipe is no part of it."""
        recipe = {name: value for name, value in vars(self.recipe).items() if name != "thresholds"}
        named = {"kind": self.kind, "recipe": recipe, "settings": dict(self.settings)}
        return {**named, "versions": dict(versions)}


def default_cache() -> LoweringCache:
    """The cache of the user who runs this, unless `POCKETUNE_CACHE_DIR` names another folder."""
    import platformdirs

    named = os.environ.get(FOLDER_VARIABLE)
    return LoweringCache(Path(named or platformdirs.user_cache_path("pocketune")) / "lowerings")


def write_lowering(
    cache: LoweringCache | None,
    inputs: Inputs,
    directory: Path,
    write: Callable[[], Written],
    progress: Progress,
) -> Written:
    """Let `write` put its files into `directory`, or copy those that it wrote there before.

    cache: None keeps and takes nothing. A cache that cannot be written fails no export: what is
    wrong with it is among the warnings. Two processes that need the same wait for one another.
    """
    if cache is None:
        return _noted(write(), "not asked")
    config = inputs.config(cache.versions)
    name = digest_json([dict(inputs.parents), config])
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_locked(cache, name, progress))
            if entry := _found(cache.folder / name, inputs.parents, config):
                return _copied(entry, directory)
        except OSError as error:
            return _noted(write(), "not usable", f"no lowering is kept: {error}")
        before = _stamps(directory)
        written = write()
        made = [path for path, stamp in _stamps(directory).items() if before.get(path) != stamp]
        try:
            return _kept(cache, name, inputs.parents, config, written, directory, made)
        except OSError as error:
            return _noted(written, "not usable", f"the lowering was not kept: {error}")


@contextlib.contextmanager
def _locked(cache: LoweringCache, name: str, progress: Progress) -> Generator[None]:
    """Whoever makes, takes or removes an entry holds its lock."""
    locks = cache.folder / _LOCKS
    cache.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    locks.mkdir(exist_ok=True)
    with (locks / name).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("another process lowers the same; waiting for it", 0.0)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _found(path: Path, parents: Mapping[str, str], config: Mapping[str, Any]) -> Artifact | None:
    entry = finished(path, KIND, parents, config)
    if entry is None:
        shutil.rmtree(path, ignore_errors=True)  # damaged, if there is anything
    return entry


def _copied(entry: Artifact, directory: Path) -> Written:
    for name in entry.manifest.files:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(entry.file(name), directory / name)
    os.utime(entry.path)
    return _noted(Written(**entry.manifest.measured), "copied")


def _kept(
    cache: LoweringCache, name: str, parents: Mapping[str, str], config: Mapping[str, Any],
    written: Written, directory: Path, made: list[str],
) -> Written:  # fmt: skip
    if sum((directory / file).stat().st_size for file in made) > cache.limit_bytes:
        return _noted(written, "too large")
    with create(cache.folder / name, KIND, parents, config) as draft:
        for file in made:
            (draft.path / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(directory / file, draft.path / file)
        draft.measured |= dataclasses.asdict(written)
    with contextlib.suppress(FileNotFoundError):  # another process is at it, and makes room, too
        _make_room(cache)
    return _noted(written, "kept")


def _noted(written: Written, cache: str, *warnings: str) -> Written:
    measured = {**written.measured, "lowering_cache": cache}
    return dataclasses.replace(written, measured=measured, warnings=[*written.warnings, *warnings])


def _stamps(directory: Path) -> dict[str, tuple[int, int]]:
    """Relative path of each file -> when it was changed, and its size."""
    return {
        path.relative_to(directory).as_posix(): (path.stat().st_mtime_ns, path.stat().st_size)
        for path in directory.rglob("*")
        if path.is_file()
    }


def _make_room(cache: LoweringCache) -> None:
    """Remove entries, and what killed processes left of some, until the rest is small enough."""
    folders = [path for path in cache.folder.iterdir() if path.is_dir() and path.name != _LOCKS]
    sizes = {path: _size(path) for path in folders}
    excess = sum(sizes.values()) - cache.limit_bytes
    for path in sorted(folders, key=lambda path: path.stat().st_mtime_ns):
        if excess <= 0:
            return
        if _removed(cache, path):
            excess -= sizes[path]


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _removed(cache: LoweringCache, path: Path) -> bool:
    """False where somebody is at it."""
    name = path.name.lstrip(".").partition(".")[0]
    with (cache.folder / _LOCKS / name).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        shutil.rmtree(path, ignore_errors=True)
        return True
