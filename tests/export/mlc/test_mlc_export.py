"""MLC bundles: names, shapes and bytes against Hugging Face's own tensors, PEFT and numpy."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from export.adapter import export_adapter
from export.base import export_base
from export.merged import export_merged
from protos.errors import InputError, MismatchError, UnsupportedError
from protos.group_quantization import dequantize
from protos.tensor_cache import FILE, read_shards, read_tensor_cache

RECIPES = ("mlc-q0f32", "mlc-q0f16", "mlc-q4f32_1", "mlc-q4f16_1")


@pytest.fixture(scope="module")
def bundles(llama, tmp_path_factory):
    """The tiny Llama under every recipe."""
    folder = tmp_path_factory.mktemp("mlc")
    return {name: export_base(str(llama), folder / name, name) for name in RECIPES}


@pytest.fixture(scope="module")
def qv_adapter(llama, make_adapter) -> Path:
    return make_adapter(llama, seed=3, target_modules=["q_proj", "v_proj"])


def weights(directory: Path) -> dict[str, np.ndarray]:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def cache(*folders: Path) -> dict[str, np.ndarray]:
    return read_tensor_cache(folders[0] / FILE, folders)


def test_float32_holds_hugging_faces_numbers(llama, bundles):
    """Fused rows in the order q, k, v and gate, up; every other tensor under its own name."""
    found, state = cache(bundles["mlc-q0f32"].path), weights(llama)
    fused = 0
    for name, array in found.items():
        parts = [name]
        if "qkv_proj" in name:
            parts = [name.replace("qkv_proj", f"{x}_proj") for x in "qkv"]
        elif "gate_up_proj" in name:
            parts = [name.replace("gate_up_proj", f"{x}_proj") for x in ("gate", "up")]
        fused += len(parts) - 1
        assert np.array_equal(array, np.concatenate([state[part] for part in parts])), name
    assert len(found) + fused == len(state)


@pytest.mark.parametrize(
    ("name", "dtype"), [("mlc-q4f16_1", "float16"), ("mlc-q4f32_1", "float32")]
)
def test_quantized_matrices_are_near_the_float_ones(bundles, name, dtype):
    found, plain = cache(bundles[name].path), cache(bundles["mlc-q0f32"].path)
    for stem in (n.removesuffix("weight") for n, a in plain.items() if a.ndim == 2):
        words, scales = found[f"{stem}q_weight"], found[f"{stem}q_scale"]
        wanted = plain[f"{stem}weight"]
        assert scales.dtype == dtype
        off = np.abs(dequantize(words, scales, wanted.shape[1]) - wanted)
        assert off.max() <= 0.51 * float(scales.max()), stem
    assert found["model.norm.weight"].dtype == dtype


def test_rope_and_sizes_come_from_the_config_object(tiny_base, tmp_path):
    """transformers 5 writes `rope_parameters`; MLC's own converter would take 10,000 then."""
    directory = tmp_path / "model"
    shutil.copytree(tiny_base, directory)
    config = json.loads((directory / "config.json").read_text())
    rope = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64}  # fmt: skip
    config["rope_parameters"] = rope
    (directory / "config.json").write_text(json.dumps(config))
    bundle = export_base(str(directory), tmp_path / "out", "mlc-q0f32", context_length=128)
    written = json.loads((bundle.path / "mlc-chat-config.json").read_text())["model_config"]
    assert written["position_embedding_base"] == 500000.0
    assert written["rope_scaling"] == {k: v for k, v in rope.items() if k != "rope_theta"}
    assert (written["head_dim"], written["context_window_size"]) == (16, 128)


def test_lora_parameters_are_pefts_change(llama, bundles, qv_adapter, tmp_path):
    """B(Ax) of the fused projection is the change that PEFT merges, on the rows of q and v."""
    from peft import PeftModel

    out = export_adapter(qv_adapter, bundles["mlc-q0f32"].path, tmp_path / "user", base=str(llama),
                         trust_base=True, goldens=False)  # fmt: skip
    found = cache(out.path, bundles["mlc-q0f32"].path)
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    merged = PeftModel.from_pretrained(model, qv_adapter).merge_and_unload().state_dict()
    before = weights(llama)
    for layer in range(2):
        stem = f"model.layers.{layer}.self_attn."
        change = found[f"{stem}qkv_proj.lora_b"] @ found[f"{stem}qkv_proj.lora_a"]
        names = [f"{stem}{x}_proj.weight" for x in "qkv"]
        wanted = np.concatenate([merged[n].numpy() - before[n] for n in names])
        assert np.abs(change - wanted).max() < 1e-5
        assert np.abs(wanted).max() > 1e-2
    config = json.loads((out.path / "mlc-chat-config.json").read_text())
    assert config["model_type"] == "llama_lora"
    assert config["model_config"]["lora_ranks"] == {"qkv_proj": 8}
    assert not any("o_proj.lora" in name for name in found)


