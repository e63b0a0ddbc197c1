"""`export probe`: a second program over a base's weights that also says what each operator gives.

In: a BaseBundle and the base model it was made from. Out: a ProbeBundle, which a phone never gets:
a program and its layout, over the foundation file of the bundle itself. When a gate of parity
fails, `parity --probe` reads with it which operator the device gets wrong. It costs a lowering of
its own, so it is made when it is wanted, for a base that is out already as well.

    forward(tokens int64 [1, S], input_pos int64 [1])
        -> logits float32 [1, V], operators float32 [1, W], both of the last token

where W counts what each operator is given and then what it gives, one operator after the other as
`operators.json` lists them.
"""

from __future__ import annotations

import functools
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from export.adapter import check_base
from export.backend import Target
from export.executorch.backend import BACKEND, FOUNDATION, PROGRAM, lower_base
from export.executorch.data_file import read_data_file
from export.executorch.layout import write_layout
from export.executorch.wrapper import RunnerModule
from export.libraries import load_libraries
from export.prompt_format import prompt_format
from export.recipes import find_recipe
from export.reference import operators, tokens_first
from protos.artifacts import Artifact, create, finished, open_artifact, write_json
from protos.base_model import load_tokenizer, open_base
from protos.errors import UnsupportedError
from protos.progress import Progress, silent

KIND = "ProbeBundle"
OPERATORS = "operators.json"
FORMAT = 1
_CONFIG = {"operators": FORMAT}


class ProbeModule(RunnerModule):
    """The runner's module with what its operators are given and give as a second output.

    widths: filled by `forward`: operator's path -> how many numbers it is given, and gives.
    """

    def __init__(
        self, model: nn.Module, context_length: int, widths: dict[str, tuple[int, int]]
    ) -> None:
        super().__init__(model, context_length)
        self.operators, self.widths = operators(model), widths

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, tokens: torch.Tensor, input_pos: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        kept: list[torch.Tensor] = []

        def keep(name: str, _: nn.Module, given: Any, gives: torch.Tensor) -> None:
            sides = [tokens_first(self.model, each)[:, -1] for each in (given[0], gives)]
            kept.extend(side.float().reshape(1, -1) for side in sides)
            self.widths[name] = (kept[-2].shape[1], kept[-1].shape[1])

        hooks = [
            module.register_forward_hook(functools.partial(keep, name))
            for name, module in self.operators.items()
        ]
        try:
            logits = super().forward(tokens, input_pos)
        finally:
            for hook in hooks:
                hook.remove()
        return logits, torch.cat(kept, dim=1)


def export_probe(
    bundle: Path,
    out: Path,
    *,
    base: str,
    threads: int | None = None,
    progress: Progress = silent,
) -> Artifact:
    """Lower the probe of a base. What is already at `out` from the same bundle is returned.

    Raises:
        MismatchError: the bundle was made from another base model.
        UnsupportedError: it is no ExecuTorch bundle, or this build lowers the base to other weights
            than those that are in it.
    """
    opened, model_files = open_artifact(bundle, "BaseBundle"), open_base(base)
    check_base(opened, model_files)
    recipe, rank = find_recipe(opened.config["recipe"]), int(opened.config["rank"])
    if recipe.backend != BACKEND:
        raise UnsupportedError(f"{bundle}: a probe is for {BACKEND}, this is {recipe.backend}")
    parents = {"base_bundle": opened.id}
    if done := finished(out, KIND, parents, _CONFIG):
        return done
    if threads is not None:
        torch.set_num_threads(threads)
    load_libraries()
    with create(out, KIND, parents, _CONFIG) as draft:
        started = time.perf_counter()
        tokenizer = load_tokenizer(model_files)
        asked = prompt_format(model_files, tokenizer)
        context = int(opened.config["context_length"])
        target = Target(draft.path, model_files, recipe, context, tokenizer, asked)
        widths: dict[str, tuple[int, int]] = {}
        module = functools.partial(ProbeModule, widths=widths)
        lowered, layout, _ = lower_base(target, rank, opened.id, progress, module)
        assert lowered.foundation is not None
        _check_foundation(opened, lowered.foundation)
        (draft.path / PROGRAM).write_bytes(lowered.program)
        write_layout(draft.path, layout)
        write_json(draft.path / OPERATORS, {"format": FORMAT, "widths": list(widths.items())})
        draft.measured["lowering_seconds"] = round(time.perf_counter() - started, 3)
    return open_artifact(out, KIND)


def _check_foundation(bundle: Artifact, probed: bytes) -> None:
    """The probe runs over the bundle's own file, so it may ask for nothing that is not in it."""
    held = read_data_file(bundle.file(FOUNDATION).read_bytes())
    wrong = [key for key, data in read_data_file(probed).items() if held.get(key) != data]
    if wrong:
        raise UnsupportedError(
            f"{bundle.path}: this build lowers {len(wrong)} constants otherwise than they are in "
            f"it ({wrong[0][:40]} …); export base and adapter again, then the probe"
        )
