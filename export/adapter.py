"""`export adapter`: a LoRA adapter becomes an AdapterBundle for one BaseBundle, in milliseconds.

In: a PEFT adapter, the bundle of its base, and the base model (for the goldens). Out: the adapter's
tensors in the backend's own form, which the base bundle's files stand beside. No model is lowered.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from export.backend import find_backend, summary
from export.goldens import GoldenMaker
from export.libraries import load_libraries, memory_given_back
from export.peft_adapter import open_adapter
from export.prompt_format import prompt_format
from export.prompts import golden_prompts, template_clock
from export.recipes import find_recipe
from protos.artifacts import Artifact, create, digest_json, finished, open_artifact
from protos.base_model import BaseModel, load_tokenizer, open_base
from protos.errors import MismatchError
from protos.golden import write_golden
from protos.progress import Progress, part, silent

KIND = "AdapterBundle"


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
    mode: str | None = None,
    goldens: bool = True,
    trust_base: bool = False,
    threads: int | None = None,
    progress: Progress = silent,
) -> Artifact:
    """Package an adapter. What is already at `out` from the same inputs is returned as it is.

    mode: for MLC, `lora-parameters` (the default) or `merged`; ExecuTorch has one only.
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
    check_base(opened, model_files)
    recipe = find_recipe(opened.config["recipe"])
    backend = find_backend(recipe)
    source = open_adapter(adapter, base_digest=model_files.digest, trust_base=trust_base)
    resolved = AdapterConfig(
        layout=backend.adapter_layout(mode),
        recipe=recipe.name,
        context_length=opened.config["context_length"],
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
        progress("writing the adapter", 0.0)
        started = time.perf_counter()
        written, golden = backend.package(draft.path, opened, source, model_files, resolved.layout)
        draft.measured["adapter_seconds"] = round(time.perf_counter() - started, 4)
        draft.measured |= summary(draft.path, written)
        if goldens:
            started = time.perf_counter()
            with memory_given_back():
                make = _golden_maker(model_files, resolved, prompts, part(progress, 0.05, 1.0))
                write_golden(draft.path, golden(make))
            draft.measured["golden_seconds"] = round(time.perf_counter() - started, 3)
    return open_artifact(out, KIND)


def check_base(bundle: Artifact, base: BaseModel) -> None:
    """Raise MismatchError unless the bundle was made from this base model."""
    wanted = bundle.manifest.parents.get("base_model")
    if wanted != base.digest:
        raise MismatchError(
            f"{bundle.path}: this bundle was made from base model {str(wanted)[:12]}, but "
            f"{base.name} is {base.digest[:12]}; give the base that the bundle was exported from"
        )


def _golden_maker(
    base: BaseModel, config: AdapterConfig, contents: Sequence[str], progress: Progress
) -> GoldenMaker:
    tokenizer = load_tokenizer(base)
    clock = template_clock(tokenizer)
    prompts = golden_prompts(tokenizer, contents, config.context_length, context_end=False)
    eos_ids = prompt_format(base, tokenizer).eos_ids
    return GoldenMaker(base, find_recipe(config.recipe), prompts, eos_ids, clock, progress)
