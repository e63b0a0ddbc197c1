"""A probe says what each layer gives on the device, and parity with it which layer is at fault."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from mobile_runtime.parity import measure_parity, require
from mobile_runtime.probe import device_layers
from protos.artifacts import open_artifact
from protos.errors import GateError, InputError, MismatchError, UnsupportedError
from protos.golden import read_golden

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def probe(world, tmp_path_factory) -> Path:
    from export.executorch.probe import export_probe

    out = tmp_path_factory.mktemp("probe") / "fp32"
    return export_probe(world.base, out, base=str(world.base_model), threads=1).path


@pytest.fixture(scope="session")
def quantized_probe(quantized, tmp_path_factory) -> Path:
    from export.executorch.probe import export_probe

    out = tmp_path_factory.mktemp("probe") / "8da4w"
    return export_probe(quantized.base, out, base=str(quantized.base_model), threads=1).path


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
def test_the_devices_layers_are_those_of_transformers_and_peft(
    world, probe, references, cache_dir, user
) -> None:
    """`hidden_states[1]` is what the first of the two layers gives."""
    import torch

    adapter = world.adapters[user] if user else None
    golden = read_golden(adapter or world.base)
    layers = device_layers(probe, world.base, adapter, golden, 1, cache_dir)
    assert layers.shape == (2, len(golden.full_rows), 64)
    sequences = [[*p.ids, *p.continuation] for p in golden.prompts]
    flat = [ids[: at + 1] for ids in sequences for at in range(len(ids))]
    for place, row in enumerate(golden.full_rows):
        with torch.no_grad():
            said = references[user]._model(torch.tensor([flat[row]]), output_hidden_states=True)
        wanted = said.hidden_states[1][0, -1].numpy()
        np.testing.assert_allclose(layers[0, place], wanted, atol=1e-4 * np.abs(wanted).max())


def test_a_sound_export_has_layers_far_above_the_noise(world, probe, cache_dir) -> None:
    result = measure_parity(world.base, world.adapters["ada"], 1, cache_dir=cache_dir, probe=probe)
    assert result.passed
    assert result.layer_at_fault is None
    assert min(result.layer_sqnr["lowering"]) > 80


@pytest.mark.parametrize("layer", [0, 1])
def test_a_weight_altered_after_export_is_named_by_its_layer(
    world, probe, altered, cache_dir, layer
) -> None:
    name = f"model.layers.{layer}.mlp.down_proj.weight"
    old = load_file(world.base_model / "model.safetensors")[name]
    new = old * np.float32(1.05)
    base, bound = altered(world.base, probe, lambda d: replace(d, old.tobytes(), new.tobytes()))
    result = measure_parity(base, None, 1, cache_dir=cache_dir, probe=bound)
    assert result.stage_at_fault == "lowering"
    assert result.layer_at_fault == f"layer {layer}"
    with pytest.raises(GateError, match=f"stage at fault: lowering, worst at layer {layer} "):
        require(result)


def test_a_head_altered_after_export_is_named_as_the_head(world, probe, altered, cache_dir) -> None:
    old = load_file(world.base_model / "model.safetensors")["lm_head.weight"]
    new = old * np.float32(1.01)
    base, bound = altered(world.base, probe, lambda d: replace(d, old.tobytes(), new.tobytes()))
    result = measure_parity(base, None, 1, cache_dir=cache_dir, probe=bound)
    assert (result.stage_at_fault, result.layer_at_fault) == ("lowering", "the head")


@pytest.mark.parametrize("layer", [0, 1])
def test_a_layers_int4_scales_altered_after_export_are_named_by_the_layer(
    quantized, quantized_probe, altered, cache_dir, layer
) -> None:
    import torch

    from export.executorch.quantize import quantize
    from export.recipes import find_recipe
    from protos.base_model import load_model, open_base

    model = load_model(open_base(str(quantized.base_model)), torch.float32)
    quantize(model, find_recipe("executorch-xnnpack-8da4w"))
    weight = model.get_submodule(f"model.layers.{layer}.mlp.down_proj").weight
    scales = weight.scale.to(torch.bfloat16)
    old, new = (s.contiguous().view(torch.int16).numpy().tobytes() for s in (scales, scales * 2))
    base, bound = altered(quantized.base, quantized_probe, lambda d: replace(d, old, new))
    result = measure_parity(base, None, 1, cache_dir=cache_dir, probe=bound)
    assert (result.stage_at_fault, result.layer_at_fault) == ("lowering", f"layer {layer}")


def test_a_probe_of_another_base_is_refused(world, probe, reseal, cache_dir) -> None:
    other = reseal(probe, lambda _: None, {"base_bundle": "0" * 64})
    golden = read_golden(world.base)
    with pytest.raises(MismatchError, match="made for the base bundle 0000"):
        device_layers(other, world.base, None, golden, 1, cache_dir)


def test_a_probe_needs_a_base_and_no_merged_bundle(world, merged_bundle, probe, cache_dir) -> None:
    with pytest.raises(InputError, match="give the BaseBundle"):
        measure_parity(None, merged_bundle, 1, cache_dir=cache_dir, probe=probe)
    with pytest.raises(UnsupportedError, match="merged its own"):
        measure_parity(world.base, merged_bundle, 1, cache_dir=cache_dir, probe=probe)
