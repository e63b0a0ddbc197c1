"""Bundles, opened and checked for what ExecuTorch itself never checks.

In: BaseBundle and AdapterBundle directories. Out: the files to load, known to belong together:
every digest is checked, then `fit` compares what the digests cannot tell.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mobile_runtime.binding import check_base, check_base_model, read_object, refuse
from mobile_runtime.fit import (
    fit_problems,
    foundation_problems,
    key_problems,
    probe_problems,
    program_problems,
    slot_problems,
    tensor_problems,
)
from protos.artifacts import Artifact, open_artifact
from protos.errors import ArtifactError, InputError, MismatchError, UnsupportedError
from protos.ptd import Tensor, read_ptd, read_ptd8

_DATA_FILES = {"adapter.ptd": read_ptd, "adapter.ptd8": read_ptd8}
"""How each form of an adapter's data file is read."""


@dataclass(frozen=True)
class Slot:
    """One adapter tensor that a program asks for by its key."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    size_bytes: int
    key: str

    @property
    def signature(self) -> tuple[str, tuple[int, ...], str, int]:
        """What must be equal in a base and an adapter that fits it."""
        return (self.name, self.shape, self.dtype, self.size_bytes)


@dataclass(frozen=True)
class _Bundle:
    artifact: Artifact

    @property
    def program(self) -> Path:
        return self.artifact.file("program.pte")


@dataclass(frozen=True)
class TemplateBundle(_Bundle):
    """A checked program that adapters' keys are written into; a ProbeBundle is no more than that.

    offsets: where in the program each slot's key stands, bytes, in the slots' order.
    """

    slots: list[Slot]
    offsets: list[int]


@dataclass(frozen=True)
class BaseBundle(TemplateBundle):
    """A checked BaseBundle. foundation: the base weights' places in their file."""

    foundation: list[Tensor]
    context_length: int
    vocab_size: int


@dataclass(frozen=True)
class AdapterBundle(_Bundle):
    """A checked AdapterBundle that keeps the adapter apart from its base.

    tensors: the adapter's places in its file, under the keys that its own program asks for.
    """

    slots: list[Slot]
    tensors: list[Tensor]


@dataclass(frozen=True)
class MergedBundle(_Bundle):
    """A checked AdapterBundle whose program holds base and adapter in one."""


def open_base(path: Path) -> BaseBundle:
    """Open a BaseBundle.

    Raises:
        InputError: nothing is there. ArtifactError: it is damaged or contradicts itself.
        UnsupportedError: it is for another backend than ExecuTorch with XNNPACK.
    """
    artifact = open_artifact(path, "BaseBundle")
    bundle, program, foundation = _template(artifact, _parse_base)
    problems = [
        *slot_problems(bundle.slots),
        *program_problems(bundle, program),
        *foundation_problems(bundle, foundation),
    ]
    refuse(path, problems, ArtifactError)
    return bundle


def open_probe(path: Path, base: BaseBundle) -> TemplateBundle:
    """Open a ProbeBundle of this base.

    Raises:
        InputError: nothing is there. ArtifactError: it is damaged or contradicts itself.
        MismatchError: it is of another base.
    """
    artifact = open_artifact(path, "ProbeBundle")
    wanted = artifact.manifest.parents.get("base_bundle")
    if wanted != base.artifact.id:
        raise MismatchError(
            f"{path}: this probe was made for the base bundle {wanted}, but {base.artifact.path} "
            f"is {base.artifact.id}; export the probe of this base"
        )
    bundle, program, foundation = _template(artifact, _parse_template)
    refuse(path, [*slot_problems(bundle.slots), *program_problems(bundle, program)], ArtifactError)
    refuse(path, probe_problems(bundle, foundation, base), MismatchError)
    return bundle


_Template = TypeVar("_Template", bound=TemplateBundle)


