"""Reading a PEFT adapter: what it asks for, whether we can do that exactly, and its folded tensors.

In: an Adapter artifact or a plain PEFT directory. Out: for every slot of a base's layout a float32
array with the scale folded into B. What cannot be represented exactly is refused by name.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from export.recipes import Recipe
from protos import int8_file
from protos.artifacts import MANIFEST, digest_file, digest_json, open_artifact, read_json
from protos.errors import InputError, MismatchError, UnsupportedError

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_FOLLOWED = frozenset({
    "r", "lora_alpha", "target_modules", "exclude_modules", "use_rslora", "rank_pattern",
    "alpha_pattern", "layers_to_transform", "layers_pattern",
})  # fmt: skip
"""Options that change the result and that `fold` follows."""
_WITHOUT_EFFECT = frozenset({
    "auto_mapping", "base_model_name_or_path", "ensure_weight_tying", "eva_config",
    "fan_in_fan_out", "inference_mode", "init_lora_weights", "lora_dropout", "megatron_core",
    "peft_type", "peft_version", "qalora_group_size", "revision", "runtime_config", "task_type",
})  # fmt: skip
"""Options that change nothing at inference on linear layers; what is in neither set is refused."""
_INITS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Initializations that leave the base as it is; the others train against a changed base."""


Arrays = Mapping[str, NDArray[np.float32]]
"""Slot name -> tensor, with the scale folded into B."""


class Slot(Protocol):
    """A place for one adapter tensor. name: `<module path>.lora_A` [rank, in] or `.lora_B`
    [out, rank].
    """

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def module(self) -> str: ...


class Layout(Protocol):
    """What an adapter must look like to fit: its highest rank, and a slot for each tensor."""

    @property
    def rank(self) -> int: ...
    @property
    def slots(self) -> Sequence[Slot]: ...
    @property
    def modules(self) -> list[str]: ...


@dataclass(frozen=True)
class PeftAdapter:
    """A PEFT directory that was found sound as files.

    id: of the artifact, else a digest of its two files. base_digest: of the base it was trained on;
    None for a plain directory, whose `base_model_name_or_path` proves nothing.
    """

    path: Path
    id: str
    base_digest: str | None
    config: Mapping[str, Any]


def open_adapter(path: Path, *, base_digest: str, trust_base: bool) -> PeftAdapter:
    """Open an adapter and make sure that it belongs to the base.

    Raises:
        InputError: it is no LoRA adapter, or a plain directory and `trust_base` is not set.
        MismatchError: it was trained on another base.
    """
    adapter = (
        _artifact(path) if (path / MANIFEST).is_file() else _plain(path, trust_base=trust_base)
    )
    if adapter.base_digest not in (None, base_digest):
        raise MismatchError(
            f"{path}: this adapter was trained on base model {str(adapter.base_digest)[:12]}, not "
            f"on {base_digest[:12]}; export it with its own base"
        )
    _check_type(adapter)
    return adapter


def refuse_unrepresentable(adapter: PeftAdapter) -> None:
    """Refuse options that the separate adapter form cannot represent exactly.

    Raises:
        UnsupportedError: names all of them.
    """
    from peft import LoraConfig

    defaults = LoraConfig().to_dict()
    refused = [
        f"{name}={value!r}"
        for name, value in adapter.config.items()
        if name not in _FOLLOWED | _WITHOUT_EFFECT and value and value != defaults.get(name)
    ]
    if refused:
        raise UnsupportedError(
            f"{adapter.path / CONFIG_FILE}: a separate adapter cannot represent "
            f"{', '.join(refused)}; try `export merged`"
        )


def fold(adapter: PeftAdapter, layout: Layout, module_names: Sequence[str]) -> Arrays:
    """Slot name -> float32 array [rank, in] or [out, rank] with alpha / r folded into B.

    PEFT's own rules decide which modules are adapted, with which rank and alpha. Lower ranks are
    padded with zeros, slots that the adapter does not target are zeros.
    module_names: every module of the base model.

    Raises:
        UnsupportedError: a target without a slot, or a rank above the layout's.
        MismatchError: tensors missing, unexpected or of another shape; all are named at once.
        InputError: not-a-number or infinite weights.
    """
    config = _lora_config(adapter, layout)
    targets = _targets(adapter, config, layout, module_names)
    ranks = {module: _rank(config, module) for module in targets}
    _check_ranks(adapter, ranks, layout.rank)
    tensors = _tensors(adapter.path)
    _check_tensors(adapter, tensors, ranks, layout)
    folded = {slot.name: _slot_array(slot, tensors, ranks, config) for slot in layout.slots}
    broken = [name for name, array in folded.items() if not np.isfinite(array).all()]
    if broken:
        raise InputError(f"{adapter.path / WEIGHTS_FILE}: not a number or infinite in {broken[:3]}")
    return folded


