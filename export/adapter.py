"""`export adapter`: a LoRA adapter becomes an AdapterBundle for one BaseBundle, in milliseconds.

In: a PEFT adapter, the bundle of its base, and the base model (for the goldens). Out: the adapter's
tensors in the backend's form under keys of its own, and the bundle's program with those keys. No
model is lowered.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from export.base import PROGRAM
from export.executorch.data_file import data_file
from export.executorch.layout import (
    FILE,
    Arrays,
    Layout,
    adapter_keys,
    patch_keys,
    read_layout,
)
from export.goldens import GoldenMaker, adapter_golden
from export.libraries import load_libraries
from export.peft_adapter import (
    fold,
    folded_digest,
    open_adapter,
    refuse_unrepresentable,
)
from export.prompts import golden_prompts
from export.recipes import Recipe, find_recipe
from protos.artifacts import (
    Artifact,
    create,
    digest_file,
    digest_json,
    finished,
    open_artifact,
    write_json,
)
from protos.base_model import BaseModel, load_tokenizer, open_base
from protos.errors import ArtifactError, MismatchError, UnsupportedError
from protos.golden import write_golden
from protos.half_file import pack
from protos.progress import Progress, part, silent

KIND = "AdapterBundle"
DATA_FILES = {"float32": "adapter.ptd", "float16": "adapter.ptd16"}
"""Where an adapter's tensors are, by their type on the wire."""
ADAPTER_FILE = "adapter.json"
FORMAT = 1


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
    """The resolved configuration of one adapter export; it is part of the bundle's identity."""

    layout: str
    recipe: str
    context_length: int
    goldens: bool
    prompts: str
    """Digest of the goldens' prompts; the texts are in the goldens themselves."""


def export_adapter(
    adapter: Path,
    bundle: Path,
    out: Path,
    *,
    base: str,
    prompts: Sequence[str] = (),
    goldens: bool = True,
    trust_base: bool = False,
    threads: int | None = None,
    progress: Progress = silent,
) -> Artifact:
    """Package an adapter. What is already at `out` from the same inputs is returned as it is.

    trust_base: accept a plain PEFT directory, which cannot prove its base; shapes are checked.

    Raises:
        MismatchError: adapter, bundle and base model do not belong together.
        UnsupportedError: the adapter uses something that this form cannot represent exactly.
        InputError, ArtifactError: a file is missing, malformed or altered.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    load_libraries()
    opened, model_files = open_artifact(bundle, "BaseBundle"), open_base(base)
    _check_base(opened, model_files)
    source = open_adapter(adapter, base_digest=model_files.digest, trust_base=trust_base)
    refuse_unrepresentable(source)
    layout = _layout(opened)
    resolved = AdapterConfig(
        layout="adapter",
        recipe=opened.config["recipe"],
        context_length=layout.context_length,
        goldens=goldens,
        prompts=digest_json(list(prompts)),
    )
    parents = {
        "adapter": source.id,
        "base_bundle": opened.id,
        "base_model": model_files.digest,
    }
    config = dataclasses.asdict(resolved)
    if done := finished(out, KIND, parents, config):
        return done
    with create(out, KIND, parents, config) as draft:
        started = time.perf_counter()
        progress("writing the adapter", 0.0)
        folded = fold(source, layout, _module_names(model_files))
        recipe = find_recipe(resolved.recipe)
        shipped = _shipped(source.path, folded, recipe)
        _write_adapter(draft.path, opened, layout, shipped, recipe)
        draft.measured["adapter_seconds"] = round(time.perf_counter() - started, 4)
        draft.measured["wire_bytes"] = sum(
            (draft.path / name).stat().st_size
            for name in (PROGRAM, DATA_FILES[recipe.adapter_dtype])
        )
        if goldens:
            started = time.perf_counter()
            make = _golden_maker(model_files, resolved, prompts, part(progress, 0.05, 1.0))
            write_golden(
                draft.path, adapter_golden(make, source.path, folded, shipped, layout.rank)
            )
            draft.measured["golden_seconds"] = round(time.perf_counter() - started, 3)
    return open_artifact(out, KIND)


def _check_base(bundle: Artifact, base: BaseModel) -> None:
    wanted = bundle.manifest.parents.get("base_model")
    if wanted != base.digest:
        raise MismatchError(
            f"{bundle.path}: this bundle was made from base model {str(wanted)[:12]}, but "
            f"{base.name} is {base.digest[:12]}; give the base that the bundle was exported from"
        )


def _layout(bundle: Artifact) -> Layout:
    layout = read_layout(bundle.file(FILE))
    if digest_file(bundle.file(PROGRAM)) != layout.program_sha256:
        raise ArtifactError(f"{bundle.path}: {FILE} describes another {PROGRAM}")
    return layout


def _module_names(base: BaseModel) -> list[str]:
    """Every module of the base, from its config alone."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        config = AutoConfig.from_pretrained(base.directory, local_files_only=True)
        model = AutoModelForCausalLM.from_config(config)
    return [name for name, _ in model.named_modules()]


def _shipped(path: Path, folded: Arrays, recipe: Recipe) -> Arrays:
    """The folded tensors as the phone gets them: rounded to the recipe's type, still float32.

    Raises:
        UnsupportedError: a value is too large for that type.
    """
    if recipe.adapter_dtype == "float32":
        return folded
    with np.errstate(over="ignore"):
        rounded = {name: a.astype(np.float16).astype(np.float32) for name, a in folded.items()}
    wide = [name for name, array in rounded.items() if not np.isfinite(array).all()]
    if wide:
        raise UnsupportedError(
            f"{path}: {wide[0]} holds values above 65,504, which float16 cannot; this recipe ships "
            "adapters as float16, executorch-xnnpack-fp32 as float32"
        )
    return rounded


def _write_adapter(
    directory: Path, bundle: Artifact, layout: Layout, shipped: Arrays, recipe: Recipe
) -> None:
    keys = adapter_keys(layout, folded_digest(shipped))
    program = patch_keys(bundle.file(PROGRAM).read_bytes(), layout, keys)
    (directory / PROGRAM).write_bytes(program)
    data = data_file({keys[name]: array for name, array in shipped.items()})
    half = recipe.adapter_dtype == "float16"
    (directory / DATA_FILES[recipe.adapter_dtype]).write_bytes(pack(data) if half else data)
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
        "layout": "adapter",
        "data": DATA_FILES[recipe.adapter_dtype],
        "rank": layout.rank,
    }
    write_json(directory / ADAPTER_FILE, {**described, "base_bundle": bundle.id, "slots": slots})


def _golden_maker(
    base: BaseModel, config: AdapterConfig, contents: Sequence[str], progress: Progress
) -> GoldenMaker:
    prompts = golden_prompts(load_tokenizer(base), contents, config.context_length)
    return GoldenMaker(base, find_recipe(config.recipe), prompts, progress)