def _template(
    artifact: Artifact, parse: Callable[[Artifact, dict[str, Any]], _Template]
) -> tuple[_Template, str, dict[str, int]]:
    """What `layout.json` describes, the program's sha256, and the bytes of each constant."""
    source = artifact.file("layout.json")
    raw = read_object(source)
    if str(raw.get("backend")) != "executorch-xnnpack":
        raise UnsupportedError(
            f"{source}: backend is {raw.get('backend')!r}; this engine runs executorch-xnnpack"
        )
    try:
        foundation = {str(key): int(size) for key, size in raw["foundation"].items()}
        return parse(artifact, raw), str(raw["program"]["sha256"]), foundation
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(f"{source}: malformed layout ({error!r})") from None


def open_adapter(path: Path, base: BaseBundle | None) -> AdapterBundle | MergedBundle:
    """Open an AdapterBundle and check that it fits `base`; a merged one needs no base.

    Raises:
        InputError: nothing is there, or a base is needed and none is given.
        ArtifactError: it is damaged or contradicts itself.
        MismatchError: it was made for another base, or its program or tensors do not fit this one.
    """
    artifact = open_artifact(path, "AdapterBundle")
    source = artifact.file("adapter.json")
    raw = read_object(source)
    if raw.get("layout") == "merged":
        if any(name in artifact.manifest.files for name in _DATA_FILES):
            raise ArtifactError(f"{path}: a merged bundle holds no adapter data, this one does")
        check_base_model(artifact, base.artifact if base else None)
        if not raw.get("runs_here", True):
            raise UnsupportedError(
                f"{path}: lowered for {raw.get('backend')}; nothing here runs it"
            )
        return MergedBundle(artifact)
    if base is None:
        raise InputError(f"{path}: this adapter needs its base; give the BaseBundle as well")
    check_base(artifact, raw, base.artifact)
    if raw.get("layout") != "adapter":
        raise ArtifactError(
            f"{source}: layout is {raw.get('layout')!r}, expected adapter or merged"
        )
    try:
        read = _DATA_FILES[raw["data"]]
        bundle = AdapterBundle(artifact, _slots(raw["slots"]), read(artifact.file(raw["data"])))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(f"{source}: malformed adapter ({error!r})") from None
    refuse(path, [*slot_problems(bundle.slots), *tensor_problems(bundle)], ArtifactError)
    refuse(path, [*fit_problems(bundle, base)], MismatchError)
    refuse(path, key_problems(bundle), ArtifactError)
    return bundle


def layout_of(path: Path) -> str:
    """`adapter` or `merged`: how the AdapterBundle at `path` was packaged.

    Raises:
        InputError: nothing is there. ArtifactError: it is damaged or no AdapterBundle.
    """
    return str(read_object(open_artifact(path, "AdapterBundle").file("adapter.json")).get("layout"))


def runs_here(path: Path) -> bool:
    """Whether an engine here runs the AdapterBundle at `path`. Raises as `layout_of`."""
    raw = read_object(open_artifact(path, "AdapterBundle").file("adapter.json"))
    return bool(raw.get("runs_here", True))


def _slots(raw: Sequence[dict[str, Any]]) -> list[Slot]:
    return [
        Slot(
            name=str(slot["name"]),
            shape=tuple(int(size) for size in slot["shape"]),
            dtype=str(slot["dtype"]),
            size_bytes=int(slot["size_bytes"]),
            key=str(slot["key"]),
        )
        for slot in raw
    ]


def _parse_template(artifact: Artifact, raw: dict[str, Any]) -> TemplateBundle:
    offsets = [int(slot["offset"]) for slot in raw["slots"]]
    return TemplateBundle(artifact, _slots(raw["slots"]), offsets)


def _parse_base(artifact: Artifact, raw: dict[str, Any]) -> BaseBundle:
    return BaseBundle(
        artifact=artifact,
        slots=_slots(raw["slots"]),
        offsets=[int(slot["offset"]) for slot in raw["slots"]],
        foundation=read_ptd(artifact.file("foundation.ptd")),
        context_length=int(raw["context_length"]),
        vocab_size=int(raw["vocab_size"]),
    )
