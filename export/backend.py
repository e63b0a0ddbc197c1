"""The seam of the export: what a backend does, and how a recipe finds its own.

In: recipes. Out: the module that writes a phone runtime's files. Everything else about an export
(checks, identity, goldens, atomic writing) is the same for all backends and stands in `base`,
`adapter` and `merged`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from export.prompt_format import PromptFormat
from export.recipes import Recipe
from protos.base_model import BaseModel
from protos.progress import Progress

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerFast

    from export.goldens import GoldenMaker
    from export.peft_adapter import PeftAdapter
    from protos.artifacts import Artifact
    from protos.golden import Golden

_MODULES = {
    "executorch-xnnpack": "export.executorch.backend",
    "executorch-coreml": "export.executorch.accelerated",
    "executorch-vulkan": "export.executorch.accelerated",
    "mlc": "export.mlc.backend",
}


@dataclass(frozen=True)
class Target:
    """What is exported, and where to. `directory` holds the tokenizer and prompt format already."""

    directory: Path
    base: BaseModel
    recipe: Recipe
    context_length: int
    tokenizer: PreTrainedTokenizerFast
    asked: PromptFormat


@dataclass(frozen=True)
class Written:
    """What a backend has written.

    wire: names of the files that a phone fetches. measured: figures for the manifest. warnings: for
    the person who exports, a line each.
    """

    wire: Sequence[str]
    measured: Mapping[str, Any] = field(default_factory=dict[str, Any])
    warnings: Sequence[str] = ()


MakeGolden = Callable[["GoldenMaker"], "Golden"]
"""Makes the goldens of an adapter that has been written."""


class Backend(Protocol):
    """A module with these functions."""

    def check(self, base: BaseModel) -> None:
        """Raise UnsupportedError for a base that cannot be exported exactly."""
        ...

    def quantize(self, model: nn.Module, recipe: Recipe) -> None:
        """Replace the weights, in place, by those that the recipe ships."""
        ...

    def write_base(self, target: Target, rank: int, seed: str, progress: Progress) -> Written:
        """Write a base for adapters up to `rank`."""
        ...

    def write_merged(self, target: Target, model: nn.Module, progress: Progress) -> Written:
        """Write a float model with its adapter merged in."""
        ...

    def adapter_layout(self, mode: str | None) -> str:
        """The layout of an adapter in this mode; None is the backend's default.

        Raises:
            UnsupportedError: the backend has no such mode.
        """
        ...

    def package(
        self, directory: Path, bundle: Artifact, source: PeftAdapter, base: BaseModel, layout: str
    ) -> tuple[Written, MakeGolden]:
        """Write an adapter for a base bundle. Raises as `export_adapter` does."""
        ...


def find_backend(recipe: Recipe) -> Backend:
    """The backend of a recipe."""
    return cast("Backend", importlib.import_module(_MODULES[recipe.backend]))


def summary(directory: Path, written: Written) -> dict[str, Any]:
    """What a manifest records of `written`: the bytes on the wire, figures and warnings."""
    size = sum((directory / name).stat().st_size for name in written.wire)
    said = {"warnings": list(written.warnings)} if written.warnings else {}
    return {"wire_bytes": size, **written.measured, **said}
