"""MLC as a backend: weights and config that stock MLC reads, and adapters in two forms.

See `export.backend` for what each function promises. No library is compiled here: it does not
depend on the weights, and an app takes it from MLC's own tools (docs/mlc.md).

    lora-parameters   A and B are parameters of the library; a few MB a user, exact, and the library
                      must be built with `lora_model.py`
    merged            merged in float32 before quantization; the groups of parameters that change
                      are in the user's own shards, all others are shared ("delta-shards")

4-bit groups drown a small change of their weights, so `lora-parameters` is the default: see
`_delta`, whose figures are in every merged bundle.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from export.backend import MakeGolden, Target, Written
from export.goldens import GoldenMaker, adapter_golden, load_peft, merge, merged_golden
from export.mlc.chat_config import FILE as CHAT_CONFIG
from export.mlc.chat_config import check_mlc, read_chat_config, with_lora, write_chat_config
from export.mlc.lora import lora_layout, lora_parameters, ranks
from export.mlc.parameters import (
    GROUPS,
    Array,
    Parameter,
    State,
    check_state,
    decoded,
    encoded,
    mlc_name,
    parameters,
    stacked,
    stored_weights,
)
from export.mlc.quantize import quantize as quantize_model
from export.peft_adapter import Arrays, PeftAdapter, fold, refuse_unrepresentable, shipped_form
from export.recipes import Recipe, find_recipe
from protos.artifacts import Artifact, write_json
from protos.base_model import BaseModel, load_model, skeleton
from protos.errors import UnsupportedError
from protos.golden import Golden
from protos.progress import Progress
from protos.shipped_weights import weights_json
from protos.tensor_cache import FILE as TENSOR_CACHE
from protos.tensor_cache import (
    Shard,
    read_shard,
    read_shards,
    read_tensor_cache,
    write_shards,
    write_tensor_cache,
)

LAYOUT_FILE = "layout.json"
ADAPTER_FILE = "adapter.json"
FORMAT = 1
LAYOUTS = {"lora-parameters": "lora-parameters", "merged": "delta-shards"}
"""Mode of `export adapter` -> layout of the bundle."""
_SHARD = "params_shard"
_DROWNED = 0.7
"""Cosine to the true change of the weights, below which a person is warned."""


def check(base: BaseModel) -> None:
    """See `chat_config.check_mlc`."""
    check_mlc(base)


def quantize(model: nn.Module, recipe: Recipe) -> None:
    """See `mlc.quantize`."""
    quantize_model(model, recipe)


def write_base(target: Target, rank: int, seed: str, progress: Progress) -> Written:
    """A model directory as MLC reads it; every group of parameters has shards of its own."""
    progress("loading", 0.0)
    state = load_model(target.base, torch.float32).state_dict()
    shards = _write_weights(target, state, progress)
    value = {
        "format": FORMAT,
        "backend": target.recipe.backend,
        "quantization": mlc_name(target.recipe),
        "context_length": target.context_length,
        "vocab_size": int(target.base.config["vocab_size"]),
        "weights": weights_json(stored_weights(target.base, state, target.recipe)),
    }
    write_json(target.directory / LAYOUT_FILE, value)
    return Written(_wire(shards))


def write_merged(target: Target, model: nn.Module, progress: Progress) -> Written:
    """The same with the adapter's weights: self-contained, for stock MLC."""
    state = model.state_dict()
    shards = _write_weights(target, state, progress)
    write_json(target.directory / ADAPTER_FILE, {"format": FORMAT, "layout": "merged"})
    before = load_model(target.base, torch.float32).state_dict()
    changed = [p for p in parameters(target.base) if _differs(p, before, state)]
    stored = dict(encoded(changed, before, target.recipe))
    written = read_tensor_cache(target.directory / TENSOR_CACHE, [target.directory])
    measured, warnings = _delta(changed, before, state, stored, written, target.recipe)
    return Written(_wire(shards), measured, warnings)


def adapter_layout(mode: str | None) -> str:
    """`lora-parameters` unless `merged` is asked for."""
    if mode not in (None, *LAYOUTS):
        raise UnsupportedError(f"mode {mode!r} is unknown; MLC has {' and '.join(LAYOUTS)}")
    return LAYOUTS[mode or "lora-parameters"]


def package(
    directory: Path, bundle: Artifact, source: PeftAdapter, base: BaseModel, layout: str
) -> tuple[Written, MakeGolden]:
    """The user's shards, and the tensor cache that names them beside the base's."""
    write = _write_lora if layout == "lora-parameters" else _write_delta
    return write(directory, bundle, source, base)


def _write_weights(target: Target, state: State, progress: Progress) -> list[Shard]:
    check_state(target.base, state)
    write_chat_config(
        target.directory, target.base, target.tokenizer, target.asked, target.recipe,
        target.context_length,
    )  # fmt: skip
    shards: list[Shard] = []
    for place, group in enumerate(GROUPS):
        progress(f"writing the weights ({group})", place / len(GROUPS))
        chosen = [p for p in parameters(target.base) if p.group == group]
        tensors = encoded(chosen, state, target.recipe)
        shards += write_shards(target.directory, f"{_SHARD}_{group}", tensors)
    write_tensor_cache(target.directory, shards)
    return shards


