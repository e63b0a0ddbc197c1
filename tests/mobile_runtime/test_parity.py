"""Sound bundles pass, every gate can fail, and the stage at fault is named."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mobile_runtime.engine import open_engine
from mobile_runtime.parity import measure_parity, parity, require
from mobile_runtime.report import ParityResult, as_json, read_report
from pocketune import service_parity
from protos.artifacts import open_artifact
from protos.errors import ArtifactError, GateError, InputError
from protos.golden import Golden, Rung, read_golden, write_golden
from protos.progress import silent

Measure = Callable[..., ParityResult]


@pytest.fixture
def measure(cache_dir: Path) -> Measure:
    return lambda base, adapter=None: measure_parity(base, adapter, 1, cache_dir=cache_dir)


def failed(result: ParityResult) -> set[str]:
    return {gate.name for gate in result.gates if not gate.passed}


@pytest.mark.parametrize("user", [None, "ada", "bo"])
def test_sound_float_bundles_pass(world, measure, user) -> None:
    result = measure(world.base, world.adapters.get(user))
    assert failed(result) == set()
    assert (result.passed, result.stage_at_fault) == (True, None)
    assert set(result.lowering) == ({"off", "on"} if user else {"off"})
    for comparison in result.lowering.values():
        assert comparison.max_abs <= 1e-4
        assert comparison.top1 == 1.0
    if user:
        assert result.effect is not None
        assert result.effect.cosine > 0.9999
        assert result.control is not None
        assert result.control.no_effect


@pytest.mark.slow
def test_a_sound_merged_bundle_passes_without_a_base(merged_bundle, measure) -> None:
    result = measure(None, merged_bundle)
    assert failed(result) == set()
    assert (result.layout, set(result.lowering)) == ("merged", {"on"})


@pytest.mark.slow
def test_a_sound_quantized_adapter_passes_what_does_not_need_trained_weights(
    quantized, measure
) -> None:
    result = measure(quantized.base, quantized.adapters["ada"])
    # On random weights logits lie so close that rounding alone changes the likeliest token.
    assert failed(result) <= {"lowering_top1.off", "lowering_top1.on"}
    noise = 1 - result.noise_floor.top1
    assert all(1 - each.top1 <= 3 * noise + 0.01 for each in result.lowering.values())
    assert result.lowering["on"].kl_mean < result.quantization["on"].kl_mean


def with_golden(change: Callable[[Golden], Golden]) -> Callable[[Path], None]:
    def mutate(directory: Path) -> None:
        golden = read_golden(directory)
        write_golden(directory, change(golden))

    return mutate


def change_rungs(golden: Golden, names: list[str], change: Callable[[Rung], Rung]) -> Golden:
    rungs = {n: change(rung) if n in names else rung for n, rung in golden.rungs.items()}
    return dataclasses.replace(golden, rungs=rungs)


def shift(amount: float) -> Callable[[Rung], Rung]:
    return lambda rung: dataclasses.replace(rung, logits=rung.logits + np.float32(amount))


def flatten(rung: Rung) -> Rung:
    """Half as certain: another distribution with the same order."""
    logits = (rung.logits / 2).astype(np.float32)
    return dataclasses.replace(rung, logits=logits, logsumexp=(rung.logsumexp / 2 + 3))


def other_choice(rung: Rung) -> Rung:
    return dataclasses.replace(rung, argmax=(rung.argmax + 1).astype(np.int32))


def first_prompt(golden: Golden, **changes: object) -> Golden:
    first = dataclasses.replace(golden.prompts[0], **changes)  # type: ignore[arg-type]
    return dataclasses.replace(golden, prompts=[first, *golden.prompts[1:]])


def few_prompts(golden: Golden) -> Golden:
    prompts = golden.prompts[:3]
    rows = sum(p.length for p in prompts)
    kept = golden.full_rows[golden.full_rows < rows]

    def cut(rung: Rung) -> Rung:
        return Rung(
            rung.logits[:rows], rung.logsumexp[:rows], rung.argmax[:rows], rung.full[: len(kept)],
            {name: each[:, : len(kept)] for name, each in rung.operators.items()},
        )  # fmt: skip

    return dataclasses.replace(
        change_rungs(golden, list(golden.rungs), cut),
        prompts=prompts, ids=golden.ids[:rows], full_rows=kept,
    )  # fmt: skip


def limits(**values: float) -> Callable[[Golden], Golden]:
    return lambda g: dataclasses.replace(g, thresholds={**g.thresholds, **values})


def quieter(golden: Golden) -> Golden:
    """PEFT changes twice as much as the device: so the device's effect is half as large."""
    on, off = golden.rungs["peft.on"], golden.rungs["peft.off"]
    doubled = dataclasses.replace(on, logits=2 * on.logits - off.logits)
    rungs = {**golden.rungs, "peft.on": doubled, "merged.on": doubled, "fake_quant.on": on}
    return dataclasses.replace(golden, rungs=rungs)