def shipped_form(path: Path, folded: Arrays, recipe: Recipe) -> Arrays:
    """The folded tensors as the phone gets them: rounded to the recipe's type, still float32.

    Raises:
        UnsupportedError: a value is too large for float16.
    """
    if recipe.adapter_dtype == "float32":
        return folded
    if recipe.adapter_dtype == "int8":
        return {name: int8_file.rounded(array) for name, array in folded.items()}
    with np.errstate(over="ignore"):
        rounded = {name: a.astype(np.float16).astype(np.float32) for name, a in folded.items()}
    wide = [name for name, array in rounded.items() if not np.isfinite(array).all()]
    if wide:
        raise UnsupportedError(
            f"{path}: {wide[0]} holds values above 65,504, which float16 cannot; this recipe ships "
            "adapters as float16, a float32 recipe as float32"
        )
    return rounded


def folded_digest(arrays: Arrays) -> str:
    """sha256 of what the adapter does: folded tensors with their names, so scale and rank count."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name}:{arrays[name].shape}\n".encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()


def adapted_modules(adapter: PeftAdapter) -> list[str]:
    """The linear layers that the adapter's file holds tensors of.

    Raises:
        InputError: it is unreadable.
    """
    end = ".lora_A.weight"
    names = [name for name in _tensors(adapter.path) if name.endswith(end)]
    return [name.removeprefix(_PREFIX).removesuffix(end) for name in names]


def highest_rank(adapter: PeftAdapter) -> int:
    """The highest rank that the adapter's config gives to any layer."""
    patterns = adapter.config.get("rank_pattern") or {}
    return max(int(adapter.config["r"]), *(int(rank) for rank in patterns.values()), 0)


def _artifact(path: Path) -> PeftAdapter:
    artifact = open_artifact(path, "Adapter")
    config = read_json(artifact.file(CONFIG_FILE))
    artifact.file(WEIGHTS_FILE)
    base = artifact.manifest.parents.get("base_model")
    if base is None:
        raise InputError(f"{path / MANIFEST}: this Adapter does not say which base_model it is for")
    return PeftAdapter(path, artifact.id, base, config)


def _plain(path: Path, *, trust_base: bool) -> PeftAdapter:
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (path / name).is_file():
            raise InputError(f"{path}: no {name} in it, so it is no PEFT adapter in safetensors")
    if not trust_base:
        raise InputError(
            f"{path}: a plain PEFT directory does not prove which base it was trained on; pass "
            "--trust-base if you know that it is this one"
        )
    files = [(name, digest_file(path / name)) for name in (CONFIG_FILE, WEIGHTS_FILE)]
    return PeftAdapter(path, digest_json(files), None, read_json(path / CONFIG_FILE))


def _check_type(adapter: PeftAdapter) -> None:
    """What neither form of export can do."""
    source = adapter.path / CONFIG_FILE
    if not isinstance(adapter.config, dict):
        raise InputError(f"{source}: expected a JSON object")
    if adapter.config.get("peft_type") != "LORA":
        raise UnsupportedError(f"{source}: peft_type {adapter.config.get('peft_type')!r}, not LORA")
    if adapter.config.get("layer_replication"):
        raise UnsupportedError(
            f"{source}: layer_replication={adapter.config['layer_replication']!r} gives the base "
            "model other layers; export a base that has them"
        )
    if adapter.config.get("init_lora_weights", True) not in _INITS:
        raise UnsupportedError(
            f"{source}: init_lora_weights={adapter.config['init_lora_weights']!r} changes the base "
            "model; convert the adapter with PEFT's path_initial_model_for_weight_conversion"
        )


