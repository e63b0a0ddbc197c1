"""A probe says what operators give on the device, and parity with it which one is at fault."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from mobile_runtime.compare import noise_share
from mobile_runtime.gates import NOT_RUN
from mobile_runtime.parity import measure_parity, require
from mobile_runtime.probe import device_operators
from protos.artifacts import open_artifact
from protos.errors import GateError, InputError, MismatchError, UnsupportedError
from protos.golden import read_golden, sketch
from protos.ptd import read_ptd

pytestmark = pytest.mark.slow


@pytest.fixture
def altered(reseal):
    """A base whose foundation differs, and its probe bound to it: right digests, wrong numbers."""

    def make(base: Path, probe: Path, change) -> tuple[Path, Path]:
        broken = reseal(base, change)
        return broken, reseal(probe, lambda _: None, {"base_bundle": open_artifact(broken).id})

    return make


def replace(directory: Path, old: bytes, new: bytes) -> None:
    file = directory / "foundation.ptd"
    data = file.read_bytes()
    assert data.count(old) == 1
    file.write_bytes(data.replace(old, new))


@pytest.mark.parametrize("user", [None, "ada"])
def test_the_devices_operators_are_those_of_transformers_and_peft(
    world, probe, references, cache_dir, user
) -> None:
    """`hidden_states[1]` is what the second of the two layers is given."""
    import torch

    adapter = world.adapters[user] if user else None
    golden = read_golden(adapter or world.base)
    operators = device_operators(probe, world.base, adapter, golden, 1, cache_dir)
    assert list(operators) == golden.operators
    sequences = [[*p.ids, *p.continuation] for p in golden.prompts]
    flat = [ids[: at + 1] for ids in sequences for at in range(len(ids))]
    for place, row in enumerate(golden.full_rows):
        with torch.no_grad():
            said = references[user]._model(torch.tensor([flat[row]]), output_hidden_states=True)
        wanted = {
            ("model.embed_tokens", 0): np.array([[flat[row][-1]]]),
            ("model.embed_tokens", 1): said.hidden_states[0][0, -1:].numpy(),
            ("model.layers.1.input_layernorm", 0): said.hidden_states[1][0, -1:].numpy(),
            ("model.norm", 1): said.hidden_states[2][0, -1:].numpy(),
            ("lm_head", 1): said.logits[0, -1:].numpy(),
        }
        for (name, side), exact in wanted.items():
            bound = 2e-4 * np.abs(exact).max()
            np.testing.assert_allclose(
                operators[name][side, place], sketch(exact)[0], atol=bound, err_msg=name
            )
    shipped = golden.rungs["fake_quant.on" if user else "fake_quant.off"].operators
    shares = [noise_share(shipped[name][1], operators[name][1]) for name in shipped]
    assert max(shares) < 1e-8


def test_a_sound_export_has_operators_far_above_the_noise(world, probe, cache_dir) -> None:
    result = measure_parity(world.base, world.adapters["ada"], 1, cache_dir=cache_dir, probe=probe)
    assert result.passed
    assert result.operator_at_fault is None
    assert set(result.operators) == {"merge", "quantization", "lowering"}
    assert min(min(pair) for pair in result.operators["lowering"].sqnr.values()) > 80


@pytest.mark.parametrize(
    "operator",
    ["layers.0.self_attn.k_proj", "layers.0.mlp.down_proj", "layers.1.mlp.gate_proj"],
)
def test_a_weight_altered_after_export_is_named(world, probe, altered, cache_dir, operator) -> None:
    name = f"model.{operator}"
    old = load_file(world.base_model / "model.safetensors")[f"{name}.weight"]
    new = old * np.float32(1.05)
    base, bound = altered(world.base, probe, lambda d: replace(d, old.tobytes(), new.tobytes()))
    result = measure_parity(base, None, 1, cache_dir=cache_dir, probe=bound)
    assert (result.stage_at_fault, result.operator_at_fault) == ("lowering", name)
    with pytest.raises(GateError, match=f"stage at fault: lowering, worst at {name} "):
        require(result)


def test_a_wrong_rope_is_named_as_what_the_first_attention_gives(
    world, probe, altered, cache_dir
) -> None:
    right = (1 / 10_000 ** (np.arange(0, 16, 2) / 16)).astype(np.float32)
    file = next(t for t in read_ptd(world.base / "foundation.ptd") if t.key.endswith("inv_freq"))
    data = (world.base / "foundation.ptd").read_bytes()
    held = data[file.offset : file.offset + file.size_bytes]
    np.testing.assert_allclose(np.frombuffer(held, np.float32), right, rtol=1e-6)
    wrong = (1 / 500_000 ** (np.arange(0, 16, 2) / 16)).astype(np.float32).tobytes()
    base, bound = altered(world.base, probe, lambda d: replace(d, held, wrong))
    result = measure_parity(base, None, 1, cache_dir=cache_dir, probe=bound)
    assert result.stage_at_fault == "lowering"
    assert result.operator_at_fault == "the input of model.layers.0.self_attn.o_proj"


def test_a_head_altered_after_export_is_named_as_the_head(world, probe, altered, cache_dir) -> None:
    old = load_file(world.base_model / "model.safetensors")["lm_head.weight"]
    new = old * np.float32(1.01)
    base, bound = altered(world.base, probe, lambda d: replace(d, old.tobytes(), new.tobytes()))
    result = measure_parity(base, None, 1, cache_dir=cache_dir, probe=bound)
    assert (result.stage_at_fault, result.operator_at_fault) == ("lowering", "lm_head")


@pytest.mark.parametrize("layer", [0, 1])
def test_int4_scales_altered_after_export_are_named_by_their_operator(
    quantized, quantized_probe, altered, cache_dir, layer
) -> None:
    import torch

    from export.executorch.quantize import quantize
    from export.recipes import find_recipe
    from protos.base_model import load_model, open_base

    model = load_model(open_base(str(quantized.base_model)), torch.float32)
    quantize(model, find_recipe("executorch-xnnpack-8da4w"))
    name = f"model.layers.{layer}.mlp.down_proj"
    weight = model.get_submodule(name).weight
    scales = weight.scale.to(torch.bfloat16)
    old, new = (s.contiguous().view(torch.int16).numpy().tobytes() for s in (scales, scales * 2))
    base, bound = altered(quantized.base, quantized_probe, lambda d: replace(d, old, new))
    result = measure_parity(base, None, 1, cache_dir=cache_dir, probe=bound)
    assert (result.stage_at_fault, result.operator_at_fault) == ("lowering", name)


def test_a_probe_of_another_base_is_refused(world, probe, reseal, cache_dir) -> None:
    other = reseal(probe, lambda _: None, {"base_bundle": "0" * 64})
    golden = read_golden(world.base)
    with pytest.raises(MismatchError, match="made for the base bundle 0000"):
        device_operators(other, world.base, None, golden, 1, cache_dir)


def test_a_probe_needs_a_base_and_no_merged_bundle(world, merged_bundle, probe, cache_dir) -> None:
    with pytest.raises(InputError, match="give the BaseBundle"):
        measure_parity(None, merged_bundle, 1, cache_dir=cache_dir, probe=probe)
    with pytest.raises(UnsupportedError, match="merged its own"):
        measure_parity(world.base, merged_bundle, 1, cache_dir=cache_dir, probe=probe)


def not_run_here(directory: Path) -> None:
    """As bundles for Core ML and Vulkan say it."""
    file = directory / "adapter.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "runs_here": False}))


def test_a_wrong_probe_is_refused_before_anything_is_replayed(
    world, merged_bundle, probe, reseal, cache_dir
) -> None:
    other = reseal(probe, lambda _: None, {"base_bundle": "0" * 64})
    unrun = reseal(merged_bundle, not_run_here)
    wrong = [
        (world.adapters["ada"], other, MismatchError, "made for the base bundle 0000"),
        (merged_bundle, probe, UnsupportedError, "merged its own"),
        (unrun, probe, UnsupportedError, "merged its own"),
    ]
    said: list[str] = []
    for adapter, given, error, message in wrong:
        with pytest.raises(error, match=message):
            measure_parity(
                world.base, adapter, 1, lambda what, _: said.append(what), cache_dir, given
            )
    assert not said


def test_a_bundle_that_is_not_run_here_is_held_against_the_base_that_is_given(
    world, merged_bundle, reseal
) -> None:
    unrun = reseal(merged_bundle, not_run_here)
    result = measure_parity(world.base, unrun, 1)
    assert result.stage_at_fault == NOT_RUN
    assert result.digests["base_bundle"] == open_artifact(world.base).id
    other = reseal(world.base, lambda _: None, {"base_model": "0" * 64})
    with pytest.raises(MismatchError, match="is of 0000"):
        measure_parity(other, unrun, 1)
