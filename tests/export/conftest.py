"""Tiny random models, PEFT adapters on them, their exports, and the runtime by its pybindings.

Lowering takes some ten seconds even for tiny models, so each bundle is made once per session.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from export.adapter import export_adapter
from export.base import export_base
from export.executorch.data_file import ALIGNMENT
from protos.artifacts import Artifact, create
from protos.base_model import open_base

ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
FP32, INT4 = "executorch-xnnpack-fp32", "executorch-xnnpack-8da4w"
RANK = 4

MakeAdapter = Callable[..., Path]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tiny operators gain nothing from more, and wait for each other on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _foreign_warnings() -> None:
    """PEFT warns of what will change in transformers; it is not ours to fix."""
    import warnings

    warnings.simplefilter("ignore", FutureWarning)
    warnings.simplefilter("ignore", UserWarning)


def _widened(model: Any) -> Any:
    """Random models are shy: doubled matrices give logits that differ from each other."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(2.0)
    return model


@pytest.fixture(scope="session")
def llama(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers, head not tied, chat template, context 128."""
    import shutil

    from transformers import LlamaConfig, LlamaForCausalLM

    directory = tmp_path_factory.mktemp("models") / "llama"
    shutil.copytree(tiny_base, directory)
    vocab = json.loads((tiny_base / "config.json").read_text())["vocab_size"]
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
        tie_word_embeddings=False, eos_token_id=2, bos_token_id=1,
    )  # fmt: skip
    _widened(LlamaForCausalLM(config)).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def qwen3(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One layer, tied head, query and key norms, a pad token, no chat template."""
    import shutil

    from transformers import Qwen3Config, Qwen3ForCausalLM

    directory = tmp_path_factory.mktemp("models") / "qwen3"
    shutil.copytree(tiny_base, directory)
    (directory / "chat_template.jinja").unlink()
    vocab = json.loads((tiny_base / "config.json").read_text())["vocab_size"]
    torch.manual_seed(2)
    config = Qwen3Config(
        vocab_size=vocab, hidden_size=64, intermediate_size=96, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, head_dim=32, max_position_embeddings=128,
        tie_word_embeddings=True, pad_token_id=0, eos_token_id=2, bos_token_id=1,
    )  # fmt: skip
    _widened(Qwen3ForCausalLM(config)).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def qwen2(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers, biases, head not tied."""
    import shutil

    from transformers import Qwen2Config, Qwen2ForCausalLM

    directory = tmp_path_factory.mktemp("models") / "qwen2"
    shutil.copytree(tiny_base, directory)
    vocab = json.loads((tiny_base / "config.json").read_text())["vocab_size"]
    torch.manual_seed(4)
    config = Qwen2Config(
        vocab_size=vocab + 8,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=96,
        tie_word_embeddings=False,
        pad_token_id=0,
        eos_token_id=2,
        bos_token_id=1,
    )  # fmt: skip  (8 more: Qwen2's tokenizer class adds an end token of its own)
    model = _widened(Qwen2ForCausalLM(config))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "bias" in name:
                parameter.normal_(0, 0.3)
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def make_adapter(tmp_path_factory: pytest.TempPathFactory) -> MakeAdapter:
    """Random PEFT adapters: `make_adapter(base, seed, **LoraConfig options)` -> plain directory."""

    def make(base: Path, seed: int = 1, **options: Any) -> Path:
        import warnings

        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        settings = {"r": RANK, "lora_alpha": 8, "target_modules": ALL_LINEAR} | options
        directory = tmp_path_factory.mktemp("adapters") / f"{base.name}-{seed}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = AutoModelForCausalLM.from_pretrained(base)
            tuned = get_peft_model(model, LoraConfig(**settings, task_type="CAUSAL_LM"))
            torch.manual_seed(seed)
            with torch.no_grad():
                for name, parameter in tuned.named_parameters():
                    if "lora_" in name and parameter.dim() == 2:
                        parameter.normal_(0, 0.1)
            tuned.save_pretrained(directory)
        return directory

    return make


@pytest.fixture(scope="session")
def as_artifact(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path, Path], Path]:
    """A plain PEFT directory as the Adapter artifact that training writes."""

    def wrap(adapter: Path, base: Path) -> Path:
        out = tmp_path_factory.mktemp("artifacts") / "adapter"
        with create(out, "Adapter", {"base_model": open_base(str(base)).digest}, {}) as draft:
            for file in adapter.iterdir():
                (draft.path / file.name).write_bytes(file.read_bytes())
        return out

    return wrap


@pytest.fixture(scope="session")
def llama_bundle(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    out = tmp_path_factory.mktemp("bundles") / "llama"
    return export_base(str(llama), out, FP32, rank=RANK, prompts=["Generate a headline: fog."])


@pytest.fixture(scope="session")
def qwen3_bundle(qwen3: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    out = tmp_path_factory.mktemp("bundles") / "qwen3"
    return export_base(str(qwen3), out, INT4, rank=RANK)


@pytest.fixture(scope="session")
def users(
    llama: Path,
    llama_bundle: Artifact,
    make_adapter: MakeAdapter,
    as_artifact: Callable[[Path, Path], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> list[tuple[Path, Artifact]]:
    """Two users on the Llama base: PEFT directory and AdapterBundle of each."""
    folder = tmp_path_factory.mktemp("users")
    result: list[tuple[Path, Artifact]] = []
    for seed in (1, 2):
        adapter = as_artifact(make_adapter(llama, seed), llama)
        bundle = export_adapter(adapter, llama_bundle.path, folder / str(seed), base=str(llama))
        result.append((adapter, bundle))
    return result


class Device:
    """A lowered program in ExecuTorch's runtime, fed like a phone feeds it."""

    def __init__(self, program: bytes, data: bytes | None = None) -> None:
        from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401
        from executorch.extension.pybindings import portable_lib
        from executorch.kernels import quantized  # noqa: F401

        self.program, self.data = program, data  # the runtime reads from these buffers
        self.module = portable_lib._load_for_executorch_from_buffer(program, data_map_buffer=data)

    def __call__(self, ids: Sequence[int], position: int) -> torch.Tensor:
        """Logits [V] after the last id."""
        inputs = (torch.tensor([list(ids)]), torch.tensor([position]))
        return self.module.run_method("forward", inputs)[0][0].clone()

    def logits(self, ids: Sequence[int], prefill: int) -> torch.Tensor:
        """Prefill `prefill` ids at once, then one by one: [len(ids) - prefill + 1, V]."""
        rows = [self(ids[:prefill], 0)]
        rows += [self([token], at) for at, token in enumerate(ids[prefill:], start=prefill)]
        return torch.stack(rows)


def joined(foundation: bytes, *others: bytes) -> bytes:
    """Several data files as one: the Python runtime takes a single file, phones take many."""
    from executorch.exir._serialize._cord import Cord
    from executorch.exir._serialize.data_serializer import DataEntry, DataPayload
    from executorch.extension.flat_tensor.serialize.serialize import FlatTensorSerializer

    serializer, buffers, named = FlatTensorSerializer(), [], {}
    for blob in (foundation, *others):
        payload = serializer.deserialize(Cord(blob))
        for key, entry in payload.named_data.items():
            assert key not in named, "two data files share a key"
            index = entry.buffer_index + len(buffers)
            named[key] = DataEntry(index, ALIGNMENT, entry.tensor_layout)
        buffers += payload.buffers
    return bytes(serializer.serialize(DataPayload(buffers=buffers, named_data=named)))


def by_the_book(wire: bytes) -> bytes:
    """A `.ptd` from its form on the wire, as docs/devices.md tells a phone to make it."""
    import struct

    assert wire[:8] == b"PTD8\0\0\0\1"
    head, count = struct.unpack_from("<QQ", wire, 8)
    steps = struct.unpack(f"<{count}b", wire[-count:])
    scales = [
        struct.unpack("<f", b"\0\0" + wire[at : at + 2])[0]
        for at in range(24 + head, len(wire) - count, 2)
    ]
    floats = [step * scales[number // 64] for number, step in enumerate(steps)]
    return wire[24 : 24 + head] + struct.pack(f"<{count}f", *floats)


@pytest.fixture(scope="session")
def device() -> Callable[..., Device]:
    """`device(base bundle, adapter bundle)`, or `device(merged bundle)`."""

    def make(first: Artifact, adapter: Artifact | None = None) -> Device:
        if adapter is None:
            return Device(first.file("program.pte").read_bytes())
        foundation = first.file("foundation.ptd").read_bytes()
        own = [name for name in adapter.manifest.files if name.startswith("adapter.ptd")]
        stored = adapter.file(own[0]).read_bytes()
        packed = own[0].endswith("8")
        data = joined(foundation, by_the_book(stored) if packed else stored)
        return Device(adapter.file("program.pte").read_bytes(), data)

    return make


@pytest.fixture(scope="session")
def base_device() -> Callable[[Artifact], Device]:
    """The base alone: its template program with zeros for an adapter."""
    import numpy as np

    from export.executorch.data_file import data_file
    from export.executorch.layout import read_layout

    def make(bundle: Artifact) -> Device:
        layout = read_layout(bundle.file("layout.json"))
        zeros = data_file({s.key: np.zeros(s.shape, np.float32) for s in layout.slots})
        foundation = bundle.file("foundation.ptd").read_bytes()
        return Device(bundle.file("program.pte").read_bytes(), joined(foundation, zeros))

    return make


@pytest.fixture(scope="session")
def peft_logits() -> Callable[..., torch.Tensor]:
    """`peft_logits(base, adapter or None, ids)` -> [len(ids), V], by PEFT alone."""

    def run(base: Path, adapter: Path | None, ids: Sequence[int]) -> torch.Tensor:
        import warnings

        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            model = AutoModelForCausalLM.from_pretrained(base)
            if adapter is not None:
                model = PeftModel.from_pretrained(model, str(adapter))
            return model.eval()(torch.tensor([list(ids)])).logits[0]

    return run
