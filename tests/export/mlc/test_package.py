"""`export package`: the folder that MLC's tools take, and what is said where they are not there."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from export.adapter import export_adapter
from export.base import export_base
from export.mlc.lora_model import attach
from export.mlc.package import Tools, export_package
from protos.errors import InputError, MismatchError, UnsupportedError
from protos.tensor_cache import FILE, read_tensor_cache


@pytest.fixture(scope="module")
def base(llama, tmp_path_factory) -> Path:
    return export_base(str(llama), tmp_path_factory.mktemp("package") / "base", "mlc-q4f16_1").path


@pytest.fixture(scope="module")
def user(llama, base, make_adapter, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("package") / "user"
    return export_adapter(make_adapter(llama, seed=4), base, out, base=str(llama), trust_base=True,
                          goldens=False).path  # fmt: skip


def test_one_flat_directory_holds_base_and_adapter(base, user, tmp_path):
    out = export_package(base, user, "android", tmp_path / "app", None)
    model = out / "model"
    found = read_tensor_cache(model / FILE, [model])
    wanted = read_tensor_cache(user / FILE, [user, base])
    assert found.keys() == wanted.keys()
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted)
    config = json.loads((model / "mlc-chat-config.json").read_text())
    assert config["model_type"] == "llama_lora"
    assert all((model / name).is_file() for name in config["tokenizer_files"])


@pytest.mark.parametrize(("platform", "device"), [("android", "android"), ("ios", "iphone")])
def test_the_package_config_names_library_and_memory(base, tmp_path, platform, device):
    out = export_package(base, None, platform, tmp_path / "app", None)
    config = json.loads((out / "mlc-package-config.json").read_text())
    assert config["device"] == device
    (entry,) = config["model_list"]
    assert (out / entry["model"] / "mlc-chat-config.json").is_file()
    assert entry["bundle_weight"] is True
    assert entry["model_lib"] == "llama_q4f16_1"
    assert list(config["model_lib_path_for_prepare_libs"]) == [entry["model_lib"]]
    shards = sum(path.stat().st_size for path in (out / "model").glob("*.bin"))
    assert entry["estimated_vram_bytes"] > shards


def test_the_absence_of_mlcs_tools_is_said_in_one_line(base, tmp_path):
    for python in ("/no/such/python", "false"):
        with pytest.raises(UnsupportedError, match="mlc-llm-nightly-cpu") as caught:
            export_package(base, None, "ios", tmp_path / "app", Tools(python, None))
        assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(importlib.util.find_spec("mlc_llm") is None, reason="mlc_llm is not here")
@pytest.mark.slow
def test_mlcs_own_tools_build_the_library(base, user, tmp_path):
    import os

    source = os.environ.get("MLC_LLM_SOURCE_DIR")
    tools = Tools("python", Path(source) if source else None)
    out = export_package(base, user, "android", tmp_path / "app", tools)
    assert list((out / "lib").glob("*.tar"))


def test_an_adapter_of_another_base_is_refused(user, qwen3, tmp_path):
    other = export_base(str(qwen3), tmp_path / "other", "mlc-q4f16_1").path
    with pytest.raises(MismatchError, match="was made for the base bundle"):
        export_package(other, user, "android", tmp_path / "app", None)


def test_an_adapter_without_its_base_is_refused(user, tmp_path):
    with pytest.raises(InputError, match="give the base bundle as well"):
        export_package(None, user, "android", tmp_path / "app", None)
    assert not list(tmp_path.iterdir())


def test_nothing_of_others_is_replaced(base, tmp_path):
    out = tmp_path / "app"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match="no package of ours"):
        export_package(base, None, "android", out, None)
    assert (out / "mine.txt").read_text() == "keep"


def test_the_lora_model_for_mlc_computes_the_low_rank_change():
    """The layer that is registered with mlc_llm, compiled by TVM, against numpy."""
    import tvm
    from tvm import relax
    from tvm.relax.frontend import nn

    class Block(nn.Module):
        def __init__(self) -> None:
            self.self_attn, self.mlp = nn.Module(), nn.Module()
            self.self_attn.qkv_proj = nn.Linear(16, 24, bias=False)
            self.self_attn.o_proj = nn.Linear(24, 16, bias=False)
            self.mlp.down_proj = nn.Linear(16, 16, bias=False)

    class Model(nn.Module):
        def __init__(self) -> None:
            self.model = nn.Module()
            self.model.layers = nn.ModuleList([Block()])

        def forward(self, x: nn.Tensor) -> nn.Tensor:
            block = self.model.layers[0]
            return block.mlp.down_proj(block.self_attn.o_proj(block.self_attn.qkv_proj(x)))

    model = Model()
    assert attach(model, {"qkv_proj": 4, "down_proj": 2}, "float32") == 2
    spec = {"forward": {"x": nn.spec.Tensor([3, 16], "float32")}}
    module, parameters = model.export_tvm(spec=spec)
    rng = np.random.default_rng(0)
    values = {n: rng.standard_normal([int(s) for s in p.shape]).astype("float32")
              for n, p in parameters}  # fmt: skip
    machine = relax.VirtualMachine(tvm.compile(module, "llvm"), tvm.cpu())
    x = rng.standard_normal((3, 16)).astype("float32")
    given = [tvm.runtime.tensor(a) for a in (x, *values.values())]
    found = machine["forward"](*given).numpy()

    def layer(y: np.ndarray, name: str) -> np.ndarray:
        stem = f"model.layers.0.{name}."
        out = y @ values[f"{stem}weight"].T
        if f"{stem}lora_a" in values:
            out = out + y @ values[f"{stem}lora_a"].T @ values[f"{stem}lora_b"].T
        return out

    wanted = layer(layer(layer(x, "self_attn.qkv_proj"), "self_attn.o_proj"), "mlp.down_proj")
    assert sum("lora_" in name for name in values) == 4
    assert np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max()


def test_a_rank_for_a_layer_that_is_not_there_is_refused():
    class Empty:
        class model:  # noqa: N801
            layers = ()

    with pytest.raises(ValueError, match="qkv_proj"):
        attach(Empty, {"qkv_proj": 4}, "float32")
