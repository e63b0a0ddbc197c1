"""Core ML and Vulkan are lowered whole, and bundle and parity say that nothing here runs them."""

import json

import pytest
import torch
from click.testing import CliRunner

from export.base import export_base
from export.executorch.accelerated import quantize
from export.executorch.stateful import StatefulModule
from export.merged import export_merged
from export.recipes import find_recipe
from mobile_runtime.bundles import open_adapter
from mobile_runtime.cli import parity as parity_command
from mobile_runtime.page import page
from mobile_runtime.parity import measure_parity, require
from protos.base_model import load_model, open_base
from protos.errors import NotRunError, UnsupportedError
from protos.golden import read_golden

IDS = [7, 44, 130, 201, 9, 77, 15, 230, 61, 5]


def test_the_stateful_module_says_token_by_token_what_transformers_says(llama):
    base = open_base(str(llama))
    expected = load_model(base, torch.float32)(input_ids=torch.tensor([IDS])).logits[0]
    module = StatefulModule(load_model(base, torch.float32), 64).eval()
    with torch.no_grad():
        said = [module(torch.tensor([[t]]), torch.tensor([at]))[0] for at, t in enumerate(IDS)]
    assert (torch.stack(said) - expected).abs().max() <= 1e-5


@pytest.fixture(scope="module", params=["executorch-coreml", "executorch-vulkan"])
def bundle(request, llama, make_adapter, tmp_path_factory):
    out = tmp_path_factory.mktemp("accelerated") / request.param
    return export_merged(
        make_adapter(llama, 3), out, request.param, base=str(llama), trust_base=True
    )


@pytest.mark.slow
def test_one_delegate_takes_the_whole_model_and_the_bundle_says_that_it_was_not_run(bundle):
    name = bundle.config["recipe"]
    delegate = {"executorch-coreml": "CoreMLBackend", "executorch-vulkan": "VulkanBackend"}[name]
    measured = bundle.manifest.measured
    assert measured["verdict"] == "lowered, not run here"
    assert measured["delegates"] == [delegate]
    assert "lowered, not run here" in measured["warnings"][0]
    described = json.loads(bundle.file("adapter.json").read_text())
    assert described["backend"] == name
    assert described["runs_here"] is False
    assert bundle.file("program.pte").read_bytes().count(delegate.encode()) == 1


@pytest.mark.slow
def test_the_golden_is_of_the_weights_that_were_lowered(bundle, llama):
    """The first linear layer, rounded by hand: to float16, or to 15 steps in groups of 32."""
    recipe = find_recipe(bundle.config["recipe"])
    model = load_model(open_base(str(llama)), torch.float32)
    name = "model.layers.0.self_attn.q_proj"
    weight = model.get_submodule(name).weight.detach().clone()
    quantize(model, recipe)
    shipped = model.get_submodule(name).weight
    if recipe.group_size:
        shipped = shipped.dequantize()
        step = weight.reshape(-1, 32).abs().amax(1) / 7.5
        assert ((shipped - weight).reshape(-1, 32).abs().amax(1) <= step * 0.51).all()
    else:
        assert torch.equal(shipped, weight.to(torch.float16).to(torch.float32))
    golden = read_golden(bundle.path)
    assert abs(golden.rungs["fake_quant.on"].logits - golden.rungs["merged.on"].logits).max() > 0


@pytest.mark.slow
def test_parity_checks_what_it_can_and_does_not_call_it_sound(bundle, tmp_path):
    result = measure_parity(None, bundle.path, 1)
    assert not result.passed
    assert result.stage_at_fault == "lowered, not run here"
    assert [gate.name for gate in result.gates if not gate.passed] == ["run_here"]
    assert {"structure_ids", "structure_eos"} < {gate.name for gate in result.gates}
    assert result.reference_stages["quantization"]["on"].kl_mean > 0
    with pytest.raises(NotRunError, match="no verdict: lowered, not run here"):
        require(result)
    assert "Parity of the merged: lowered, not run here" in page(result)
    asked = ["--adapter-bundle", str(bundle.path), "--out", str(tmp_path / "report")]
    for _ in range(2):  # the second time the report is read
        told = CliRunner().invoke(parity_command, asked)
        assert isinstance(told.exception, NotRunError)
        assert told.exception.exit_code == 9
        assert "lowered, not run here" in told.stdout


@pytest.mark.slow
def test_it_is_not_run(bundle):
    with pytest.raises(UnsupportedError, match="nothing here runs it"):
        open_adapter(bundle.path, None)


@pytest.mark.parametrize("name", ["executorch-coreml", "executorch-vulkan"])
def test_there_is_no_base_apart_from_its_adapters(name, llama, tmp_path):
    with pytest.raises(UnsupportedError, match="use `export merged`"):
        export_base(str(llama), tmp_path / "b", name)
    assert not (tmp_path / "b").exists()


def test_sliding_windows_are_refused(llama, make_adapter, tmp_path):
    import shutil

    base = shutil.copytree(llama, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    config |= {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
    config |= {"use_sliding_window": True, "sliding_window": 8}
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedError, match="sliding windows are lowered for XNNPACK only"):
        export_merged(
            make_adapter(llama, 3), tmp_path / "m", "executorch-vulkan", base=str(base),
            trust_base=True,
        )  # fmt: skip
