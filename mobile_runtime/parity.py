"""Parity: does the bundle answer as it was trained? Read from goldens, without a PyTorch model.

In: bundles with their goldens. Out: a `ParityResult`, kept as a ParityReport. Three comparisons
are never mixed: lowering (the device against eager PyTorch with the same weights), quantization
(against the float model as trained) and effect (does the adapter move the logits as it does in
PEFT). A failure names the stage.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mobile_runtime import gates as gate
from mobile_runtime.binding import check_base_model
from mobile_runtime.bundles import layout_of, runs_here
from mobile_runtime.compare import (
    Comparison,
    Effect,
    OperatorNoise,
    compare,
    effect,
    operator_noise,
)
from mobile_runtime.engine import Engine, SwapCost, default_threads, engine_name, open_engine
from mobile_runtime.native import describe
from mobile_runtime.prompt import Prompt, open_prompt
from mobile_runtime.replay import Replay, holds_context, replay
from mobile_runtime.report import FORMAT, Measured, ParityResult, read_report, write_report
from mobile_runtime.samples import Points, Samples, continuations, histogram, points
from mobile_runtime.structure import context_gate, structure_gates
from protos.artifacts import Artifact, finished, open_artifact, tool_versions
from protos.errors import ArtifactError, GateError, InputError, NotRunError
from protos.golden import JSON_FILE, Golden, Operators, Rung, read_golden
from protos.progress import Progress, silent


def parity(
    base: Path | None,
    adapter: Path | None,
    out: Path,
    threads: int | None = None,
    progress: Progress = silent,
    cache_dir: Path | None = None,
    probe: Path | None = None,
) -> tuple[Artifact, ParityResult]:
    """Measure parity and keep it at `out`; a report made from the same inputs is read instead.

    probe: a ProbeBundle of the base, by which a failure on the device gets its operator.

    Raises:
        InputError, ArtifactError, MismatchError: a bundle is missing, damaged or does not fit.
        A failing gate is no exception here; see `require`.
    """
    threads = threads or default_threads()
    config = {"engine": engine_name(base, adapter), "threads": threads, "report": FORMAT}
    parents = _parents(base, adapter, probe)
    if report := finished(out, "ParityReport", parents, config):
        return report, read_report(report)
    result = measure_parity(base, adapter, threads, progress, cache_dir, probe)
    return write_report(out, result, parents, config), result


def require(result: ParityResult) -> None:
    """Raise if the bundle would not answer as trained.

    Raises:
        GateError: a gate failed; the message names the gates and the stage at fault.
        NotRunError: no engine here runs it, and nothing else is wrong.
    """
    failed = [row for row in result.gates if not row.passed]
    if result.stage_at_fault == gate.NOT_RUN:
        raise NotRunError(f"parity has no verdict: {gate.NOT_RUN}")
    if failed:
        rows = "; ".join(f"{row.name} {_number(row.value)}" for row in failed[:4])
        where = f", worst at {result.operator_at_fault}" if result.operator_at_fault else ""
        raise GateError(f"parity failed, stage at fault: {result.stage_at_fault}{where} ({rows})")


def measure_parity(
    base: Path | None,
    adapter: Path | None,
    threads: int | None = None,
    progress: Progress = silent,
    cache_dir: Path | None = None,
    probe: Path | None = None,
) -> ParityResult:
    """Replay the goldens of an adapter bundle, or of a base bundle alone, and judge them.

    probe: see `parity`.

    Raises:
        InputError, ArtifactError, MismatchError: a bundle is missing, damaged or does not fit.
    """
    merged = adapter is not None and layout_of(adapter) == "merged"
    home = adapter if merged else base
    if home is None:
        raise InputError(f"{adapter}: this adapter needs its base; give the BaseBundle as well")
    _check_probe(probe, base, adapter)
    if adapter is not None and merged and not runs_here(adapter):
        return _unrun(base, adapter)
    engine = open_engine(base, adapter, threads, cache_dir)
    golden = _golden(adapter or home, engine.vocab_size)
    replays, measured = _replay_states(engine, golden, adapter, merged, progress)
    prompt = open_prompt(home)
    layout, digests = _layout_name(adapter, merged), _digests(base, adapter)
    operators = _device_operators(probe, base, adapter, golden, threads, cache_dir)
    judge = _Judge(golden, replays, merged, layout, digests, prompt, operators)
    structure = structure_gates(golden, prompt, engine.vocab_size, engine.stop_ids)
    return judge.result([*structure, context_gate(holds_context(engine))], measured)


def _check_probe(probe: Path | None, base: Path | None, adapter: Path | None) -> None:
    """Refuse a probe that cannot be used, before anything is measured."""
    if probe is None:
        return
    if base is None:
        raise InputError(f"{probe}: a probe is of a base; give the BaseBundle as well")
    from mobile_runtime.probe import open_probed

    open_probed(probe, base, adapter)


def _unrun(base: Path | None, adapter: Path) -> ParityResult:
    """What can be said of a program that no engine here runs: all but what it answers."""
    bundle = open_artifact(adapter, "AdapterBundle")
    check_base_model(bundle, open_artifact(base, "BaseBundle") if base else None)
    file = bundle.file("program.pte")
    facts, seconds = describe(file)
    golden, prompt = _golden(adapter, facts.vocab_size), open_prompt(adapter)
    structure = structure_gates(golden, prompt, facts.vocab_size, facts.stop_ids)
    judge = _Judge(golden, {}, True, "merged", _digests(base, adapter), prompt, {})
    size = file.stat().st_size
    measured = Measured(SwapCost(0.0, 0.0, seconds, 0, size, size), None)
    return judge.result([*structure, gate.run_gate()], measured)


def _device_operators(
    probe: Path | None,
    base: Path | None,
    adapter: Path | None,
    golden: Golden,
    threads: int | None,
    cache_dir: Path | None,
) -> Operators:
    if probe is None or base is None:
        return {}
    from mobile_runtime.probe import device_operators

    return device_operators(probe, base, adapter, golden, threads or default_threads(), cache_dir)


def _parents(base: Path | None, adapter: Path | None, probe: Path | None) -> dict[str, str]:
    named = {
        "base_bundle": (base, "BaseBundle"),
        "adapter_bundle": (adapter, "AdapterBundle"),
        "probe_bundle": (probe, "ProbeBundle"),
    }
    return {
        role: open_artifact(path, kind).id
        for role, (path, kind) in named.items()
        if path is not None
    }


def _digests(base: Path | None, adapter: Path | None) -> dict[str, str]:
    """Every id and digest that the verdict is about: bundles, what they came from, their files."""
    found: dict[str, str] = {}
    for name, path in (("base_bundle", base), ("adapter_bundle", adapter)):
        if path is not None:
            manifest = open_artifact(path).manifest
            found[name] = manifest.id
            found |= {f"{name} from {role}": digest for role, digest in manifest.parents.items()}
            found |= {f"{name}/{file}": entry.sha256 for file, entry in manifest.files.items()}
    return found


def _layout_name(adapter: Path | None, merged: bool) -> str:
    return "base" if adapter is None else "merged" if merged else "adapter"


def _replay_states(
    engine: Engine, golden: Golden, adapter: Path | None, merged: bool, progress: Progress
) -> tuple[dict[str, Replay], Measured]:
    """The device with the adapter on and off, as far as the bundle allows."""
    opened = engine.cost
    if adapter is None:
        return {"off": replay(engine, golden, progress)}, Measured(opened, None)
    if merged:
        return {"on": replay(engine, golden, progress)}, Measured(opened, None)
    on = replay(engine, golden, lambda what, share: progress(f"{what}, adapter on", share / 2))
    swapped = engine.set_adapter(None)
    off = replay(engine, golden, lambda what, share: progress(f"{what}, base", 0.5 + share / 2))
    return {"off": off, "on": on}, Measured(opened, swapped)


def _golden(directory: Path, vocab_size: int) -> Golden:
    """The goldens of a bundle, fit to be judged by.

    Raises:
        InputError: there are none. ArtifactError: a rung, a threshold or a prompt is missing, or
            an array holds nonsense.
    """
    if not (directory / JSON_FILE).is_file():
        raise InputError(f"{directory}: holds no goldens to measure by; export it with goldens")
    golden = read_golden(directory)
    adapted = golden.has_adapter
    states = ("off", "on") if adapted else ("off",)
    wanted = (*gate.LOWERING_THRESHOLDS, *(gate.EFFECT_THRESHOLDS if adapted else ()))
    rungs = [f"{rung}.{state}" for rung in ("peft", "fake_quant") for state in states]
    problems = [f"threshold {name} is missing" for name in wanted if name not in golden.thresholds]
    problems += [f"rung {name} is missing" for name in rungs if name not in golden.rungs]
    problems += [f"rung {n} is not finite" for n, rung in golden.rungs.items() if not _finite(rung)]
    if not golden.prompts or not all(prompt.ids for prompt in golden.prompts):
        problems.append("a prompt without tokens, or no prompt at all")
    if golden.ids.size and not 0 <= int(golden.ids.min()) <= int(golden.ids.max()) < vocab_size:
        problems.append(f"token ids outside the vocabulary of {vocab_size}")
    if any(rung.full.shape[1:] != (vocab_size,) for rung in golden.rungs.values()):
        problems.append(f"whole rows are not of the vocabulary of {vocab_size}")
    if not all(np.isfinite([*golden.thresholds.values(), *vars(golden.noise_floor).values()])):
        problems.append("a threshold or the noise floor is not finite")
    if problems:
        raise ArtifactError(f"{directory}: goldens cannot be judged by: {'; '.join(problems[:4])}")
    return golden


def _finite(rung: Rung) -> bool:
    return all(bool(np.isfinite(part).all()) for part in (rung.logits, rung.logsumexp, rung.full))


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.3g}"


_OPERATORS_OF = {name: name for name in ("merge", "quantization", "lowering")} | {
    "adapter": "lowering"
}
"""Stage at fault -> the one whose operators say where: an adapter goes wrong on the device."""


@dataclass(frozen=True)
class _Judge:
    """Holds the device's rungs against the golden's. operators: of the device, where a probe said;
    else none.
    """

    golden: Golden
    replays: Mapping[str, Replay]
    merged: bool
    layout: str
    digests: dict[str, str]
    prompt: Prompt
    operators: Operators

    def result(self, structure: list[gate.Gate], measured: Measured) -> ParityResult:
        """All numbers, all gates, the verdict."""
        golden, limits, noise = self.golden, self.golden.thresholds, self.golden.noise_floor
        lowering, quantization = self._against("fake_quant"), self._against("peft")
        moved, control = self._effects()
        stages = self._stages()
        rows = [
            *structure,
            *(g for s, c in lowering.items() for g in gate.lowering_gates(s, c, limits, noise)),
            *(g for s, r in self.replays.items() for g in self._agreement_gates(s, r)),
            *(g for s, c in quantization.items() for g in gate.quantization_gates(s, c, limits)),
            *(gate.effect_gates(moved, limits) if moved else ()),
            *((gate.control_gate(control, limits),) if control else ()),
        ]
        fault = gate.stage_at_fault(rows, stages, limits, merged=self.merged)
        noisy = self._operator_noise()
        worst = noisy.get(_OPERATORS_OF.get(fault or "", ""))
        return ParityResult(
            passed=all(row.passed for row in rows),
            stage_at_fault=fault,
            operator_at_fault=worst.worst if worst else None,
            layout=self.layout,
            gates=rows,
            lowering=lowering,
            quantization=quantization,
            prefill_decode={state: each.prefill_decode for state, each in self.replays.items()},
            cache={state: each.cache for state, each in self.replays.items()},
            reset={state: each.reset for state, each in self.replays.items()},
            effect=moved,
            control=control,
            moved=self._moved(),
            reference_stages={
                "merge": dict(stages.merge), "quantization": dict(stages.quantization)
            },
            prompts=len(golden.prompts),
            positions=len(golden.ids),
            operators=noisy,
            thresholds=dict(limits),
            noise_floor=noise,
            versions=tool_versions(),
            golden_versions=golden.versions,
            digests=self.digests,
            measured=measured,
            samples=self._samples(),
        )  # fmt: skip

    def _operator_noise(self) -> dict[str, OperatorNoise]:
        """Of each stage, against the one before; a stage whose operators are not known is left out,
        as in goldens from before they were recorded.
        """
        golden, state = self.golden, "on" if self.golden.has_adapter else "off"
        peft, merged, rounded = (
            rung.operators if rung else {}
            for rung in (golden.rungs.get(f"{n}.{state}") for n in ("peft", "merged", "fake_quant"))
        )
        stages = {
            "merge": (peft, merged),
            "quantization": (merged or peft, rounded),
            "lowering": (rounded, self.operators),
        }
        said = golden.rungs[f"fake_quant.{state}"].logits.astype(np.float64)
        floor = golden.noise_floor.norm**2 / float((said**2).sum())
        return {
            stage: operator_noise(one, other, floor)
            for stage, (one, other) in stages.items()
            if one and one.keys() == other.keys()
        }

    def _samples(self) -> Samples:
        """Of the state that matters most: with the adapter, where there is one."""
        if not self.replays:
            return Samples({}, [], [], [])
        rungs, state = self.golden.rungs, "on" if "on" in self.replays else "off"
        device, same, peft = (
            self.replays[state].rung, rungs[f"fake_quant.{state}"], rungs[f"peft.{state}"]
        )  # fmt: skip
        moved: Points = []
        if state == "on":
            (on, off), (peft_on, peft_off) = self._device(), self._peft
            moved = points(peft_on.logits - peft_off.logits, on.logits - off.logits)
        return Samples(
            kl={
                f"lowering.{state}": histogram(same, device),
                f"quantization.{state}": histogram(peft, device),
            },
            logits=points(same.logits, device.logits),
            effect=moved,
            texts=continuations(self.golden, peft, device, self.prompt),
        )

    def _agreement_gates(self, state: str, said: Replay) -> list[gate.Gate]:
        ways = (said.prefill_decode, said.cache, said.reset)
        return gate.agreement_gates(state, ways, self.golden.thresholds, self.golden.noise_floor)

    def _against(self, rung: str) -> dict[str, Comparison]:
        return {
            state: compare(self.golden, self.golden.rungs[f"{rung}.{state}"], each.rung)
            for state, each in self.replays.items()
        }

    def _effects(self) -> tuple[Effect | None, Effect | None]:
        """The adapter's effect on the device, and the negative control: the base alone instead.

        A merged program has no base to switch to, so the eager reference of the same weights stands
        in for it. The control takes what the base alone differs from that reference by, a vector of
        pure rounding, for an effect.
        """
        if "on" not in self.replays:
            return None, None
        on, off = self._device()
        base = self.golden.rungs["peft.off" if self.merged else "fake_quant.off"]
        return self._effect(on, off), self._effect(off, base)

    def _device(self) -> tuple[Rung, Rung]:
        """The device with the adapter on and off."""
        off = self.golden.rungs["fake_quant.off"] if self.merged else self.replays["off"].rung
        return self.replays["on"].rung, off

    def _moved(self) -> dict[str, Comparison]:
        """What the adapter does to the answers, base to adapted: on the device, and in PEFT."""
        if "on" not in self.replays:
            return {}
        on, off = self._device()
        peft_on, peft_off = self._peft
        return {
            "device": compare(self.golden, off, on),
            "peft": compare(self.golden, peft_off, peft_on),
        }

    @property
    def _peft(self) -> tuple[Rung, Rung]:
        return self.golden.rungs["peft.on"], self.golden.rungs["peft.off"]

    def _effect(self, on: Rung, off: Rung) -> Effect:
        return effect(self.golden, (on, off), self._peft, self.golden.noise_floor.norm)

    def _stages(self) -> gate.Stages:
        return gate.Stages(
            merge=self._rungs_against("peft", "merged"),
            # Of a base, which merges nothing, against PEFT's rung itself.
            quantization=self._rungs_against("peft", "fake_quant")
            | self._rungs_against("merged", "fake_quant"),
            effects={
                rung: self._reference_effect(rung)
                for rung in ("merged", "fake_quant")
                if "on" in self.replays and f"{rung}.on" in self.golden.rungs
            },
        )

    def _rungs_against(self, reference: str, model: str) -> dict[str, Comparison]:
        rungs = self.golden.rungs
        return {
            state: compare(self.golden, rungs[f"{reference}.{state}"], rungs[f"{model}.{state}"])
            for state in ("off", "on")
            if f"{reference}.{state}" in rungs and f"{model}.{state}" in rungs
        }

    def _reference_effect(self, rung: str) -> Effect:
        rungs, off = self.golden.rungs, f"{rung}.off"
        return self._effect(rungs[f"{rung}.on"], rungs.get(off, rungs["peft.off"]))
