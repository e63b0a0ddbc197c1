"""MLC's directories, opened and checked for what TVM itself never checks.

In: BaseBundle and AdapterBundle directories. Out: configs and tensors that are known to belong
together. Digests are checked when the artifact is opened; here every parameter that the library
takes must be there, once, with its shape and dtype, and nothing else.

A base holds all parameters. An adapter's `tensor-cache.json` names shards of its base and shards of
its own, as MLC's loader wants it:

    delta-shards     its own shards replace the parameters that it changed (merged with the base)
    lora-parameters  all of the base's shards, and its own A and B
    merged           its own shards only; it needs no base
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mobile_runtime.binding import check_base, check_base_model, read_object, refuse
from mobile_runtime.mlc.config import LoraRanks, ModelConfig, parse_config
from mobile_runtime.mlc.model import Parameter, parameters
from protos.artifacts import Artifact, open_artifact, read_json
from protos.errors import ArtifactError, InputError, MismatchError, UnsupportedError
from protos.tensor_cache import FILE, Array, Record, Shard, read_shard, read_shards

BACKEND = "mlc"
CONFIG = "mlc-chat-config.json"
LAYOUTS = ("delta-shards", "lora-parameters", "merged")
_LORA_A = ".lora_a"
_SHOWN = 4


@dataclass(frozen=True)
class Bundle:
    """A checked directory.

    own: the shards that stand in it; shared: those that stand in its base.
    """

    artifact: Artifact
    config: ModelConfig
    own: list[Shard]
    shared: list[Shard]

    @cached_property
    def ranks(self) -> LoraRanks:
        """What the adapter adds to, if its A and B are parameters."""
        return _ranks(_records([*self.own, *self.shared]))

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Where MLC's own apps end an answer."""
        said = _json(self.artifact.file(CONFIG)).get("eos_token_id", [])
        return frozenset(said if isinstance(said, list) else [said])

    @property
    def own_bytes(self) -> int:
        return sum(shard.nbytes for shard in self.own)

    @property
    def shared_names(self) -> list[str]:
        return [record.name for record in _records(self.shared)]

    def read(self) -> Iterator[tuple[str, Array]]:
        """The tensors of its own shards, one shard in memory at a time."""
        for shard in self.own:
            yield from read_shard(shard, [self.artifact.path]).items()


@dataclass(frozen=True)
class BaseBundle(Bundle):
    """A checked base."""


@dataclass(frozen=True)
class AdapterBundle(Bundle):
    """A checked adapter that fits its base; layout: one of `LAYOUTS`."""

    layout: str

    @property
    def merged(self) -> bool:
        return self.layout == "merged"


def open_base(path: Path) -> BaseBundle:
    """Open a BaseBundle.

    Raises:
        InputError: nothing is there. ArtifactError: it is damaged or contradicts itself.
        UnsupportedError: it is for another backend, or of a family that the runtime does not have.
    """
    artifact = open_artifact(path, "BaseBundle")
    layout = read_object(artifact.file("layout.json"))
    if layout.get("backend") != BACKEND:
        raise UnsupportedError(
            f"{path / 'layout.json'}: backend is {layout.get('backend')!r}; this engine runs "
            f"{BACKEND}"
        )
    config = _config(artifact)
    said = (layout.get("context_length"), layout.get("vocab_size"))
    if said != (config.context_length, config.vocab_size):
        raise ArtifactError(
            f"{path}: layout.json says context and vocabulary {said}, {CONFIG} says "
            f"{(config.context_length, config.vocab_size)}; export the base again"
        )
    shards = read_shards(artifact.file(FILE))
    refuse(
        path,
        [*_shard_problems(artifact, shards), *_parameter_problems(config, shards)],
        ArtifactError,
    )
    return BaseBundle(artifact, config, shards, [])


def open_adapter(path: Path, base: BaseBundle | None) -> AdapterBundle:
    """Open an AdapterBundle and check that it fits `base`; a merged one needs no base.

    Raises:
        InputError: nothing is there, or a base is needed and none is given.
        ArtifactError: it is damaged or contradicts itself.
        MismatchError: it was made for another base, or its tensors do not fit this one.
    """
    artifact = open_artifact(path, "AdapterBundle")
    raw = read_object(artifact.file("adapter.json"))
    layout = raw.get("layout")
    if layout == "merged":
        check_base_model(artifact, base.artifact if base else None)
        return _open_merged(artifact)
    if base is None:
        raise InputError(f"{path}: this adapter needs its base; give the BaseBundle as well")
    check_base(artifact, raw, base.artifact)
    if layout not in LAYOUTS:
        raise ArtifactError(
            f"{path / 'adapter.json'}: layout is {layout!r}, expected {', '.join(LAYOUTS)}"
        )
    return _open_beside(artifact, layout, base)


