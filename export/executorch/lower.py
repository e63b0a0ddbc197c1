"""Lowering: from an eager model (quantized or not, with LoRA layers or not) to XNNPACK programs.

With LoRA layers the result has three parts: a small program, the base's weights ("foundation") and
the template adapter, whose tensors are found again by content. Without, all is in the program.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from export.executorch.wrapper import RunnerModule
from export.libraries import quiet
from export.prompt_format import PromptFormat
from protos.base_model import BaseModel
from protos.progress import Progress, silent

FOUNDATION = "foundation"
ADAPTER = "adapter"
_EXAMPLE_LENGTH = 7


@dataclass(frozen=True)
class Lowered:
    """The files of a lowered model; foundation and adapter are None for a self-contained one."""

    program: bytes
    foundation: bytes | None
    adapter: bytes | None


@dataclass(frozen=True)
class RunnerFacts:
    """What a program tells ExecuTorch's LLM runners about itself."""

    context_length: int
    vocab_size: int
    layers: int
    bos_id: int | None
    eos_ids: list[int]

    @classmethod
    def of(cls, base: BaseModel, context_length: int, prompt: PromptFormat) -> RunnerFacts:
        """The facts of a base with this context."""
        return cls(
            context_length=context_length,
            vocab_size=int(base.config["vocab_size"]),
            layers=int(base.config["num_hidden_layers"]),
            bos_id=prompt.bos_id,
            eos_ids=prompt.eos_ids,
        )

    def constant_methods(self) -> dict[str, Any]:
        """Their names are fixed by the runners (extension/llm/runner/constants.h)."""
        bos = {} if self.bos_id is None else {"get_bos_id": self.bos_id}
        return bos | {
            "get_max_seq_len": self.context_length,
            "get_max_context_len": self.context_length,
            "get_vocab_size": self.vocab_size,
            "get_n_layers": self.layers,
            "get_eos_ids": self.eos_ids,
            "use_kv_cache": True,
            "use_sdpa_with_kv_cache": True,
            "enable_dynamic_shape": True,
        }


def lower(
    model: nn.Module,
    facts: RunnerFacts,
    *,
    external: bool,
    progress: Progress = silent,
    module: Callable[[nn.Module, int], RunnerModule] = RunnerModule,
) -> Lowered:
    """Lower a model; it is taken over and cannot be used afterwards.

    external: keep the weights out of the program, LoRA layers apart from the rest. module: what is
    traced of it.
    """
    with quiet():
        progress("tracing", 0.0)
        traced = trace(model, facts.context_length, module)
        tags = _tags(traced) if external else {}
        _tag_delegated(traced, tags)
        progress("lowering", 0.2)
        edge = _delegate(traced, facts)
        progress("writing the program", 0.8)
        program = _to_program(edge, tags)
    progress("lowered", 1.0)
    data = program._tensor_data
    parts = {name: bytes(data[name]) if name in data else None for name in (FOUNDATION, ADAPTER)}
    return Lowered(bytes(program.buffer), parts[FOUNDATION], parts[ADAPTER])


def trace(
    model: nn.Module,
    context_length: int,
    module: Callable[[nn.Module, int], RunnerModule] = RunnerModule,
) -> torch.export.ExportedProgram:
    """The graph of a model, which is taken over."""
    from torchao.utils import unwrap_tensor_subclass

    unwrap_tensor_subclass(model)
    for each in model.modules():
        if isinstance(each, nn.Embedding):
            # It matters to gradients only, and with it ExecuTorch does not see an int8 embedding.
            each.padding_idx = None
    model.requires_grad_(requires_grad=False)
    wrapper = module(model, context_length).eval()
    example = (torch.zeros((1, _EXAMPLE_LENGTH), dtype=torch.long), torch.tensor([0]))
    length = torch.export.Dim("S", max=context_length - 1)
    with torch.no_grad():
        return torch.export.export(wrapper, example, dynamic_shapes=({1: length}, {}), strict=False)


def _tags(traced: torch.export.ExportedProgram) -> dict[str, str]:
    """Graph input -> the file that its tensor goes to."""
    signature = traced.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    return {
        node: ADAPTER if ".lora_A." in path or ".lora_B." in path else FOUNDATION
        for node, path in names.items()
    }


def _tag_delegated(traced: torch.export.ExportedProgram, tags: Mapping[str, str]) -> None:
    for node in traced.graph_module.graph.nodes:
        if node.op == "placeholder" and node.name in tags:
            node.meta.setdefault("custom", {})["delegate_constant_tag"] = tags[node.name]


def _delegate(traced: torch.export.ExportedProgram, facts: RunnerFacts) -> Any:
    """One partitioner does float and 8da4w alike: torchao's form needs no dynamic one."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower

    with torch.no_grad():
        return to_edge_transform_and_lower(
            {"forward": traced},
            partitioner=[XnnpackPartitioner()],
            compile_config=EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=True),
            constant_methods=facts.constant_methods(),
        )


def _to_program(edge: Any, tags: Mapping[str, str]) -> Any:
    """The program and its data files."""
    from executorch.exir import ExecutorchBackendConfig
    from executorch.exir.passes import MemoryPlanningPass

    config = ExecutorchBackendConfig(
        extract_delegate_segments=True,
        memory_planning_pass=MemoryPlanningPass(alloc_graph_input=False),
        do_quant_fusion_and_const_prop=True,
        external_constants=(lambda node: tags.get(node.name, FOUNDATION)) if tags else False,
    )
    return edge.to_executorch(config)
