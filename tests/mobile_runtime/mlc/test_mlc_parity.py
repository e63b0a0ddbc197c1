"""Parity of MLC bundles that the real export made: every way to ship an adapter, what must fail."""

from pathlib import Path

import pytest

from mobile_runtime.parity import measure_parity, parity
from tests.mobile_runtime.conftest import CONTEXT, PROMPTS, THREADS, make_world

BUNDLED = Path(__file__).parents[3] / "cloud/pocket/models/base"


@pytest.fixture(scope="session")
def worlds(tmp_path_factory, model_dir, peft_dirs):
    """The tiny base with two users' adapters as parameters, exact and in four bits."""
    home = tmp_path_factory.mktemp("mlc")
    return {
        name: make_world(home / name, model_dir, peft_dirs, f"mlc-{name}")
        for name in ("q0f32", "q4f32_1", "q4f16_1")
    }


def failed(result) -> set[str]:
    return {gate.name for gate in result.gates if not gate.passed}


@pytest.mark.parametrize("name", ["q0f32", "q4f32_1", "q4f16_1"])
def test_adapters_as_parameters_answer_as_trained(worlds, cache_dir, name):
    world = worlds[name]
    for user in ("ada", "bo"):
        result = measure_parity(world.base, world.adapters[user], THREADS, cache_dir=cache_dir)
        assert result.passed, failed(result)
        assert result.layout == "adapter"
        assert max(each.max_abs for each in result.lowering.values()) <= 1e-4
        assert min(each.top1 for each in result.lowering.values()) >= 0.999
        assert result.effect is not None
        assert result.effect.cosine > 0.9


@pytest.mark.parametrize("name", ["q0f32", "q4f32_1"])
def test_the_bundled_base_is_within_a_ten_thousandth(tmp_path, cache_dir, name):
    """Against Hugging Face with the weights in the directory: top-1 on every position."""
    from export.base import export_base

    base = export_base(str(BUNDLED), tmp_path / "base", f"mlc-{name}", threads=THREADS).path
    result = measure_parity(base, None, THREADS, cache_dir=cache_dir)
    assert result.passed, failed(result)
    assert result.positions >= 1000
    assert result.lowering["off"].max_abs <= 1e-4
    assert result.lowering["off"].top1 == 1.0


def test_another_users_adapter_under_ones_name_is_found(worlds, cache_dir, tmp_path):
    """The goldens of ada with the shards of bo: sound by every digest, and the wrong adapter."""
    import shutil

    from protos.artifacts import create, open_artifact

    world = worlds["q0f32"]
    ada, bo = world.adapters["ada"], world.adapters["bo"]
    right = open_artifact(ada, "AdapterBundle")
    with create(tmp_path / "wrong", "AdapterBundle", right.manifest.parents, right.config) as draft:
        for name in right.manifest.files:
            home = ada if name.startswith("golden") else bo
            shutil.copyfile(home / name, draft.path / name)
    result = measure_parity(world.base, tmp_path / "wrong", THREADS, cache_dir=cache_dir)
    assert not result.passed
    assert "effect_cosine" in failed(result)
    assert result.stage_at_fault == "adapter"


def test_merged_forms_pass_in_full_precision(worlds, model_dir, peft_dirs, cache_dir, tmp_path):
    """Delta shards beside the base, and a directory of its own."""
    from export.adapter import export_adapter
    from export.merged import export_merged

    world = worlds["q0f32"]
    delta = export_adapter(
        peft_dirs["ada"], world.base, tmp_path / "delta", base=str(model_dir), mode="merged",
        prompts=PROMPTS, trust_base=True, threads=THREADS,
    ).path  # fmt: skip
    alone = export_merged(
        peft_dirs["ada"], tmp_path / "alone", "mlc-q0f32", base=str(model_dir),
        context_length=CONTEXT, prompts=PROMPTS, trust_base=True, threads=THREADS,
    ).path  # fmt: skip
    for base, adapter in ((world.base, delta), (None, alone)):
        result = measure_parity(base, adapter, THREADS, cache_dir=cache_dir)
        assert result.passed, failed(result)
        assert result.effect is not None
        assert result.effect.cosine > 0.99


def test_the_base_alone_fails_the_effect_gate(worlds, cache_dir):
    world = worlds["q4f32_1"]
    result = measure_parity(world.base, world.adapters["ada"], THREADS, cache_dir=cache_dir)
    (control,) = [gate for gate in result.gates if gate.name == "negative_control"]
    assert control.passed
    assert result.control is not None
    assert result.control.cosine < 0.5


def test_the_report_names_the_engine(worlds, cache_dir, tmp_path):
    world = worlds["q0f32"]
    report, _ = parity(world.base, None, tmp_path / "report", THREADS, cache_dir=cache_dir)
    assert report.config["engine"] == "mlc-tvm"
    assert report.manifest.tools["apache-tvm"]