def _lora_config(adapter: PeftAdapter, layout: Layout) -> LoraConfig:
    from peft import LoraConfig

    followed = {k: v for k, v in adapter.config.items() if k in _FOLLOWED and v is not None}
    if followed.get("target_modules") == "all-linear":
        followed["target_modules"] = layout.modules
    try:
        return LoraConfig(**followed)
    except (TypeError, ValueError) as error:
        raise InputError(f"{adapter.path / CONFIG_FILE}: {error}") from None


def _targets(
    adapter: PeftAdapter, config: LoraConfig, layout: Layout, module_names: Sequence[str]
) -> list[str]:
    from peft.tuners.tuners_utils import check_target_module_exists

    targets = [name for name in module_names if name and check_target_module_exists(config, name)]
    homeless = [name for name in targets if name not in layout.modules]
    if homeless:
        raise UnsupportedError(
            f"{adapter.path / CONFIG_FILE}: the base program has no place for an adapter on "
            f"{', '.join(homeless[:4])}; try `export merged`"
        )
    if not targets:
        raise MismatchError(
            f"{adapter.path / CONFIG_FILE}: target_modules {config.target_modules!r} name no "
            "module of this base"
        )
    return targets


def _rank(config: LoraConfig, module: str) -> int:
    from peft.utils.other import get_pattern_key

    patterns: dict[str, int] = config.rank_pattern or {}
    return int(patterns.get(get_pattern_key(list(patterns), module), config.r))


def _scale(config: LoraConfig, module: str, rank: int) -> float:
    """The scale alpha / r, or alpha / sqrt(r) for rank-stabilized LoRA (Kalajdzievski 2023)."""
    from peft.utils.other import get_pattern_key

    patterns: dict[str, float] = config.alpha_pattern or {}
    alpha = patterns.get(get_pattern_key(list(patterns), module), config.lora_alpha)
    return alpha / (math.sqrt(rank) if config.use_rslora else rank)


def _check_ranks(adapter: PeftAdapter, ranks: Mapping[str, int], most: int) -> None:
    highest = max(ranks.values())
    if highest > most:
        module = next(name for name, rank in ranks.items() if rank == highest)
        raise UnsupportedError(
            f"{adapter.path}: rank {highest} at {module}, the base is exported for rank {most}; "
            f"export the base again with --rank {highest}"
        )


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path / WEIGHTS_FILE)
    except (SafetensorError, OSError, KeyError) as error:
        raise InputError(f"{path / WEIGHTS_FILE}: unreadable: {error}") from None


def _stored_name(slot: Slot) -> str:
    return f"{_PREFIX}{slot.name}.weight"


def _check_tensors(
    adapter: PeftAdapter,
    tensors: Mapping[str, torch.Tensor],
    ranks: Mapping[str, int],
    layout: Layout,
) -> None:
    expected: dict[str, tuple[int, int]] = {}
    for slot in layout.slots:
        if slot.module in ranks:
            rank, (rows, columns) = ranks[slot.module], slot.shape
            shape = (rank, columns) if slot.name.endswith(".lora_A") else (rows, rank)
            expected[_stored_name(slot)] = shape
    problems = [f"{name} is missing" for name in expected if name not in tensors]
    problems += [f"{name} is unexpected" for name in tensors if name not in expected]
    problems += [
        f"{name} is {list(tensors[name].shape)}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
    if problems:
        more = f"; and {len(problems) - 6} more" if len(problems) > 6 else ""
        raise MismatchError(
            f"{adapter.path / WEIGHTS_FILE} does not fit its config and this base: "
            f"{'; '.join(problems[:6])}{more}"
        )


def _slot_array(
    slot: Slot, tensors: Mapping[str, torch.Tensor], ranks: Mapping[str, int], config: LoraConfig
) -> np.ndarray[Any, np.dtype[np.float32]]:
    array = np.zeros(slot.shape, np.float32)
    if slot.module not in ranks:
        return array
    rank = ranks[slot.module]
    tensor = tensors[_stored_name(slot)].float()
    if slot.name.endswith(".lora_A"):
        array[:rank] = tensor.numpy()
    else:
        array[:, :rank] = (tensor * _scale(config, slot.module, rank)).numpy()
    return array