def everything_is_noise(golden: Golden) -> Golden:
    return dataclasses.replace(
        golden, noise_floor=dataclasses.replace(golden.noise_floor, norm=1e9)
    )


ON = ["peft.on", "merged.on", "fake_quant.on"]
OFF = ["peft.off", "merged.off", "fake_quant.off"]
BROKEN: dict[str, tuple[Callable[[Golden], Golden], str, str]] = {
    "top-1": (
        lambda g: change_rungs(g, ["fake_quant.off"], other_choice),
        "lowering_top1.off",
        "lowering",
    ),
    "KL": (lambda g: change_rungs(g, OFF, flatten), "lowering_kl_mean.off", "lowering"),
    "logits": (
        lambda g: change_rungs(g, [*ON, *OFF], shift(1e-3)), "lowering_max_abs.off", "lowering",
    ),
    "adapter": (lambda g: change_rungs(g, ON, flatten), "lowering_kl_mean.on", "adapter"),
    "quantization": (
        lambda g: limits(quantization_kl_mean=1e-3)(
            change_rungs(g, ["fake_quant.on", "fake_quant.off"], flatten)
        ),
        "lowering_kl_mean.on", "quantization",
    ),
    "float": (
        lambda g: limits(quantization_kl_mean=1e-3)(
            change_rungs(g, ["peft.on", "merged.on"], flatten)
        ),
        "quantization_kl_mean.on", "quantization",
    ),
    "merge": (
        lambda g: change_rungs(g, ["merged.on", "fake_quant.on"], flatten),
        "lowering_kl_mean.on", "merge",
    ),
    "norm": (quieter, "effect_norm", "quantization"),
    "direction": (
        lambda g: change_rungs(g, ["peft.on", "merged.on", "fake_quant.on"], lambda r: (
            dataclasses.replace(r, logits=np.ascontiguousarray(r.logits[:, ::-1])))),
        "effect_cosine", "adapter",
    ),
    "no effect": (everything_is_noise, "effect_present", "training"),
    "control": (
        lambda g: limits(effect_cosine=-1, effect_norm_low=0, effect_norm_high=9)(
            dataclasses.replace(g, noise_floor=dataclasses.replace(g.noise_floor, norm=-1.0))
        ),
        "negative_control", "control",
    ),
    "ids": (lambda g: first_prompt(g, ids=g.prompts[0].ids[::-1]), "structure_ids", "tokenizer"),
    "rendered": (lambda g: first_prompt(g, rendered="x"), "structure_rendered", "tokenizer"),
    "content": (lambda g: first_prompt(g, content="other"), "structure_ids", "tokenizer"),
    "few": (few_prompts, "structure_positions", "golden"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_every_gate_can_fail_and_names_the_stage(world, measure, reseal, name) -> None:
    change, gate, stage = BROKEN[name]
    broken = reseal(world.adapters["ada"], with_golden(change))
    result = measure(world.base, broken)
    assert gate in failed(result)
    assert result.stage_at_fault == stage
    with pytest.raises(GateError, match=f"stage at fault: {stage}"):
        require(result)


def test_an_adapter_that_was_not_trained_fails_and_training_is_named(
    world, measure, tmp_path: Path
) -> None:
    from safetensors.numpy import load_file, save_file

    from export.adapter import export_adapter

    untrained = tmp_path / "untrained"
    shutil.copytree(world.peft["ada"], untrained)
    weights = load_file(untrained / "adapter_model.safetensors")
    zeroed = {k: v * (0 if "lora_B" in k else 1) for k, v in weights.items()}
    save_file(zeroed, untrained / "adapter_model.safetensors")
    export_adapter(
        untrained, world.base, tmp_path / "bundle", base=str(world.base_model), trust_base=True,
        threads=1,
    )  # fmt: skip
    result = measure(world.base, tmp_path / "bundle")
    assert {"effect_present", "effect_cosine", "effect_norm"} <= failed(result)
    assert result.stage_at_fault == "training"


def test_end_tokens_that_are_no_tokens_fail(world, measure, reseal) -> None:
    def lose_the_end(directory: Path) -> None:
        value = json.loads((directory / "prompt.json").read_text())
        value["eos_ids"] = [9999]
        (directory / "prompt.json").write_text(json.dumps(value))

    result = measure(reseal(world.base, lose_the_end))
    assert failed(result) == {"structure_eos"}
    assert result.stage_at_fault == "tokenizer"


def test_a_cache_that_is_not_reset_fails(world, measure, monkeypatch) -> None:
    from mobile_runtime.executorch_engine import ExecuTorchEngine

    def forget_less(self: ExecuTorchEngine) -> None:
        self._position = 0 if self._position + 80 > self.context_length else 3

    monkeypatch.setattr(ExecuTorchEngine, "reset", forget_less)
    result = measure(world.base)
    assert "lowering_kl_mean.off" in failed(result) or "lowering_max_abs.off" in failed(result)
    assert result.stage_at_fault == "lowering"


UNUSABLE: dict[str, tuple[Callable[[Golden], Golden], str]] = {
    "no thresholds": (lambda g: dataclasses.replace(g, thresholds={}), "lowering_top1 is missing"),
    "no rung": (
        lambda g: dataclasses.replace(
            g, rungs={n: r for n, r in g.rungs.items() if n != "fake_quant.on"}
        ),
        "rung fake_quant.on is missing",
    ),
    "not finite": (lambda g: change_rungs(g, ["peft.on"], shift(np.nan)), "peft.on is not finite"),
    "ids": (lambda g: dataclasses.replace(g, ids=g.ids + np.int32(9999)), "outside the vocabulary"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_goldens_that_cannot_judge_are_refused(world, measure, reseal, name) -> None:
    change, message = UNUSABLE[name]
    with pytest.raises(ArtifactError, match=message):
        measure(world.base, reseal(world.adapters["ada"], with_golden(change)))


def test_a_bundle_without_goldens_says_so(world, measure, reseal) -> None:
    def strip(directory: Path) -> None:
        for path in directory.glob("golden.*"):
            path.unlink()

    with pytest.raises(InputError, match="holds no goldens"):
        measure(world.base, reseal(world.adapters["ada"], strip))


def test_the_report_is_an_artifact_that_reads_back_and_is_reused(
    world, cache_dir, tmp_path
) -> None:
    out = tmp_path / "report"
    said: list[float] = []
    report, result = parity(
        world.base, world.adapters["ada"], out, 1, lambda _, share: said.append(share), cache_dir
    )
    assert dict(report.manifest.parents) == {
        "base_bundle": open_artifact(world.base).id,
        "adapter_bundle": open_artifact(world.adapters["ada"]).id,
    }
    assert said == sorted(said)
    assert said[-1] < 1
    assert read_report(report) == result
    said.clear()
    assert parity(world.base, world.adapters["ada"], out, 1, lambda _, s: said.append(s)) == (
        report, result,
    )  # fmt: skip
    assert not said
    shutil.rmtree(out)
    again, _ = parity(world.base, world.adapters["ada"], out, 1, cache_dir=cache_dir)
    assert again.id == report.id  # seconds are no part of it


def test_the_services_parity_leaves_the_users_weights_nowhere(world, tmp_path, monkeypatch) -> None:
    """The runtime joins base and adapter in one file; it goes with the measurement."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    job = tmp_path / "job"
    job.mkdir()
    service_parity(str(world.base), str(world.adapters["ada"]), str(job / "parity"), 1, silent)
    assert read_report(open_artifact(job / "parity", "ParityReport")).passed
    assert [path.name for path in job.iterdir()] == ["parity"]
    assert not list(tmp_path.rglob("*.ptd"))


def test_the_report_holds_every_figure(world, measure) -> None:
    value = json.loads(json.dumps(as_json(measure(world.base, world.adapters["ada"]))))
    fields = {field.name for field in dataclasses.fields(ParityResult)}
    assert set(value) == (fields - {"samples"}) | {"format", "kl"}
    assert set(value["gates"][0]) == {
        "name", "value", "relation", "limit", "passed", "explanation",
    }  # fmt: skip
    assert set(value["lowering"]["on"]) >= {
        "max_abs", "mean_abs", "kl_mean", "kl_median", "kl_p99", "kl_p999", "kl_max", "top1",
        "dp_rms", "ppl_ratio", "first_divergence", "earliest", "rows", "intervals",
    }  # fmt: skip
    assert set(value["moved"]) == {"device", "peft"}
    for role, path in (("base_bundle", world.base), ("adapter_bundle", world.adapters["ada"])):
        manifest = json.loads((path / "manifest.json").read_text())
        assert value["digests"][role] == manifest["id"]
        for name, file in manifest["files"].items():
            assert value["digests"][f"{role}/{name}"] == file["sha256"]
    assert "lower bound" in value["kl"]
    assert value["versions"]["executorch"]
    assert value["reference_stages"]["merge"]["on"]["kl_mean"] < 1e-6


def test_intervals_hold_their_figures_and_the_adapter_moves_alike_on_both(world, measure) -> None:
    result = measure(world.base, world.adapters["ada"])
    for comparison in (*result.quantization.values(), *result.moved.values()):
        for name, (low, high) in comparison.intervals.items():
            assert low <= getattr(comparison, name) <= high, name
    device, peft = result.moved["device"], result.moved["peft"]
    assert device.kl_mean == pytest.approx(peft.kl_mean, rel=1e-3)
    assert device.dp_rms == pytest.approx(peft.dp_rms, rel=1e-3)
    assert device.ppl_ratio < 1, "the adapted model made the continuations: it finds them likelier"
    assert device.first_divergence == peft.first_divergence
    assert result.effect is not None
    low, high = result.effect.intervals["cosine"]
    assert 0.999 < low <= result.effect.cosine <= high + 1e-9


def test_what_the_program_stops_at_is_held_against_prompt_json(world, measure, reseal) -> None:
    """A phone's own runner stops at the program's ids, not at those of prompt.json."""

    def one_more(directory: Path) -> None:
        value = json.loads((directory / "prompt.json").read_text())
        value["eos_ids"] = [*value["eos_ids"], 0]
        (directory / "prompt.json").write_text(json.dumps(value))

    result = measure(reseal(world.base, one_more))
    (gate,) = [gate for gate in result.gates if not gate.passed]
    assert gate.name == "structure_eos"
    assert gate.value == "prompt.json says [0, 2], program says [2]; golden says [2]"


def test_a_reset_that_leaves_the_cache_as_it_was_is_named(world, measure, monkeypatch) -> None:
    """The first prompt, read again after all others, gives other answers."""
    from mobile_runtime.executorch_engine import ExecuTorchEngine

    resets: list[int] = []

    def wear_out(self: ExecuTorchEngine) -> None:
        resets.append(0)
        self._position = 3 if len(resets) == 3 * 17 + 1 else 0

    monkeypatch.setattr(ExecuTorchEngine, "reset", wear_out)
    result = measure(world.base)
    assert len(read_golden(world.base).prompts) == 17
    assert failed(result) == {"reset_kl.off"}


def test_the_engine_is_left_usable_for_others(world, cache_dir, measure) -> None:
    engine = open_engine(world.base, world.adapters["bo"], 1, cache_dir)
    before = engine.prefill([5, 6, 7])
    measure(world.base, world.adapters["ada"])
    engine.reset()
    assert np.array_equal(engine.prefill([5, 6, 7]), before)
