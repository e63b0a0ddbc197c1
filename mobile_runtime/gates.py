"""Gates: what parity asks of the numbers, and which stage made them when they fail.

In: comparisons, the golden's thresholds and noise floor. Out: one row for each gate, and the name
of the stage at fault. The limits themselves belong to the recipe and come with the golden.

Calibration of the effect gate: the first bundled base (docs/pocket.md), LoRA r = 8 on all seven
projections, trained for 60 steps on each of two bundled users of both tasks: 4 adapters, cosine to
PEFT's change of logits:

    on the device           fp32              8da4w             asked
    the user's own adapter  1.000             0.970 to 0.977    0.99 and 0.9
    the other user's        0.018 to 0.262    -0.014 to 0.260
    base alone              -0.070 to -0.040  -0.041 to 0.015

and the norm ratio of the user's own 1.000 and 0.959 to 0.987, of the base alone below 0.02.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mobile_runtime.compare import Comparison, Effect
from mobile_runtime.replay import Agreement
from protos.golden import NoiseFloor

NOISE_FACTOR = 2.0
"""How many times the noise floor the mean KL may reach, if the golden names no other factor."""
MERGE_KL_MEAN = 1e-6
"""Nats; folding an adapter in float32 only rounds, far below this."""
LOWERING_THRESHOLDS = ("lowering_top1", "lowering_kl_mean")
EFFECT_THRESHOLDS = ("effect_cosine", "effect_norm_low", "effect_norm_high")

Comparisons = Mapping[str, Comparison]
"""Adapter state, `off` or `on`, -> comparison."""


@dataclass(frozen=True)
class Gate:
    """One thing asked. limit: what `value` was held against; relation: how, `<=`, `>=` or `is`."""

    name: str
    value: float | str
    relation: str
    limit: float | str
    passed: bool
    explanation: str


def lowering_gates(
    state: str, measured: Comparison, limits: Mapping[str, float], noise: NoiseFloor
) -> list[Gate]:
    """The lowered program against the eager model that holds the same weights."""
    gates = [
        _at_least(
            f"lowering_top1.{state}", measured.top1, limits["lowering_top1"],
            f"same likeliest token, share of {measured.rows} positions",
        ),
        _at_most(
            f"lowering_kl_mean.{state}", measured.kl_mean, _kl_limit(limits, noise),
            "mean KL in nats; the limit is at least "
            f"{_noise_factor(limits):g} x the noise floor of {noise.kl_mean:.2g}",
        ),
    ]  # fmt: skip
    if "lowering_max_abs" in limits:
        worst = max(measured.max_abs, measured.full_max_abs)
        gates += [
            _at_most(
                f"lowering_max_abs.{state}", worst, limits["lowering_max_abs"],
                "largest |logit difference|, golden ids and whole rows",
            )
        ]  # fmt: skip
    return gates


_AGREEMENTS = {
    "prefill_decode_kl": "mean KL in nats between reading a prompt at once and token by token",
    "cache_kl": "mean KL in nats between decoding on the cache and reading all at once",
    "reset_kl": "KL in nats between a prompt, and the same again after a reset",
}


def agreement_gates(
    state: str, measured: Sequence[Agreement], limits: Mapping[str, float], noise: NoiseFloor
) -> list[Gate]:
    """The same tokens read in two ways, in the order of `_AGREEMENTS`: chunks, cache and reset."""
    return [
        _at_most(f"{name}.{state}", each.kl_mean, _kl_limit(limits, noise), explanation)
        for (name, explanation), each in zip(_AGREEMENTS.items(), measured, strict=True)
    ]


def quantization_gates(state: str, measured: Comparison, limits: Mapping[str, float]) -> list[Gate]:
    """The lowered program against the float model; only where the recipe sets a limit."""
    if "quantization_kl_mean" not in limits:
        return []
    return [
        _at_most(
            f"quantization_kl_mean.{state}", measured.kl_mean, limits["quantization_kl_mean"],
            "mean KL in nats to the float model as trained",
        )
    ]  # fmt: skip


def effect_gates(measured: Effect, limits: Mapping[str, float]) -> list[Gate]:
    """Whether the adapter moves the device's logits as it moves PEFT's."""
    low, high = limits["effect_norm_low"], limits["effect_norm_high"]
    return [
        Gate(
            "effect_present", measured.device_norm, ">", measured.floor, not measured.no_effect,
            "no-effect: the change on the device is within rounding noise"
            if measured.no_effect else "norm of the adapter's change of logits, above the noise",
        ),
        _at_least(
            "effect_cosine", measured.cosine, limits["effect_cosine"],
            "direction of the adapter's change of logits, device against PEFT",
        ),
        Gate(
            "effect_norm", measured.norm_ratio, "in", f"{low:g} to {high:g}",
            low <= measured.norm_ratio <= high, "size of the same change, device over PEFT",
        ),
    ]  # fmt: skip


def control_gate(control: Effect, limits: Mapping[str, float]) -> Gate:
    """The base alone, held against the adapter's effect, must fail: else the gate sees nothing."""
    failed = [gate.name for gate in effect_gates(control, limits) if not gate.passed]
    return Gate(
        "negative_control", ", ".join(failed) or "passes", "is", "a failure", bool(failed),
        f"base alone held against the adapter's effect (cosine {control.cosine:.3f}, norm ratio "
        f"{control.norm_ratio:.2g}): which effect gates refuse it",
    )  # fmt: skip


