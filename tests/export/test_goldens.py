"""Goldens: complete, consistent between rungs, and equal to what transformers generates itself."""

import shutil
from datetime import datetime

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from export.base import export_base, golden_maker, write_texts
from export.goldens import GoldenMaker, base_golden, merged_golden
from export.prompts import CONTINUATION, SET_SIZE, golden_prompts
from export.recipes import find_recipe
from mobile_runtime.prompt import open_prompt
from mobile_runtime.structure import MIN_PROMPTS
from protos.base_model import load_model, load_tokenizer, open_base, prompt_ids, render
from protos.errors import InputError, UnsupportedError
from protos.golden import SKETCH, TOP, read_golden, sketch
from protos.progress import silent


@pytest.fixture(scope="module")
def golden(users):
    return read_golden(users[0][1].path)


def test_set_holds_the_tasks_prompts_and_every_edge_case(llama_bundle):
    golden = read_golden(llama_bundle.path)
    names = [prompt.name for prompt in golden.prompts]
    assert len(names) >= 16
    assert golden.prompts[0].content == "Generate a headline: fog."
    assert {"one-token", "context-end", "chinese", "arabic", "code-emoji"} <= set(names)
    end = next(prompt for prompt in golden.prompts if prompt.name == "context-end")
    assert end.length == 128
    assert all(len(prompt.continuation) == CONTINUATION for prompt in golden.prompts)
    assert sorted(golden.rungs) == ["fake_quant.off", "peft.off"]


def test_an_adapters_set_leaves_the_contexts_end_to_its_base(golden):
    names = [prompt.name for prompt in golden.prompts]
    assert len(names) >= 16
    assert {"one-token", "chinese", "arabic", "code-emoji"} <= set(names)
    assert "context-end" not in names


def test_edge_cases_too_long_for_the_context_are_replaced(llama):
    tokenizer = load_tokenizer(open_base(str(llama)))
    longest = max(len(p.ids) for p in golden_prompts(tokenizer, [], 512, context_end=False))
    small = golden_prompts(tokenizer, [], longest - 1 + CONTINUATION, context_end=False)
    assert len(small) >= 16
    assert max(len(prompt.ids) for prompt in small) < longest


@pytest.mark.parametrize("context", [64, 88])
def test_a_context_of_too_few_prompts_is_refused_before_anything_is_lowered(
    llama, tmp_path, context
):
    """Parity would fail whatever is lowered; counted by hand for this tokenizer: 96 is enough."""
    with pytest.raises(InputError, match=f"context length {context} is too short: .* at least 16"):
        export_base(
            str(llama), tmp_path / "base", "executorch-xnnpack-fp32", context_length=context
        )
    assert not (tmp_path / "base").exists()
    tokenizer = load_tokenizer(open_base(str(llama)))
    assert len(golden_prompts(tokenizer, [], 96, context_end=False)) >= MIN_PROMPTS == SET_SIZE


def test_ids_are_those_that_training_sees(llama, golden):
    tokenizer = load_tokenizer(open_base(str(llama)))
    for prompt in golden.prompts:
        assert prompt.ids == prompt_ids(tokenizer, prompt.content)
        assert prompt.rendered == render(tokenizer, prompt.content)


def test_a_template_with_a_date_has_the_clock_of_its_export(llama, golden, tmp_path):
    base = shutil.copytree(llama, tmp_path / "base")
    template = base / "chat_template.jinja"
    template.write_text("{{ strftime_now('%d %B %Y') }}\n" + template.read_text())
    before = datetime.now().replace(microsecond=0)
    bundle = export_base(str(base), tmp_path / "bundle", "mlc-q0f16")
    dated = read_golden(bundle.path)
    assert before <= dated.rendered_at <= datetime.now()
    for prompt in dated.prompts:
        assert open_prompt(bundle.path).render(prompt.content, dated.rendered_at) == prompt.rendered
        assert dated.rendered_at.strftime("%B %Y") in prompt.rendered
    assert golden.rendered_at is None


def test_continuation_is_what_transformers_generates(llama, users, golden):
    from peft import PeftModel

    model = load_model(open_base(str(llama)), torch.float32)
    tuned = PeftModel.from_pretrained(model, str(users[0][0])).eval()
    for prompt in golden.prompts[::3]:
        ids = torch.tensor([prompt.ids])
        new = tuned.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False,
            min_new_tokens=0, max_new_tokens=CONTINUATION, eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        assert new[0, len(prompt.ids) :].tolist() == prompt.continuation


