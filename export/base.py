"""`export base`: a base model becomes a BaseBundle, once per base model and recipe.

In: a Hugging Face causal LM. Out: the template program, its weights in one data file, the layout
that adapters must fit, tokenizer, prompt format and goldens. No adapter is in it: a runtime that
wants the base alone gives it zeros under the template's keys.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from export.executorch.layout import make_layout, write_layout
from export.executorch.lora import fill_template, insert_lora, slot_tensors
from export.executorch.lower import RunnerFacts, lower
from export.executorch.quantize import quantize
from export.families import check_family, choose_context
from export.goldens import GoldenMaker, base_golden
from export.libraries import load_libraries
from export.prompt_format import check_ids, prompt_format, write_prompt_format
from export.prompts import golden_prompts
from export.recipes import Recipe, find_recipe
from protos.artifacts import Artifact, create, digest_json, finished, open_artifact
from protos.base_model import BaseModel, load_model, load_tokenizer, open_base
from protos.errors import InputError
from protos.golden import write_golden
from protos.progress import Progress, part, silent

KIND = "BaseBundle"
PROGRAM = "program.pte"
FOUNDATION = "foundation.ptd"


@dataclasses.dataclass(frozen=True)
class BaseConfig:
    """The resolved configuration of one base export; it is part of the bundle's identity."""

    recipe: str
    rank: int
    context_length: int
    prompts: str
    """Digest of the goldens' prompts; the texts are in the goldens themselves."""


def export_base(
    base: str,
    out: Path,
    recipe: str,
    *,
    rank: int = 8,
    context_length: int | None = None,
    prompts: Sequence[str] = (),
    threads: int | None = None,
    progress: Progress = silent,
) -> Artifact:
    """Lower a base model. What is already at `out` from the same inputs is returned as it is.

    Raises:
        InputError, UnsupportedError: before anything is written; see `families` and `quantize`.
    """
    chosen, model_files = find_recipe(recipe), open_base(base)
    check_family(model_files)
    if rank < 1:
        raise InputError(f"rank is {rank}, at least 1 is needed")
    context = choose_context(model_files, context_length)
    resolved = BaseConfig(chosen.name, rank, context, digest_json(list(prompts)))
    parents, config = {"base_model": model_files.digest}, dataclasses.asdict(resolved)
    if done := finished(out, KIND, parents, config):
        return done
    if threads is not None:
        torch.set_num_threads(threads)
    load_libraries()
    with create(out, KIND, parents, config) as draft:
        started = time.perf_counter()
        facts = _write_goldens(
            draft.path, model_files, chosen, context, prompts, part(progress, 0.0, 0.1)
        )
        draft.measured["golden_seconds"] = round(time.perf_counter() - started, 3)
        started = time.perf_counter()
        seed = digest_json([parents, config])
        _write_program(draft.path, model_files, chosen, rank, facts, seed, part(progress, 0.1, 1.0))
        draft.measured["lowering_seconds"] = round(time.perf_counter() - started, 3)
        draft.measured["wire_bytes"] = sum(
            (draft.path / name).stat().st_size for name in (PROGRAM, FOUNDATION)
        )
    return open_artifact(out, KIND)


def _write_goldens(
    directory: Path,
    base: BaseModel,
    recipe: Recipe,
    context: int,
    contents: Sequence[str],
    progress: Progress,
) -> RunnerFacts:
    """Tokenizer, prompt format and goldens; gives what the program tells about itself."""
    tokenizer = load_tokenizer(base)
    asked = prompt_format(base, tokenizer)
    write_prompt_format(directory, tokenizer, asked)
    make = GoldenMaker(base, recipe, golden_prompts(tokenizer, contents, context), progress)
    check_ids(directory, make.prompts, add_special_tokens=asked.add_special_tokens)
    write_golden(directory, base_golden(make))
    return RunnerFacts.of(base, context, asked)


def _write_program(
    directory: Path,
    base: BaseModel,
    recipe: Recipe,
    rank: int,
    facts: RunnerFacts,
    seed: str,
    progress: Progress,
) -> None:
    progress("loading", 0.0)
    model = load_model(base, torch.float32)
    quantize(model, recipe)
    layers = insert_lora(model, rank)
    fill_template(layers, seed)
    template = {name: t.detach().numpy().copy() for name, t in slot_tensors(layers).items()}
    lowered = lower(model, facts, external=True, progress=progress)
    layout = make_layout(
        lowered,
        template,
        backend=recipe.backend,
        rank=rank,
        context_length=facts.context_length,
        vocab=facts.vocab_size,
    )
    (directory / PROGRAM).write_bytes(lowered.program)
    assert lowered.foundation is not None
    (directory / FOUNDATION).write_bytes(lowered.foundation)
    write_layout(directory, layout)
