"""The gates let sound exports pass: twenty of two families, ranks 1 to 8, any kind of LoRA."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from export.adapter import export_adapter
from export.base import export_base
from mobile_runtime.parity import measure_parity

pytestmark = pytest.mark.slow
FP32 = "executorch-xnnpack-fp32"
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]
LLAMA: list[dict[str, Any]] = [
    {"r": 1},
    {"r": 2, "lora_alpha": 32},
    {"r": 3, "target_modules": ["q_proj", "v_proj"]},
    {"r": 4, "target_modules": MLP},
    {"r": 4, "use_rslora": True},
    {"r": 4, "rank_pattern": {"q_proj": 2, "down_proj": 1}},
    {"r": 4, "alpha_pattern": {"o_proj": 24}},
    {"r": 4, "layers_to_transform": [1]},
    {"r": 2, "target_modules": ["down_proj"]},
]
QWEN3: list[dict[str, Any]] = [
    {"r": 8},
    {"r": 8, "use_rslora": True, "lora_alpha": 4},
    {"r": 5, "target_modules": ATTENTION},
    {"r": 7, "target_modules": ["v_proj"]},
    {"r": 8, "rank_pattern": {"v_proj": 3}, "alpha_pattern": {"v_proj": 1}},
    {"r": 1, "target_modules": ["o_proj", "gate_proj"]},
    {"r": 6, "lora_alpha": 48},
    {"r": 8, "layers_to_transform": [0], "target_modules": MLP},
    {"r": 4, "use_rslora": True, "target_modules": ["k_proj", "up_proj"]},
]


@pytest.fixture(scope="module")
def qwen3(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Another family with a tied head, and its bundle for adapters up to rank 8."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    home = tmp_path_factory.mktemp("sound")
    model = shutil.copytree(tiny_base, home / "qwen3")
    torch.manual_seed(11)
    config = Qwen3Config(
        vocab_size=json.loads((tiny_base / "config.json").read_text())["vocab_size"],
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, max_position_embeddings=128, tie_word_embeddings=True,
        eos_token_id=2, bos_token_id=1,
    )  # fmt: skip
    random = Qwen3ForCausalLM(config)
    with torch.no_grad():
        for parameter in random.parameters():
            if parameter.dim() == 2:
                parameter.mul_(4.0)
    random.save_pretrained(model)
    export_base(str(model), home / "base", FP32, rank=8, context_length=96, threads=1)
    return model, home / "base"


def make_adapter(model: Path, out: Path, seed: int, options: dict[str, Any]) -> Path:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    settings = {"lora_alpha": 8, "target_modules": [*ATTENTION, *MLP], **options}
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    tuned = get_peft_model(base, LoraConfig(**settings, task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.05)
    tuned.save_pretrained(out)
    return out


def passes(model: Path, base: Path, home: Path, options: dict[str, Any], cache_dir: Path) -> None:
    seed = sum(json.dumps(options).encode())
    adapter = make_adapter(model, home / "peft", seed, options)
    export_adapter(
        adapter, base, home / "bundle", base=str(model), trust_base=True, threads=1,
    )  # fmt: skip
    result = measure_parity(base, home / "bundle", 1, cache_dir=cache_dir)
    assert [gate for gate in result.gates if not gate.passed] == []


def test_there_are_twenty() -> None:
    assert len(LLAMA) + len(QWEN3) + 2 >= 20


@pytest.mark.parametrize("options", LLAMA, ids=str)
def test_a_sound_adapter_of_a_llama_passes(world, tmp_path, cache_dir, options) -> None:
    passes(world.base_model, world.base, tmp_path, options, cache_dir)


@pytest.mark.parametrize("options", QWEN3, ids=str)
def test_a_sound_adapter_of_a_qwen3_passes(qwen3, tmp_path, cache_dir, options) -> None:
    passes(*qwen3, tmp_path, options, cache_dir)


def test_sound_bases_pass(world, qwen3, cache_dir) -> None:
    for base in (world.base, qwen3[1]):
        assert measure_parity(base, None, 1, cache_dir=cache_dir).passed
