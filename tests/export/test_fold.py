"""Folded adapter tensors against PEFT's own weight change, and every refusal by its name."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from export.adapter import export_adapter
from export.executorch.layout import Layout, Slot
from export.lora import projections
from export.peft_adapter import fold, folded_digest, open_adapter, refuse_unrepresentable
from protos.errors import ArtifactError, InputError, MismatchError, UnsupportedError

VARIANTS = {
    "plain": {},
    "rank-stabilized": {"use_rslora": True},
    "rank pattern": {"rank_pattern": {"q_proj": 2, r"model.layers.1.mlp.*": 3}},
    "alpha pattern": {"alpha_pattern": {"down_proj": 3, "layers.0.self_attn.v_proj": 40}},
    "all patterns": {
        "use_rslora": True, "rank_pattern": {"o_proj": 1}, "alpha_pattern": {"o_proj": 5},
    },
    "lower rank": {"r": 2, "lora_alpha": 7},
    "fewer targets": {"target_modules": ["q_proj", "v_proj"]},
    "a pattern for targets": {"target_modules": r".*layers\.1\..*(gate|up)_proj"},
    "all-linear": {"target_modules": "all-linear"},
    "some layers": {"layers_to_transform": [1]},
    "excluded": {"exclude_modules": ["k_proj"]},
}  # fmt: skip


@pytest.fixture(scope="session")
def layout(llama) -> Layout:
    """The layout of the Llama base without lowering it."""
    from transformers import AutoModelForCausalLM

    slots = []
    for path, linear in projections(AutoModelForCausalLM.from_pretrained(llama)).items():
        for side, shape in (("A", (4, linear.in_features)), ("B", (linear.out_features, 4))):
            slots.append(Slot(f"{path}.lora_{side}", shape, "float32", 0, "", 0))
    return Layout("executorch-xnnpack", 4, 128, 352, "", 0, slots, [])


@pytest.fixture(scope="session")
def module_names(llama) -> list[str]:
    from transformers import AutoModelForCausalLM

    return [name for name, _ in AutoModelForCausalLM.from_pretrained(llama).named_modules()]


@pytest.fixture
def folded(layout, module_names):
    def run(adapter):
        source = open_adapter(adapter, base_digest="0" * 64, trust_base=True)
        refuse_unrepresentable(source)
        return fold(source, layout, module_names)

    return run


def changed(adapter, **options):
    """The adapter with other options in its config."""
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | options))
    return adapter


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_weight_change_equals_pefts(options, llama, make_adapter, folded):
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer
    from transformers import AutoModelForCausalLM

    adapter = make_adapter(llama, 3, **options)
    arrays = folded(adapter)
    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama), str(adapter))
    inner, adapted = tuned.get_base_model(), 0
    for module in {name.rpartition(".")[0] for name in arrays}:
        ours = torch.from_numpy(arrays[f"{module}.lora_B"] @ arrays[f"{module}.lora_A"])
        layer = inner.get_submodule(module)
        if isinstance(layer, LoraLayer):
            adapted += 1
            torch.testing.assert_close(
                ours, layer.get_delta_weight("default"), rtol=1e-5, atol=1e-6
            )
        else:
            assert not ours.any()
    assert adapted == sum(isinstance(m, LoraLayer) for m in inner.modules()) > 0


def test_digest_depends_on_the_scale_and_not_on_the_file(llama, make_adapter, folded):
    digests = [
        folded_digest(folded(make_adapter(llama, 3, lora_alpha=alpha))) for alpha in (8, 8, 9)
    ]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "lora_only"}, "bias"),
        ({"lora_bias": True}, "lora_bias"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"target_parameters": ["x.weight"]}, "target_parameters"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"an_option_of_the_future": 3}, "an_option_of_the_future"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"target_modules": ["q_proj", "lm_head"]}, "lm_head"),
        ({"target_modules": ["embed_tokens"]}, "embed_tokens"),
        ({"r": 16}, "--rank 16"),
        ({"rank_pattern": {"layers.1.mlp.up_proj": 9}}, "layers.1.mlp.up_proj"),
    ],
)
def test_what_cannot_be_represented_is_refused_by_name(options, named, llama, make_adapter, folded):
    adapter = changed(make_adapter(llama, 3), **options)
    with pytest.raises(UnsupportedError, match=named):
        folded(adapter)


def test_all_wrong_tensors_are_named_at_once(llama, make_adapter, folded):
    adapter = make_adapter(llama, 3)
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    prefix = "base_model.model.model.layers.0.self_attn"
    del tensors[f"{prefix}.q_proj.lora_A.weight"]
    tensors[f"{prefix}.k_proj.lora_B.weight"] = torch.zeros(3, 3)
    tensors["surplus"] = torch.zeros(1)
    save_file(tensors, path)
    with pytest.raises(MismatchError) as error:
        folded(adapter)
    for piece in (
        "q_proj.lora_A.weight is missing",
        "surplus is unexpected",
        "is [3, 3], expected",
    ):
        assert piece in str(error.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(value, llama, make_adapter, folded):
    adapter = make_adapter(llama, 3)
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    next(iter(tensors.values()))[0, 0] = value
    save_file(tensors, path)
    with pytest.raises(InputError, match="not a number or infinite"):
        folded(adapter)


def test_bfloat16_weights_are_folded_in_float32(llama, make_adapter, folded):
    adapter = make_adapter(llama, 3)
    path = adapter / "adapter_model.safetensors"
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(path).items()}
    save_file(tensors, path)
    array = folded(adapter)["model.layers.0.mlp.up_proj.lora_B"]
    stored = tensors["base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"]
    assert np.array_equal(array, stored.float().numpy() * 2.0)


def test_targets_that_name_nothing_are_refused(llama, make_adapter, folded):
    with pytest.raises(MismatchError, match="no module"):
        folded(changed(make_adapter(llama, 3), target_modules=["c_attn"]))


def test_truncated_weights_are_one_clear_error(llama, make_adapter, folded):
    adapter = make_adapter(llama, 3)
    path = adapter / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match="unreadable"):
        folded(adapter)


def test_plain_directory_needs_trust(llama, make_adapter, llama_bundle, tmp_path):
    adapter = make_adapter(llama, 3)
    with pytest.raises(InputError, match="--trust-base"):
        export_adapter(adapter, llama_bundle.path, tmp_path / "out", base=str(llama))
    assert not list(tmp_path.iterdir())


def test_adapter_of_another_base_is_never_written(
    llama, qwen3, make_adapter, as_artifact, llama_bundle, tmp_path
):
    foreign = as_artifact(make_adapter(qwen3, 3), qwen3)
    with pytest.raises(MismatchError, match="trained on base model"):
        export_adapter(foreign, llama_bundle.path, tmp_path / "out", base=str(llama))
    with pytest.raises(MismatchError, match="made from base model"):
        export_adapter(foreign, llama_bundle.path, tmp_path / "out", base=str(qwen3))
    assert not list(tmp_path.iterdir())


def test_altered_bundle_is_refused(llama, users, llama_bundle, tmp_path):
    import shutil

    altered = tmp_path / "bundle"
    shutil.copytree(llama_bundle.path, altered)
    program = bytearray((altered / "program.pte").read_bytes())
    program[100] ^= 1
    (altered / "program.pte").write_bytes(program)
    with pytest.raises(ArtifactError, match=r"program\.pte was altered"):
        export_adapter(users[0][0], altered, tmp_path / "out", base=str(llama))


def test_failure_in_the_middle_leaves_nothing(llama, llama_bundle, users, tmp_path, monkeypatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("export.executorch.backend.adapter_golden", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export_adapter(users[0][0], llama_bundle.path, tmp_path / "out", base=str(llama))
    assert not list(tmp_path.iterdir())
