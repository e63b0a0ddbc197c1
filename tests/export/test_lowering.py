"""Lowered programs in ExecuTorch's runtime against PEFT and transformers."""

import json

import numpy as np
import pytest
import torch

from export.base import export_base
from export.executorch.layout import read_layout
from export.executorch.quantize import quantize
from export.merged import export_merged
from export.recipes import find_recipe
from protos.base_model import load_model, open_base
from protos.golden import read_golden

IDS = [7, 44, 130, 201, 9, 77, 15, 230, 61, 5, 99, 12, 180, 33, 21, 64, 250, 8, 90, 140]


def test_two_users_alive_at_once_each_match_their_own_peft_model(
    llama, llama_bundle, users, device, peft_logits
):
    phones = [device(llama_bundle, bundle) for _, bundle in users]
    expected = [peft_logits(llama, adapter, IDS)[7:] for adapter, _ in users]
    got = [[], []]
    for at in range(len(IDS) - 7):  # interleaved: each call goes to the other phone
        for user, phone in enumerate(phones):
            ids, position = (IDS[:8], 0) if at == 0 else ([IDS[7 + at]], 7 + at)
            got[user].append(phone(ids, position))
    for user in (0, 1):
        mine, other = expected[user], expected[1 - user]
        logits = torch.stack(got[user])
        assert (logits - mine).abs().max() <= 1e-4
        assert torch.equal(logits.argmax(-1), mine.argmax(-1))
        assert (logits - other).abs().max() > 0.5


def test_base_with_a_zero_adapter_equals_the_base(llama, llama_bundle, base_device, peft_logits):
    logits = base_device(llama_bundle).logits(IDS, prefill=8)
    assert (logits - peft_logits(llama, None, IDS)[7:]).abs().max() <= 1e-4


@pytest.mark.parametrize("prefill", [1, 3, 19])
def test_any_split_into_prefill_and_decode_gives_the_same(
    prefill, llama, llama_bundle, users, device, peft_logits
):
    adapter, bundle = users[0]
    logits = device(llama_bundle, bundle).logits(IDS, prefill)
    assert (logits - peft_logits(llama, adapter, IDS)[prefill - 1 :]).abs().max() <= 1e-4