def _write_lora(
    directory: Path, bundle: Artifact, source: PeftAdapter, base: BaseModel
) -> tuple[Written, MakeGolden]:
    refuse_unrepresentable(source)
    recipe, model = find_recipe(bundle.config["recipe"]), skeleton(base)
    modules = dict(model.named_modules())
    shapes = {
        name: (module.out_features, module.in_features)
        for name, module in modules.items()
        if isinstance(module, nn.Linear) and ".layers." in name
    }
    layout = lora_layout(source, shapes)
    folded = fold(source, layout, list(modules))
    shipped = shipped_form(source.path, folded, recipe)
    dtype = np.dtype(recipe.adapter_dtype)
    fused = lora_parameters(base, layout, shipped, shapes)
    user = write_shards(directory, f"{_SHARD}_user", ((name, a.astype(dtype)) for name, a in fused))
    base_shards = read_shards(bundle.file(TENSOR_CACHE))
    write_tensor_cache(directory, [*base_shards, *user])
    chat = with_lora(read_chat_config(bundle.path), ranks(base, layout))
    write_json(directory / CHAT_CONFIG, chat)
    _describe(directory, bundle, "lora-parameters", layout.rank)
    golden = functools.partial(_lora_golden, source.path, folded, shipped, layout.rank)
    return Written(_wire(user), _shares(base_shards, user)), golden


def _lora_golden(
    adapter: Path, folded: Arrays, shipped: Arrays, rank: int, make: GoldenMaker
) -> Golden:
    return adapter_golden(make, adapter, folded, shipped, rank)


def _write_delta(
    directory: Path, bundle: Artifact, source: PeftAdapter, base: BaseModel
) -> tuple[Written, MakeGolden]:
    recipe = find_recipe(bundle.config["recipe"])
    before = load_model(base, torch.float32).state_dict()
    after = merge(load_peft(load_model(base, torch.float32), source.path), source.path).state_dict()
    check_state(base, after)
    changed = [p for p in parameters(base) if _differs(p, before, after)]
    groups = {parameter.group for parameter in changed}
    chosen = [p for p in parameters(base) if p.group in groups]
    user = write_shards(directory, f"{_SHARD}_user", encoded(chosen, after, recipe))
    names = {record.name for shard in user for record in shard.records}
    theirs = read_shards(bundle.file(TENSOR_CACHE))
    replaced = [shard for shard in theirs if shard.records[0].name in names]
    shared = [shard for shard in theirs if shard not in replaced]
    write_tensor_cache(directory, [*shared, *user])
    write_json(directory / CHAT_CONFIG, read_chat_config(bundle.path))
    _describe(directory, bundle, "delta-shards", None)
    stored, stored_now = _read(replaced, bundle.path), _read(user, directory)
    measured, warnings = _delta(changed, before, after, stored, stored_now, recipe)
    written = Written(_wire(user), {**_shares(shared, user), **measured}, warnings)
    return written, functools.partial(_merged_golden, source.path)


def _merged_golden(adapter: Path, make: GoldenMaker) -> Golden:
    return merged_golden(make, adapter)


def _differs(parameter: Parameter, before: State, after: State) -> bool:
    return any(not torch.equal(before[part], after[part]) for part in parameter.parts)


def _read(shards: Sequence[Shard], directory: Path) -> dict[str, Array]:
    return {name: a for shard in shards for name, a in read_shard(shard, [directory]).items()}


def _delta(
    changed: Sequence[Parameter],
    before: State,
    after: State,
    stored_before: Mapping[str, Array],
    stored_after: Mapping[str, Array],
    recipe: Recipe,
) -> tuple[dict[str, float], list[str]]:
    """What is left of the adapter once the merged weights are stored.

    The true change of all changed matrices, taken as one vector, against the change between what
    is stored with and without the adapter: cosine, and the ratio of their norms.
    """
    dot = true_square = stored_square = 0.0
    for parameter in (p for p in changed if p.is_matrix):
        true = stacked(parameter, after) - stacked(parameter, before)
        stored = decoded(parameter, stored_after, true.shape[1])
        stored -= decoded(parameter, stored_before, true.shape[1])
        dot += float(np.vdot(true, stored))
        true_square += float(np.vdot(true, true))
        stored_square += float(np.vdot(stored, stored))
    if not true_square or not stored_square:
        return {"delta_cosine": 0.0, "delta_norm_ratio": 0.0}, ["the adapter changes no weight"]
    cosine = dot / np.sqrt(true_square * stored_square)
    ratio = float(np.sqrt(stored_square / true_square))
    measured = {"delta_cosine": round(float(cosine), 4), "delta_norm_ratio": round(ratio, 4)}
    if cosine >= _DROWNED:
        return measured, []
    return measured, [
        f"merging drowns the adapter: after {mlc_name(recipe)} the change of the weights has "
        f"cosine {cosine:.2f} with the adapter's; use --mode lora-parameters, or more bits"
    ]


def _describe(directory: Path, bundle: Artifact, layout: str, rank: int | None) -> None:
    value = {"format": FORMAT, "layout": layout, "rank": rank, "base_bundle": bundle.id}
    write_json(directory / ADAPTER_FILE, value)


def _wire(shards: Sequence[Shard]) -> list[str]:
    return [CHAT_CONFIG, TENSOR_CACHE, *(shard.dataPath for shard in shards)]


def _shares(shared: Sequence[Shard], user: Sequence[Shard]) -> dict[str, int]:
    return {
        "shared_shard_bytes": sum(shard.nbytes for shard in shared),
        "user_shard_bytes": sum(shard.nbytes for shard in user),
    }
