"""ExecuTorch's Core ML and Vulkan backends: merged models for accelerators that are not here.

See `export.backend` for what each function promises. Both are lowered on Linux, and nothing here
can run them: bundle, manifest and parity say so. Neither keeps its constants in files of their own,
so an adapter is merged first. All of the model must end up in one delegate, or it is refused.

    Core ML  one token a call (`stateful`), the KV cache as Core ML state (iOS 18), float16
    Vulkan   called as XNNPACK's program (`wrapper`); linear layers int4 with int8 activations
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import nn

from export.backend import Target, Written
from export.executorch.lower import RunnerFacts, trace
from export.executorch.quantize import quantize_linear
from export.executorch.stateful import StatefulModule
from export.families import slides
from export.libraries import quiet
from export.recipes import Recipe
from protos.artifacts import write_json
from protos.base_model import BaseModel
from protos.errors import UnsupportedError
from protos.progress import Progress

PROGRAM = "program.pte"
ADAPTER_FILE = "adapter.json"
COREML, VULKAN = "executorch-coreml", "executorch-vulkan"
_DELEGATES = {COREML: "CoreMLBackend", VULKAN: "VulkanBackend"}
_OS_OF_STATE = "iOS18"
"""The first that keeps a program's state, here the KV cache, between calls."""


def check(base: BaseModel) -> None:
    """Refuse what these backends' attention cannot do.

    Raises:
        UnsupportedError: the model has sliding windows.
    """
    if slides(base.config):
        raise UnsupportedError(
            f"{base.directory}: sliding windows are lowered for XNNPACK only; use its recipes"
        )


def quantize(model: nn.Module, recipe: Recipe) -> None:
    """Core ML's weights are float16; Vulkan's linear layers int4, their scales float32."""
    if recipe.backend == VULKAN:
        quantize_linear(model, recipe.group_size, torch.float32)
        return
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half())


def write_base(*_: object) -> NoReturn:
    """No adapter can be apart from its base here; `export base` refuses before."""
    raise UnsupportedError("Core ML and Vulkan take merged adapters only; use `export merged`")


package = adapter_layout = write_base


def write_merged(target: Target, model: nn.Module, progress: Progress) -> Written:
    """One program that holds everything, and what is known of it without running it."""
    backend = target.recipe.backend
    quantize(model, target.recipe)
    facts = RunnerFacts.of(target.base, target.context_length, target.asked)
    with quiet():
        progress("tracing", 0.0)
        traced = _traced(model, backend, facts)
        progress("lowering", 0.2)
        program, found = _lowered(traced, backend, facts)
    _require_one_delegate(target, found)
    (target.directory / PROGRAM).write_bytes(program)
    described = {"format": 1, "layout": "merged", "backend": backend, "runs_here": False}
    write_json(target.directory / ADAPTER_FILE, described)
    return Written(
        [PROGRAM],
        {"verdict": "lowered, not run here", "delegates": found.delegates},
        ["lowered, not run here: nothing on this machine can run it, so parity cannot judge it"],
    )


@dataclass(frozen=True)
class Structure:
    """What a program consists of. delegates: ids; operators: those left to the phone's CPU."""

    delegates: list[str]
    operators: list[str]


def _traced(model: nn.Module, backend: str, facts: RunnerFacts) -> torch.export.ExportedProgram:
    if backend == VULKAN:
        return trace(model, facts.context_length)
    module = StatefulModule(model, facts.context_length).eval()
    example = (torch.zeros((1, 1), dtype=torch.long), torch.tensor([0]))
    with torch.no_grad():
        return torch.export.export(module, example, strict=False)


def _lowered(
    traced: torch.export.ExportedProgram, backend: str, facts: RunnerFacts
) -> tuple[bytes, Structure]:
    from executorch.exir import (
        EdgeCompileConfig,
        ExecutorchBackendConfig,
        to_edge_transform_and_lower,
    )

    constants = facts.constant_methods() | (
        {} if backend == VULKAN
        else {"enable_dynamic_shape": False, "use_sdpa_with_kv_cache": False}
    )  # fmt: skip
    with torch.no_grad():
        edge = to_edge_transform_and_lower(
            {"forward": traced},
            partitioner=[_partitioner(backend)],
            compile_config=EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=True),
            constant_methods=constants,
        )
        program = edge.to_executorch(ExecutorchBackendConfig(extract_delegate_segments=True))
    (plan,) = [p for p in program.executorch_program.execution_plan if p.name == "forward"]
    structure = Structure([d.id for d in plan.delegates], [o.name for o in plan.operators])
    return bytes(program.buffer), structure


def _partitioner(backend: str) -> Any:
    if backend == VULKAN:
        from executorch.backends.vulkan.partitioner.vulkan_partitioner import VulkanPartitioner

        return VulkanPartitioner()
    import coremltools
    from executorch.backends.apple.coreml.compiler import CoreMLBackend
    from executorch.backends.apple.coreml.partition import CoreMLPartitioner

    specs = CoreMLBackend.generate_compile_specs(
        minimum_deployment_target=coremltools.target[_OS_OF_STATE],
        compute_precision=coremltools.precision.FLOAT16,
    )
    return CoreMLPartitioner(compile_specs=specs)


def _require_one_delegate(target: Target, found: Structure) -> None:
    wanted = [_DELEGATES[target.recipe.backend]]
    if found.delegates != wanted or found.operators:
        raise UnsupportedError(
            f"{target.base.directory}: {target.recipe.name} leaves "
            f"{', '.join(found.operators[:4]) or 'nothing'} to the CPU and makes "
            f"{len(found.delegates)} delegates, expected {wanted[0]} to take all; use a recipe of "
            "executorch-xnnpack"
        )