def _open_merged(artifact: Artifact) -> AdapterBundle:
    config, shards = _config(artifact), read_shards(artifact.file(FILE))
    refuse(
        artifact.path,
        [*_shard_problems(artifact, shards), *_parameter_problems(config, shards)],
        ArtifactError,
    )
    return AdapterBundle(artifact, config, shards, [], "merged")


def _open_beside(artifact: Artifact, layout: str, base: BaseBundle) -> AdapterBundle:
    """An adapter whose cache names the base's shards beside its own."""
    theirs = {shard.dataPath: shard for shard in base.own}
    shards = read_shards(artifact.file(FILE))
    shared = [shard for shard in shards if shard.dataPath in theirs]
    own = [shard for shard in shards if shard.dataPath not in theirs]
    bundle = AdapterBundle(artifact, base.config, own, shared, layout)
    refuse(artifact.path, _shard_problems(artifact, own), ArtifactError)
    problems = _config_problems(artifact, base)
    problems += [
        f"{shard.dataPath} is not as in the base"
        for shard in shared
        if shard != theirs[shard.dataPath]
    ]
    problems += _layout_problems(bundle, base)
    problems += _parameter_problems(base.config, shards)
    refuse(artifact.path, problems, MismatchError)
    return bundle


def _config_problems(artifact: Artifact, base: BaseBundle) -> list[str]:
    """A phone reads the adapter's own config: the base's, but for what is said of the adapter."""
    mine, theirs = _json(artifact.file(CONFIG)), _json(base.artifact.file(CONFIG))
    differ = {key for key in {*mine, *theirs} if mine.get(key) != theirs.get(key)}
    differ -= {"model_type", "model_config"}
    inner = (dict(mine.get("model_config", {})), dict(theirs["model_config"]))
    inner[0].pop("lora_ranks", None)
    if inner[0] != inner[1]:
        differ.add("model_config")
    if mine.get("model_type") not in (base.config.family, f"{base.config.family}_lora"):
        differ.add("model_type")
    return [f"its {CONFIG} has another {key} than the base's" for key in sorted(differ)]


def _layout_problems(bundle: AdapterBundle, base: BaseBundle) -> list[str]:
    if bundle.layout == "delta-shards" and bundle.ranks:
        return ["its layout is delta-shards, but it holds A and B of an adapter"]
    missing = [shard.dataPath for shard in base.own if shard not in bundle.shared]
    if bundle.layout == "lora-parameters" and missing:
        return [f"its layout is lora-parameters, but it does not name the base's {_some(missing)}"]
    return []


def _shard_problems(artifact: Artifact, shards: Sequence[Shard]) -> list[str]:
    """Each shard is a file of the artifact, as long as the cache says."""
    files = artifact.manifest.files
    problems: list[str] = []
    for shard in shards:
        if shard.dataPath not in files:
            problems.append(f"{FILE} names {shard.dataPath}, which is not in the bundle")
        elif files[shard.dataPath].size_bytes != shard.nbytes:
            problems.append(
                f"{shard.dataPath} has {files[shard.dataPath].size_bytes} bytes, {FILE} says "
                f"{shard.nbytes}"
            )
    return problems


def _parameter_problems(config: ModelConfig, shards: Sequence[Shard]) -> list[str]:
    """The tensors are exactly what the library takes, by name, shape and dtype."""
    records = {record.name: record for record in _records(shards)}
    wanted = {each.name: each for each in parameters(config, _ranks(records.values()))}
    problems: list[str] = []
    if missing := sorted(wanted.keys() - records.keys()):
        problems.append(f"parameters are missing: {_some(missing)}")
    if extra := sorted(records.keys() - wanted.keys()):
        problems.append(f"parameters that the model does not have: {_some(extra)}")
    for name in sorted(wanted.keys() & records.keys()):
        asked = (list(wanted[name].shape), _stored_dtype(config, wanted[name]))
        found = (records[name].shape, records[name].dtype)
        if asked != found:
            problems.append(f"{name} is {found[1]} {found[0]}, expected {asked[1]} {asked[0]}")
    return problems


def _stored_dtype(config: ModelConfig, parameter: Parameter) -> str:
    return parameter.dtype if parameter.dtype == "uint32" else config.stored_dtype


def _ranks(records: Iterable[Record]) -> dict[str, int]:
    return {
        record.name.removesuffix(_LORA_A): record.shape[0]
        for record in records
        if record.name.endswith(_LORA_A)
    }


def _records(shards: Sequence[Shard]) -> list[Record]:
    return [record for shard in shards for record in shard.records]


def _config(artifact: Artifact) -> ModelConfig:
    source = artifact.file(CONFIG)
    try:
        return parse_config(_json(source))
    except UnsupportedError as error:
        raise UnsupportedError(f"{source}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(f"{source}: malformed config ({error!r})") from None


def _json(source: Path) -> Mapping[str, Any]:
    try:
        raw = read_json(source)
    except InputError as error:
        raise ArtifactError(str(error)) from None
    if not isinstance(raw, dict):
        raise ArtifactError(f"{source}: expected a JSON object")
    return raw


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