def test_quantized_program_matches_eager_of_the_same_weights(qwen3_bundle, base_device):
    _hold_to_fake_quant(qwen3_bundle, base_device(qwen3_bundle))


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["executorch-xnnpack-8da4w-g128", "executorch-xnnpack-8da8w"])
def test_other_groups_and_int8_match_eager_of_the_same_weights(
    recipe, tiny_base, tmp_path, base_device
):
    import shutil

    from transformers import LlamaConfig, LlamaForCausalLM

    base = shutil.copytree(tiny_base, tmp_path / "base")
    torch.manual_seed(4)
    config = LlamaConfig(
        vocab_size=json.loads((base / "config.json").read_text())["vocab_size"], hidden_size=128,
        intermediate_size=256, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=128, tie_word_embeddings=True, eos_token_id=2, bos_token_id=1,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():  # a fresh model's answers are all but ties
            if parameter.dim() == 2:
                parameter.mul_(2.0)
    model.save_pretrained(base)
    bundle = export_base(str(base), tmp_path / "b", recipe, rank=2)
    _hold_to_fake_quant(bundle, base_device(bundle))


def _hold_to_fake_quant(bundle, phone):
    """Every continuation of the golden, fed as ids."""
    golden = read_golden(bundle.path)
    rung, start = golden.rungs["fake_quant.off"], 0
    largest, agree, rows = 0.0, 0, 0
    for prompt in golden.prompts:
        end = start + prompt.length
        logits = phone.logits([*prompt.ids, *prompt.continuation], len(prompt.ids))
        first = start + len(prompt.ids) - 1
        kept = logits.gather(1, torch.from_numpy(golden.ids[first:end]).long()).numpy()
        largest = max(largest, float(np.abs(kept - rung.logits[first:end]).max()))
        agree += int((logits.argmax(-1).numpy() == rung.argmax[first:end]).sum())
        rows, start = rows + end - first, end
    assert rows > 500
    assert agree / rows >= 0.99
    assert largest < 0.25  # a random model amplifies rounding; the trained one is judged by parity


@pytest.mark.parametrize("recipe", ["executorch-xnnpack-8da4w", "executorch-xnnpack-8da8w"])
def test_rows_rounded_in_parts_are_those_that_torchao_rounds_at_once(recipe, llama, monkeypatch):
    """Embedding, linear layers and head; 1000 numbers at a time are some 15 rows of 64."""
    from torchao.quantization.granularity import PerAxis, PerGroup
    from torchao.quantization.quant_api import (
        Int8DynamicActivationIntxWeightConfig,
        IntxWeightOnlyConfig,
        quantize_,
    )

    by_groups = {"weight_dtype": torch.int4, "weight_granularity": PerGroup(32),
                 "weight_scale_dtype": torch.bfloat16}  # fmt: skip
    by_rows = {"weight_dtype": torch.int8, "weight_granularity": PerAxis(0)}
    linear = Int8DynamicActivationIntxWeightConfig(
        **(by_groups if recipe.endswith("4w") else by_rows)
    )
    embedding = IntxWeightOnlyConfig(weight_dtype=torch.int8, granularity=PerAxis(0))
    found, wanted = (load_model(open_base(str(llama)), torch.float32) for _ in range(2))
    quantize_(wanted, linear, lambda module, _: isinstance(module, torch.nn.Linear))
    quantize_(wanted, embedding, lambda module, _: isinstance(module, torch.nn.Embedding))
    monkeypatch.setattr("export.executorch.quantize._AT_ONCE", 1000)
    quantize(found, find_recipe(recipe))
    parameters = dict(wanted.named_parameters())
    assert parameters.keys() == dict(found.named_parameters()).keys()
    for name, parameter in found.named_parameters():
        for part in ("qdata", "scale", "zero_point"):
            same = getattr(parameters[name], part, parameters[name])
            assert torch.equal(getattr(parameter, part, parameter), same), name
    with torch.inference_mode():
        ids = torch.tensor([IDS])
        assert torch.equal(found(input_ids=ids).logits, wanted(input_ids=ids).logits)


def test_merged_dora_matches_peft(qwen3, make_adapter, device, peft_logits, tmp_path, monkeypatch):
    adapter = make_adapter(qwen3, 5, use_dora=True)
    bundle = export_merged(
        adapter, tmp_path / "m", "executorch-xnnpack-fp32", base=str(qwen3), trust_base=True
    )
    logits = device(bundle).logits(IDS, prefill=5)
    assert (logits - peft_logits(qwen3, adapter, IDS)[4:]).abs().max() <= 1e-4
    assert json.loads(bundle.file("adapter.json").read_text())["layout"] == "merged"
    golden = read_golden(bundle.path)
    assert np.abs(golden.rungs["merged.on"].logits - golden.rungs["peft.on"].logits).max() <= 1e-5


def test_program_tells_the_runner_what_it_needs(llama_bundle, base_device):
    module = base_device(llama_bundle).module
    assert module.run_method("get_max_seq_len", ()) == [128]
    assert module.run_method("get_eos_ids", ()) == [2]
    assert module.run_method("get_bos_id", ()) == [1]
    assert module.run_method("use_kv_cache", ()) == [True]


def test_every_template_key_occurs_once_and_no_key_is_shared(llama_bundle, users):
    template = llama_bundle.file("program.pte").read_bytes()
    layout = read_layout(llama_bundle.file("layout.json"))
    assert len(layout.slots) == 2 * 7 * 2
    keys = [{slot.key for slot in layout.slots}]
    for slot in layout.slots:
        assert template.count(slot.key.encode()) == 1
        assert template.index(slot.key.encode()) == slot.offset
    for _, bundle in users:
        slots = json.loads(bundle.file("adapter.json").read_text())["slots"]
        program = bundle.file("program.pte").read_bytes()
        assert len(program) == len(template)
        assert all(program.count(slot["key"].encode()) == 1 for slot in slots)
        assert all(slot.key.encode() not in program for slot in layout.slots)
        keys.append({slot["key"] for slot in slots})
    assert len(set().union(*keys)) == 3 * len(layout.slots)


def test_finished_bundle_is_not_made_again(llama, llama_bundle):
    before = (llama_bundle.path / "manifest.json").stat().st_mtime_ns
    again = export_base(
        str(llama), llama_bundle.path, "executorch-xnnpack-fp32", rank=4,
        prompts=["Generate a headline: fog."],
    )  # fmt: skip
    assert again.id == llama_bundle.id
    assert (llama_bundle.path / "manifest.json").stat().st_mtime_ns == before
