"""`export merged`: base and adapter become one self-contained bundle.

In: a base model, a PEFT adapter, a recipe. Out: an AdapterBundle that holds all weights, the
adapter merged in float32 before quantization. It costs a full lowering per user and
the size of the base, and takes adapters that the separate form refuses (DoRA, biases,
modules_to_save).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from export.adapter import KIND, AdapterConfig
from export.backend import Written, find_backend, summary
from export.base import golden_maker, write_texts
from export.families import check_family, choose_context
from export.goldens import load_peft, merge, merged_golden
from export.libraries import load_libraries, memory_given_back
from export.lowerings import Inputs, LoweringCache, write_lowering
from export.peft_adapter import open_adapter
from export.recipes import find_recipe
from protos.artifacts import Artifact, create, digest_json, finished, open_artifact
from protos.base_model import open_base
from protos.golden import write_golden
from protos.progress import Progress, part, silent


def export_merged(
    adapter: Path,
    out: Path,
    recipe: str,
    *,
    base: str,
    context_length: int | None = None,
    prompts: Sequence[str] = (),
    trust_base: bool = False,
    threads: int | None = None,
    cache: LoweringCache | None = None,
    progress: Progress = silent,
) -> Artifact:
    """Merge and lower. What is already at `out` from the same inputs is returned as it is, and
    what was lowered before is copied from the cache, if one is given.

    Raises:
        MismatchError: the adapter was trained on another base.
        UnsupportedError: the model cannot be exported, or PEFT cannot merge the adapter.
        InputError: something is missing or malformed.
    """
    chosen, model_files = find_recipe(recipe), open_base(base)
    check_family(model_files)
    find_backend(chosen).check(model_files)
    context = choose_context(model_files, chosen, context_length)
    source = open_adapter(adapter, base_digest=model_files.digest, trust_base=trust_base)
    resolved = AdapterConfig("merged", chosen.name, context, True, digest_json(list(prompts)))
    parents = {"adapter": source.id, "base_model": model_files.digest}
    config = dataclasses.asdict(resolved)
    if done := finished(out, KIND, parents, config):
        return done
    if threads is not None:
        torch.set_num_threads(threads)
    load_libraries()
    with create(out, KIND, parents, config) as draft, memory_given_back():
        started = time.perf_counter()
        target = write_texts(draft.path, model_files, chosen, context)
        make = golden_maker(target, prompts, part(progress, 0.0, 0.1))
        write_golden(draft.path, merged_golden(make, source.path))
        draft.measured["golden_seconds"] = round(time.perf_counter() - started, 3)
        started = time.perf_counter()
        inputs = Inputs(KIND, parents, chosen, {"context_length": context})
        lowering = part(progress, 0.1, 1.0)

        def write() -> Written:
            model = merge(load_peft(make.load(), source.path), source.path)
            return find_backend(chosen).write_merged(target, model, lowering)

        written = write_lowering(cache, inputs, draft.path, write, lowering)
        draft.measured["lowering_seconds"] = round(time.perf_counter() - started, 3)
        draft.measured |= summary(draft.path, written)
    return open_artifact(out, KIND)
