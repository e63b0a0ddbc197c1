"""Every family that can be exported, as a tiny random model: its lowered program against PEFT.

Windows are shorter than the text, so that what is no longer seen matters.
"""

import json
import shutil

import numpy as np
import pytest
import torch

from export.adapter import export_adapter
from export.base import check_export, export_base
from export.executorch.stateful import StatefulModule
from export.executorch.wrapper import RunnerModule
from export.families import ARCHITECTURES
from export.reference import Reference, continuations, whole_rows
from protos.artifacts import Artifact
from protos.base_model import open_base
from protos.errors import UnsupportedError
from protos.golden import sketch
from tests.export.test_lowering import _hold_to_fake_quant

IDS = [7, 44, 130, 201, 9, 77, 15, 230, 61, 5, 99, 12, 180, 33, 21, 64, 250, 8, 90, 140, 71, 3]
WINDOW = 6
SHAPE = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 96, "eos_token_id": 2, "bos_token_id": 1,
    "pad_token_id": 0,
}  # fmt: skip
LONGROPE = "Phi 3, longrope on a part"
FAMILIES = {
    "Llama 3, its rope": ("Llama", {"rope_parameters": {
        "rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 24,
    }}),
    "Qwen2, biases and a window": ("Qwen2", {
        "use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1,
    }),
    "Qwen3, a window": ("Qwen3", {
        "head_dim": 32, "use_sliding_window": True, "sliding_window": WINDOW,
        "max_window_layers": 1,
    }),
    "SmolLM3, a layer without rope": ("SmolLM3", {"no_rope_layers": [1, 0]}),
    "Gemma 3, two ropes, a window": ("Gemma3", {
        "head_dim": 32, "query_pre_attn_scalar": 20, "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention"],
    }),
    "Phi 3, rope on a part, a window": ("Phi3", {
        "sliding_window": WINDOW,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.75,
        },
    }),
    LONGROPE: ("Phi3", {
        "max_position_embeddings": 192, "original_max_position_embeddings": 96,
        "rope_parameters": {
            "rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 0.75,
            "short_factor": [1.0, 1.1, 1.3, 1.6, 2.0, 2.5],
            "long_factor": [1.5, 2.0, 3.0, 5.0, 8.0, 12.0],
        },
    }),
}  # fmt: skip