def test_rungs_hold_pefts_logits_row_by_row(llama, users, golden, peft_logits):
    references = {"peft.off": None, "peft.on": users[0][0]}
    assert_rungs_hold(golden, references, lambda adapter, ids: peft_logits(llama, adapter, ids))


def assert_rungs_hold(golden, references, logits_of):
    start = 0
    for prompt in golden.prompts:
        ids, rows = [*prompt.ids, *prompt.continuation], slice(start, start + prompt.length)
        start += prompt.length
        for rung, adapter in references.items():
            logits, kept = logits_of(adapter, ids), golden.rungs[rung]
            expected = logits.gather(1, torch.from_numpy(golden.ids[rows]).long()).numpy()
            assert np.abs(kept.logits[rows] - expected).max() <= 2e-5
            assert np.abs(kept.logsumexp[rows] - logits.logsumexp(-1).numpy()).max() <= 2e-5
            likeliest = logits.gather(1, torch.from_numpy(kept.argmax[rows]).long()[:, None])[:, 0]
            assert (logits.amax(-1) - likeliest).max() <= 4e-5  # two may be equal but for rounding
            for row in set(golden.full_rows.tolist()) & set(range(rows.start, rows.stop)):
                place = golden.full_rows.tolist().index(row)
                assert np.abs(kept.full[place] - logits[row - rows.start].numpy()).max() <= 2e-5


TRAINED = {
    "all biases": {"bias": "all"},
    "the biases of adapted layers": {"bias": "lora_only"},
    "biases of LoRA": {"lora_bias": True, "target_modules": ["q_proj", "v_proj"]},
    "DoRA": {"use_dora": True},
    "a head": {"modules_to_save": ["lm_head"]},
    "an embedding and a norm": {"modules_to_save": ["embed_tokens", "norm"]},
    "some tokens": {"trainable_token_indices": [5, 99, 200]},
}  # fmt: skip


def maker(base, directory):
    files, recipe = open_base(str(base)), find_recipe("executorch-xnnpack-fp32")
    return golden_maker(write_texts(directory, files, recipe, files.max_context), [], silent)


@pytest.mark.parametrize("options", TRAINED.values(), ids=TRAINED)
def test_a_merged_set_is_the_base_without_its_adapter_and_pefts_model_with_it(
    options, qwen2, make_adapter, peft_logits, tmp_path
):
    adapter = make_adapter(qwen2, 6, **options)
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    torch.manual_seed(7)
    own = [n for n in tensors if not n.endswith((".lora_A.weight", ".lora_B.weight"))]
    assert own
    for name in own:
        tensors[name] += 0.2 * torch.randn_like(tensors[name])
    save_file(tensors, file)
    golden = merged_golden(maker(qwen2, tmp_path), adapter)
    references = {rung: adapter if rung.endswith(".on") else None for rung in golden.rungs}
    assert_rungs_hold(golden, references, lambda given, ids: peft_logits(qwen2, given, ids))
    effect = golden.rungs["peft.on"].logits - golden.rungs["peft.off"].logits
    assert np.abs(effect).max() > 0.1


@pytest.mark.parametrize(
    "options",
    [{"lora_bias": True}, {"alora_invocation_tokens": [5, 6]}],
    ids=["a bias where the base has none", "an adapter that waits for its words"],
)
def test_what_peft_cannot_merge_is_refused(options, qwen2, make_adapter, tmp_path):
    with pytest.raises(UnsupportedError, match="PEFT cannot merge it"):
        merged_golden(maker(qwen2, tmp_path), make_adapter(qwen2, 6, **options))


def test_a_set_is_the_same_where_the_head_is_given_ten_rows_at_most(llama, tmp_path, monkeypatch):
    rows = []

    class Watched(GoldenMaker):
        def load(self):
            model = super().load()
            model.lm_head.register_forward_hook(lambda _, given, __: rows.append(given[0].shape))
            return model

    make = maker(llama, tmp_path)
    wanted = base_golden(make)
    monkeypatch.setattr("export.reference._MAX_LOGITS", 10 * make.vocab_size)
    found = base_golden(Watched(**vars(make)))
    assert max(shape[:-1].numel() for shape in rows) == 10
    assert [prompt.continuation for prompt in found.prompts] == [
        prompt.continuation for prompt in wanted.prompts
    ]
    assert found.full_rows.tolist() == wanted.full_rows.tolist()
    for name, rung in wanted.rungs.items():
        for part in ("logits", "logsumexp", "full"):
            ours, theirs = getattr(found.rungs[name], part), getattr(rung, part)
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5, err_msg=name)
        assert (found.rungs[name].argmax == rung.argmax).mean() >= 0.999
        assert list(found.rungs[name].operators) == list(rung.operators)
        for operator, sketches in rung.operators.items():
            np.testing.assert_allclose(
                found.rungs[name].operators[operator], sketches, rtol=0, atol=2e-4, err_msg=operator
            )
    assert found.noise_floor.max_abs == pytest.approx(wanted.noise_floor.max_abs, rel=1.0)