def test_delta_shards_share_what_no_adapter_touches(llama, bundles, qv_adapter, tmp_path):
    """The user's bundle names the base's own shards for all but the fused q, k, v."""
    base = bundles["mlc-q4f32_1"].path
    out = export_adapter(qv_adapter, base, tmp_path / "user", base=str(llama), mode="merged",
                         trust_base=True, goldens=False)  # fmt: skip
    alone = export_merged(qv_adapter, tmp_path / "alone", "mlc-q4f32_1", base=str(llama),
                          trust_base=True)  # fmt: skip
    found, wanted, plain = cache(out.path, base), cache(alone.path), cache(base)
    assert found.keys() == wanted.keys()
    changed = set()
    for name, array in wanted.items():
        assert np.array_equal(found[name], array), name
        if not np.array_equal(array, plain[name]):
            changed.add(name)
    assert changed
    assert all("qkv_proj" in name for name in changed)
    user = {record.name for shard in read_shards(out.path / FILE)
            if (out.path / shard.dataPath).is_file() for record in shard.records}  # fmt: skip
    assert user == {name for name in wanted if "qkv_proj" in name}
    assert 0 < out.manifest.measured["delta_cosine"] <= 1


def test_a_drowned_adapter_is_said(llama, bundles, make_adapter, tmp_path):
    """A change of a hundredth of the weights is lost in four bits, not in 32."""
    weak = make_adapter(llama, seed=5, lora_alpha=0.05)
    said = {}
    for name in ("mlc-q4f32_1", "mlc-q0f32"):
        out = export_adapter(weak, bundles[name].path, tmp_path / name, base=str(llama),
                             mode="merged", trust_base=True, goldens=False)  # fmt: skip
        said[name] = out.manifest.measured
    assert said["mlc-q0f32"]["delta_cosine"] > 0.99
    assert "warnings" not in said["mlc-q0f32"]
    assert said["mlc-q4f32_1"]["delta_cosine"] < 0.5
    assert "drowns" in said["mlc-q4f32_1"]["warnings"][0]


def test_a_second_export_is_skipped_and_the_same(llama, bundles, tmp_path):
    again = export_base(str(llama), tmp_path / "again", "mlc-q4f16_1")
    assert again.id == bundles["mlc-q4f16_1"].id


def test_an_adapter_for_another_base_is_refused(bundles, qwen3, qv_adapter, tmp_path):
    with pytest.raises(MismatchError, match="was made from base model"):
        export_adapter(qv_adapter, bundles["mlc-q0f32"].path, tmp_path / "x", base=str(qwen3),
                       trust_base=True)  # fmt: skip
    assert not (tmp_path / "x").exists()


def test_an_unknown_mode_is_refused(llama, bundles, qv_adapter, tmp_path):
    with pytest.raises(UnsupportedError, match="mode 'fused' is unknown"):
        export_adapter(qv_adapter, bundles["mlc-q0f32"].path, tmp_path / "x", base=str(llama),
                       mode="fused", trust_base=True)  # fmt: skip


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"attention_bias": True}, "biases in Llama's linear layers"),
        ({"hidden_act": "gelu"}, "activation 'gelu'"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}},
         "rope type 'linear'"),
        ({"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "use_sliding_window": True,
          "sliding_window": 64, "max_window_layers": 1}, "sliding window attention"),
    ],
)  # fmt: skip
def test_what_mlc_would_compute_in_another_way_is_refused(tiny_base, tmp_path, change, reason):
    directory = tmp_path / "model"
    shutil.copytree(tiny_base, directory)
    config = json.loads((directory / "config.json").read_text()) | change
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedError, match=reason):
        export_base(str(directory), tmp_path / "out", "mlc-q0f32")
    assert not (tmp_path / "out").exists()


def test_a_missing_tokenizer_is_refused(tiny_base, tmp_path):
    directory = tmp_path / "model"
    shutil.copytree(tiny_base, directory)
    (directory / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"no tokenizer\.json"):
        export_base(str(directory), tmp_path / "out", "mlc-q0f32")