def make_model(directory, tiny_base, family, options):
    """A random model whose biases and norms are not the neutral ones of a fresh one."""
    import transformers

    shutil.copytree(tiny_base, directory)
    vocab = json.loads((tiny_base / "config.json").read_text())["vocab_size"]
    # 8 more: Qwen2's tokenizer class adds an end token of its own.
    config = getattr(transformers, "Gemma3TextConfig" if family == "Gemma3" else f"{family}Config")
    torch.manual_seed(3)
    model = getattr(transformers, f"{family}ForCausalLM")(
        config(vocab_size=vocab + 8, **SHAPE | options)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(2.0)
            else:
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(directory)
    return directory


@pytest.mark.slow
@pytest.mark.parametrize(("family", "options"), FAMILIES.values(), ids=FAMILIES)
def test_program_with_an_adapter_is_pefts_model_in_one_chunk_and_in_several(
    family, options, tiny_base, tmp_path, make_adapter, device, base_device, peft_logits
):
    base = make_model(tmp_path / family, tiny_base, family, options)
    bundle = export_base(str(base), tmp_path / "b", "executorch-xnnpack-fp32", rank=4)
    adapter = make_adapter(base, 1, target_modules="all-linear")
    own: Artifact = export_adapter(
        adapter, bundle.path, tmp_path / "a", base=str(base), trust_base=True, goldens=False
    )
    expected, plain = peft_logits(base, adapter, IDS), peft_logits(base, None, IDS)
    assert (expected - plain).abs().max() > 0.5
    assert (base_device(bundle).logits(IDS, 8) - plain[7:]).abs().max() <= 1e-4
    phone = device(bundle, own)
    for prefill in (1, 4, len(IDS)):
        assert (phone.logits(IDS, prefill) - expected[prefill - 1 :]).abs().max() <= 1e-4
    for start, end in ((0, 5), (5, 16), (16, len(IDS))):
        last = phone(IDS[start:end], start)
        assert (last - expected[end - 1]).abs().max() <= 1e-4


ONE_LAYER = {
    "Phi3": FAMILIES["Phi 3, rope on a part, a window"][1],
    "SmolLM3": {"no_rope_layers": [0]},
    "Gemma3": FAMILIES["Gemma 3, two ropes, a window"][1] | {"layer_types": ["sliding_attention"]},
}
"""Lowering in int4 takes twice as long, so one layer has to do."""


@pytest.mark.slow
@pytest.mark.parametrize("family", ONE_LAYER)
def test_the_default_recipe_matches_eager_of_the_same_weights(
    family, tiny_base, tmp_path, base_device
):
    options = {"num_hidden_layers": 1} | ONE_LAYER[family]
    base = make_model(tmp_path / family, tiny_base, family, options)
    bundle = export_base(str(base), tmp_path / "b", "executorch-xnnpack-8da4w", rank=2)
    _hold_to_fake_quant(bundle, base_device(bundle))


@pytest.mark.parametrize("name", [name for name in FAMILIES if "window" in name])
def test_continuations_past_a_window_are_those_of_each_prompt_alone(name, tiny_base, tmp_path):
    from transformers import AutoModelForCausalLM

    family, options = FAMILIES[name]
    base = make_model(tmp_path / family, tiny_base, family, options)
    model = AutoModelForCausalLM.from_pretrained(base).eval()
    prompts = [IDS[:4], IDS[:9], IDS[3:17], IDS]
    all_found, kept = continuations(model, prompts, 8, model.config.vocab_size)
    held = {name: ([], []) for name in kept}  # given and gives, at every row

    def tap(name, length):
        def keep(_, given, gives):
            for side, values in zip(held[name], (given[0], gives), strict=True):
                tokens = values[0].movedim(values[0].shape.index(length), 0)
                side.append(tokens.reshape(length, -1).float())

        return model.get_submodule(name).register_forward_hook(keep)

    for prompt, found in zip(prompts, all_found, strict=True):
        ids = torch.tensor([[*prompt, *found.ids]])
        hooks = [tap(name, ids.shape[1]) for name in kept]
        with torch.no_grad():
            said = model(ids, use_cache=False).logits[0]
        for hook in hooks:
            hook.remove()
        assert found.ids == said[len(prompt) - 1 : -1].argmax(-1).tolist()
        assert (Reference(model).logits(found.states) - said).abs().max() <= 1e-4
    rows = whole_rows([len(prompt) + 8 for prompt in prompts])
    assert len(rows) == 8
    norms = [name for name in kept if name.endswith("q_norm")]
    assert len(norms) == (2 if family in ("Qwen3", "Gemma3") else 0)
    for name, (given, gives) in held.items():
        wanted = np.stack([sketch(torch.cat(side)[rows].numpy()) for side in (given, gives)])
        np.testing.assert_allclose(kept[name], wanted, atol=2e-4, err_msg=name)


CAPPED = ("Gemma3", {**FAMILIES["Gemma 3, two ropes, a window"][1], "final_logit_softcapping": 0.5})


@pytest.mark.parametrize(
    ("family", "options"), [*FAMILIES.values(), CAPPED], ids=[*FAMILIES, "Gemma 3, capped logits"]
)
def test_a_reference_says_in_two_steps_what_the_model_says_in_one(
    family, options, tiny_base, tmp_path
):
    from transformers import AutoModelForCausalLM

    base = make_model(tmp_path / family, tiny_base, family, options)
    model = AutoModelForCausalLM.from_pretrained(base).eval()
    reference, ids = Reference(model), torch.tensor([IDS, IDS[::-1]])
    with torch.no_grad():
        said = model(input_ids=ids, use_cache=False).logits
    assert (reference.logits(reference.states(ids)) - said).abs().max() <= 1e-6


@pytest.mark.parametrize(("module", "count"), [(RunnerModule, 7), (StatefulModule, 1)])
def test_what_is_traced_has_longropes_short_factors_and_no_choice(
    module, count, tiny_base, tmp_path
):
    from transformers import AutoModelForCausalLM

    base = make_model(tmp_path / "phi", tiny_base, *FAMILIES[LONGROPE])
    model = AutoModelForCausalLM.from_pretrained(base).eval()
    parts = [torch.tensor([IDS[start : start + count]]) for start in range(0, 21, count)]
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([IDS])).logits[0]
        wrapped = module(model, 96).eval()
        traced = torch.export.export(wrapped, (parts[0], torch.tensor([0])), strict=False)
        program = traced.module()
        said = [program(part, torch.tensor([at * count]))[0] for at, part in enumerate(parts)]
    assert (torch.stack(said) - expected[count - 1 : 21 : count]).abs().max() <= 1e-5
    assert torch.ops.aten.max.default not in {node.target for node in traced.graph.nodes}


@pytest.mark.parametrize("name", ["longrope", "su", "yarn"])
def test_longrope_has_a_context_up_to_its_original_length(name, tiny_base, tmp_path):
    base = make_model(tmp_path / "phi", tiny_base, *FAMILIES[LONGROPE])
    config = json.loads((base / "config.json").read_text())
    rope = config.pop("rope_parameters")
    del rope["rope_type"]
    config["rope_scaling"] = rope | {"type": name}
    (base / "config.json").write_text(json.dumps(config))
    opened = open_base(str(base))
    assert check_export(opened, "executorch-xnnpack-fp32", 4, None)[1] == 96
    says = "97 is more than the 96 positions of phi .of 192. up to which its longrope has one"
    with pytest.raises(UnsupportedError, match=says):
        check_export(opened, "executorch-xnnpack-fp32", 4, 97)


def test_every_family_has_a_model_here():
    assert {f"{family}ForCausalLM" for family, _ in FAMILIES.values()} == set(ARCHITECTURES)