LAYER = [
    "input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
    "self_attn.o_proj", "post_attention_layernorm", "mlp.gate_proj", "mlp.up_proj",
    "mlp.down_proj",
]  # fmt: skip


def test_operators_are_those_of_the_model_in_the_order_in_which_they_run(golden):
    layers = [f"model.layers.{layer}.{name}" for layer in range(2) for name in LAYER]
    assert golden.operators == ["model.embed_tokens", *layers, "model.norm", "lm_head"]
    recorded = {name for name, rung in golden.rungs.items() if rung.operators}
    assert recorded == {"peft.on", "merged.on", "fake_quant.on"}
    shapes = {each.shape for n in recorded for each in golden.rungs[n].operators.values()}
    assert shapes == {(2, len(golden.full_rows), SKETCH)}


def test_operators_are_given_and_give_what_transformers_and_peft_compute(llama, users, golden):
    from peft import PeftModel

    model = load_model(open_base(str(llama)), torch.float32)
    tuned = PeftModel.from_pretrained(model, str(users[0][0])).eval()
    layer = model.model.layers[1]
    sequences = [[*prompt.ids, *prompt.continuation] for prompt in golden.prompts]
    until = [ids[: at + 1] for ids in sequences for at in range(len(ids))]
    for place, row in enumerate(golden.full_rows.tolist()):
        with torch.no_grad():
            said = tuned(torch.tensor([until[row]]), output_hidden_states=True)
            last = [hidden[0, -1:] for hidden in said.hidden_states]
            normed = layer.input_layernorm(last[1])
            wanted = {
                ("model.embed_tokens", 0): torch.tensor([[float(until[row][-1])]]),
                ("model.embed_tokens", 1): last[0],
                ("model.layers.1.input_layernorm", 0): last[1],
                ("model.layers.1.self_attn.q_proj", 0): normed,
                ("model.layers.1.self_attn.q_proj", 1): layer.self_attn.q_proj(normed),
                ("model.norm", 1): last[2],  # it comes with the norm applied
                ("lm_head", 1): said.logits[0, -1:],
            }
        for (name, side), exact in wanted.items():
            for rung in ("peft.on", "merged.on", "fake_quant.on"):  # float32: all say the same
                kept = golden.rungs[rung].operators[name][side, place]
                assert np.abs(kept - sketch(exact.numpy())[0]).max() <= 2e-4, (name, side, rung)


def test_rungs_agree_where_they_must(golden):
    rungs = golden.rungs
    assert np.array_equal(rungs["merged.off"].logits, rungs["peft.off"].logits)
    for rung in ("merged.on", "fake_quant.on"):  # float32: nothing is quantized
        assert np.abs(rungs[rung].logits - rungs["peft.on"].logits).max() <= 1e-5 * 10
    assert np.abs(rungs["peft.on"].logits - rungs["peft.off"].logits).max() > 0.1


def test_kept_ids_are_the_highest_of_both_float_references(golden):
    rows = np.arange(len(golden.ids))
    assert golden.ids.shape[1] == TOP
    assert all(len(set(row.tolist())) == TOP for row in golden.ids)
    for rung in ("peft.off", "peft.on"):
        assert (golden.ids == golden.rungs[rung].argmax[:, None]).any(1).all()
        highest = golden.rungs[rung].logits.max(1)
        place = (golden.ids == golden.rungs[rung].argmax[:, None]).argmax(1)
        assert np.array_equal(golden.rungs[rung].logits[rows, place], highest)


def test_noise_floor_is_small_and_larger_when_quantized(golden, qwen3_bundle):
    quantized = read_golden(qwen3_bundle.path)
    assert 0 < golden.noise_floor.max_abs < 1e-3
    assert golden.noise_floor.kl_mean < 1e-6
    assert golden.noise_floor.top1 > 0.99
    assert quantized.noise_floor.norm > golden.noise_floor.norm
    assert "lowering_max_abs" in golden.thresholds
    assert "lowering_max_abs" not in quantized.thresholds
