"""ExecuTorch as a backend: a template program with its weights, and adapters under their own keys.

See `export.backend` for what each function promises. Lowering takes minutes and happens once for a
base; an adapter is its tensors, and the template program with the adapter's keys written into it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from export.backend import MakeGolden, Target, Written
from export.executorch.data_file import data_file
from export.executorch.layout import (
    FILE,
    Layout,
    adapter_keys,
    make_layout,
    patch_keys,
    read_layout,
    write_layout,
)
from export.executorch.lower import Lowered, RunnerFacts, lower
from export.executorch.quantize import quantize as quantize_model
from export.executorch.weights import locate, weight_digests
from export.executorch.wrapper import RunnerModule
from export.goldens import GoldenMaker, adapter_golden
from export.lora import fill_template, insert_lora, slot_tensors
from export.peft_adapter import (
    Arrays,
    PeftAdapter,
    fold,
    folded_digest,
    refuse_unrepresentable,
    shipped_form,
)
from export.recipes import Recipe, find_recipe
from protos.artifacts import Artifact, digest_file, write_json
from protos.base_model import BaseModel, load_model, skeleton
from protos.errors import ArtifactError, UnsupportedError
from protos.golden import Golden
from protos.int8_file import pack
from protos.progress import Progress
from protos.shipped_weights import StoredWeight

BACKEND = "executorch-xnnpack"
PROGRAM = "program.pte"
FOUNDATION = "foundation.ptd"
ADAPTER_FILE = "adapter.json"
FORMAT = 1
DATA_FILES = {"float32": "adapter.ptd", "int8": "adapter.ptd8"}
"""Where an adapter's tensors are, by their type on the wire."""


def check(base: BaseModel) -> None:
    """Every family that is exported at all has an ExecuTorch form."""


def quantize(model: nn.Module, recipe: Recipe) -> None:
    """See `executorch.quantize`."""
    quantize_model(model, recipe)


def write_base(target: Target, rank: int, seed: str, progress: Progress) -> Written:
    """The template program, the base's weights, and the layout that adapters must fit."""
    lowered, layout, digests = lower_base(target, rank, seed, progress)
    (target.directory / PROGRAM).write_bytes(lowered.program)
    assert lowered.foundation is not None
    (target.directory / FOUNDATION).write_bytes(lowered.foundation)
    write_layout(target.directory, layout, locate(digests, lowered.foundation))
    return Written([PROGRAM, FOUNDATION])


def lower_base(
    target: Target,
    rank: int,
    seed: str,
    progress: Progress,
    module: Callable[[nn.Module, int], RunnerModule] = RunnerModule,
) -> tuple[Lowered, Layout, list[StoredWeight]]:
    """A base with its template adapter, lowered; where the adapter's tensors are in it; and what
    `weights.locate` finds its weights by. Nothing is written.
    """
    progress("loading", 0.0)
    model = load_model(target.base, torch.float32)
    quantize_model(model, target.recipe)
    digests = weight_digests(model)
    layers = insert_lora(model, rank)
    fill_template(layers, seed)
    template = {name: t.detach().numpy().copy() for name, t in slot_tensors(layers).items()}
    facts = _facts(target)
    lowered = lower(model, facts, external=True, progress=progress, module=module)
    layout = make_layout(
        lowered,
        template,
        backend=target.recipe.backend,
        rank=rank,
        context_length=facts.context_length,
        vocab=facts.vocab_size,
    )
    return lowered, layout, digests


def write_merged(target: Target, model: nn.Module, progress: Progress) -> Written:
    """One program that holds everything."""
    quantize_model(model, target.recipe)
    lowered = lower(model, _facts(target), external=False, progress=progress)
    (target.directory / PROGRAM).write_bytes(lowered.program)
    write_json(target.directory / ADAPTER_FILE, {"format": FORMAT, "layout": "merged"})
    return Written([PROGRAM])


def adapter_layout(mode: str | None) -> str:
    """Adapters are always apart from their base here; `export merged` is the other way."""
    if mode is not None:
        raise UnsupportedError(
            f"mode {mode!r} is for MLC; an adapter for ExecuTorch is a file of its own, and "
            "`export merged` merges it"
        )
    return "adapter"


def package(
    directory: Path, bundle: Artifact, source: PeftAdapter, base: BaseModel, layout: str
) -> tuple[Written, MakeGolden]:
    """The adapter's data file, and the program under the adapter's own keys."""
    refuse_unrepresentable(source)
    slots, recipe = _layout(bundle), find_recipe(bundle.config["recipe"])
    folded = fold(source, slots, [name for name, _ in skeleton(base).named_modules()])
    shipped = shipped_form(source.path, folded, recipe)
    _write_adapter(directory, bundle, slots, shipped, recipe, layout)
    golden = functools.partial(_golden, source.path, folded, shipped, slots.rank)
    return Written([PROGRAM, DATA_FILES[recipe.adapter_dtype]]), golden


def _golden(adapter: Path, folded: Arrays, shipped: Arrays, rank: int, make: GoldenMaker) -> Golden:
    return adapter_golden(make, adapter, folded, shipped, rank)


def _facts(target: Target) -> RunnerFacts:
    return RunnerFacts.of(target.base, target.context_length, target.asked)


def _layout(bundle: Artifact) -> Layout:
    layout = read_layout(bundle.file(FILE))
    if digest_file(bundle.file(PROGRAM)) != layout.program_sha256:
        raise ArtifactError(f"{bundle.path}: {FILE} describes another {PROGRAM}")
    return layout


def _write_adapter(
    directory: Path, bundle: Artifact, layout: Layout, shipped: Arrays, recipe: Recipe, name: str
) -> None:
    keys = adapter_keys(layout, folded_digest(shipped))
    program = patch_keys(bundle.file(PROGRAM).read_bytes(), layout, keys)
    (directory / PROGRAM).write_bytes(program)
    data = data_file({keys[name]: array for name, array in shipped.items()})
    (directory / DATA_FILES[recipe.adapter_dtype]).write_bytes(
        pack(data) if recipe.adapter_dtype == "int8" else data
    )
    slots = [
        {
            "name": slot.name,
            "key": keys[slot.name],
            "shape": list(slot.shape),
            "dtype": slot.dtype,
            "size_bytes": slot.size_bytes,
        }
        for slot in layout.slots
    ]
    described = {
        "format": FORMAT,
        "layout": name,
        "data": DATA_FILES[recipe.adapter_dtype],
        "rank": layout.rank,
    }
    write_json(directory / ADAPTER_FILE, {**described, "base_bundle": bundle.id, "slots": slots})
