"""`export base`: a base model becomes a BaseBundle, once per base model and recipe.

In: a Hugging Face causal LM. Out: what the recipe's backend writes of it, with the layout that
adapters must fit, tokenizer, prompt format and goldens. No adapter is in it.
"""

from __future__ import annotations

import dataclasses
import gc
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from export.backend import Target, Written, find_backend, summary
from export.families import check_family, choose_context
from export.goldens import GoldenMaker, base_golden
from export.libraries import load_libraries, memory_given_back
from export.lowerings import Inputs, LoweringCache, write_lowering
from export.prompt_format import check_ids, prompt_format, write_prompt_format
from export.prompts import golden_prompts, template_clock
from export.recipes import Recipe, find_recipe
from protos.artifacts import Artifact, create, digest_json, finished, open_artifact
from protos.base_model import BaseModel, load_tokenizer, open_base
from protos.errors import InputError, UnsupportedError
from protos.golden import write_golden
from protos.progress import Progress, part, silent

KIND = "BaseBundle"


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
    cache: LoweringCache | None = None,
    progress: Progress = silent,
) -> Artifact:
    """Lower a base model. What is already at `out` from the same inputs is returned as it is, and
    what was lowered before is copied from the cache, if one is given.

    Raises:
        InputError, UnsupportedError: before anything is written; see `families` and `quantize`.
    """
    model_files = open_base(base)
    chosen, context = check_export(model_files, recipe, rank, context_length)
    resolved = BaseConfig(chosen.name, rank, context, digest_json(list(prompts)))
    parents, config = {"base_model": model_files.digest}, dataclasses.asdict(resolved)
    if done := finished(out, KIND, parents, config):
        return done
    if threads is not None:
        torch.set_num_threads(threads)
    load_libraries()
    with create(out, KIND, parents, config) as draft, memory_given_back():
        started = time.perf_counter()
        target = write_texts(draft.path, model_files, chosen, context)
        make = golden_maker(target, prompts, part(progress, 0.0, 0.1))
        write_golden(draft.path, base_golden(make))
        gc.collect()  # models hold themselves in cycles; lowering needs the memory
        draft.measured["golden_seconds"] = round(time.perf_counter() - started, 3)
        started = time.perf_counter()
        inputs = Inputs(KIND, parents, chosen, {"rank": rank, "context_length": context})
        lowering = part(progress, 0.1, 1.0)

        def write() -> Written:
            return find_backend(chosen).write_base(target, rank, inputs.seed, lowering)

        written = write_lowering(cache, inputs, draft.path, write, lowering)
        draft.measured["lowering_seconds"] = round(time.perf_counter() - started, 3)
        draft.measured |= summary(draft.path, written)
    return open_artifact(out, KIND)


def check_export(
    base: BaseModel, recipe: str, rank: int, context_length: int | None
) -> tuple[Recipe, int]:
    """The recipe, and the context that the program will have, if `export_base` can do it at all.
    It is asked in the beginning of longer work, too: it needs no more than the base's config.

    Raises:
        InputError, UnsupportedError: it cannot; see `families` and `quantize`.
    """
    chosen = find_recipe(recipe)
    check_family(base)
    find_backend(chosen).check(base)
    if chosen.adapter == "merged":
        raise UnsupportedError(
            f"recipe {chosen.name} has no base apart from its adapters; use `export merged`"
        )
    if rank < 1:
        raise InputError(f"rank is {rank}, at least 1 is needed")
    return chosen, choose_context(base, chosen, context_length)


def write_texts(directory: Path, base: BaseModel, recipe: Recipe, context: int) -> Target:
    """Write tokenizer and prompt format; gives what a backend needs to write the rest."""
    tokenizer = load_tokenizer(base)
    asked = prompt_format(base, tokenizer)
    write_prompt_format(directory, tokenizer, asked)
    return Target(directory, base, recipe, context, tokenizer, asked)


def golden_maker(target: Target, contents: Sequence[str], progress: Progress) -> GoldenMaker:
    """What makes the goldens of a target, its prompts checked against the written tokenizer."""
    clock = template_clock(target.tokenizer)
    prompts = golden_prompts(target.tokenizer, contents, target.context_length)
    special = target.asked.add_special_tokens
    check_ids(target.directory, prompts, add_special_tokens=special)
    return GoldenMaker(target.base, target.recipe, prompts, target.asked.eos_ids, clock, progress)