NOT_RUN = "lowered, not run here"
"""The verdict on a program that no engine here runs; its gate never passes."""


def run_gate() -> Gate:
    """The gate of such a program."""
    return fact_gate(
        "run_here", False, NOT_RUN, "run", "no engine here runs this program, so nobody knows"
    )


def fact_gate(name: str, passed: bool, found: str, wanted: str, explanation: str) -> Gate:
    """A gate on something that is so or is not."""
    return Gate(name, found, "is", wanted, passed, explanation)


@dataclass(frozen=True)
class Stages:
    """What the golden's own rungs say, to tell the stages before the device apart.

    merge: merged against peft. quantization: fake_quant against merged. effects: `merged` and
    `fake_quant`, each one's adapter effect against PEFT's.
    """

    merge: Comparisons
    quantization: Comparisons
    effects: Mapping[str, Effect]


def stage_at_fault(
    gates: list[Gate], stages: Stages, limits: Mapping[str, float], *, merged: bool
) -> str | None:
    """The first stage on the way to the phone that explains a failure; None if nothing failed.

    One of tokenizer, training (PEFT's own adapter changes nothing), merge, quantization, lowering,
    adapter, control; or `NOT_RUN`, if that is all there is to say.
    """
    failed = {gate.name for gate in gates if not gate.passed}
    if failed == {"run_here"}:
        return NOT_RUN
    failed.discard("run_here")
    if not failed:
        return None
    if failed & _TOKENIZER_GATES:
        return "tokenizer"
    if failed & _GOLDEN_GATES:
        return "golden"
    if failed == {"negative_control"}:
        return "control"
    if before := _fault_before_lowering(stages, limits):
        return before
    if any(name.endswith(".off") or name.startswith(_PROGRAM_GATES) for name in failed):
        return "lowering"
    return "lowering" if merged or not stages.effects else "adapter"


def _fault_before_lowering(stages: Stages, limits: Mapping[str, float]) -> str | None:
    if any(effect.reference_norm <= effect.floor for effect in stages.effects.values()):
        return "training"
    if _over(stages.merge, MERGE_KL_MEAN) or _effect_fails(stages.effects, "merged", limits):
        return "merge"
    quantization_limit = limits.get("quantization_kl_mean", limits["lowering_kl_mean"])
    if _over(stages.quantization, quantization_limit):
        return "quantization"
    return "quantization" if _effect_fails(stages.effects, "fake_quant", limits) else None


_TOKENIZER_GATES = {"structure_rendered", "structure_ids", "structure_eos"}
_GOLDEN_GATES = {"structure_prompts", "structure_positions"}
_PROGRAM_GATES = ("structure_context_end", *_AGREEMENTS)


def _over(comparisons: Comparisons, limit: float) -> bool:
    return any(comparison.kl_mean > limit for comparison in comparisons.values())


def _effect_fails(effects: Mapping[str, Effect], rung: str, limits: Mapping[str, float]) -> bool:
    return rung in effects and not all(g.passed for g in effect_gates(effects[rung], limits))


def _noise_factor(limits: Mapping[str, float]) -> float:
    return limits.get("lowering_noise_factor", NOISE_FACTOR)


def _kl_limit(limits: Mapping[str, float], noise: NoiseFloor) -> float:
    return max(limits["lowering_kl_mean"], _noise_factor(limits) * noise.kl_mean)


def _at_most(name: str, value: float, limit: float, explanation: str) -> Gate:
    return Gate(name, value, "<=", limit, value <= limit, explanation)


def _at_least(name: str, value: float, limit: float, explanation: str) -> Gate:
    return Gate(name, value, ">=", limit, value >= limit, explanation)
