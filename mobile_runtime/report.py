"""The parity report: what was measured, as JSON for scripts and as a table for people.

In: a `ParityResult`. Out: a ParityReport artifact and back, and the table. What differs from run to
run (seconds, bytes written) is kept among the manifest's figures and is no part of the report's id.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobile_runtime.compare import Comparison, Effect, OperatorNoise
from mobile_runtime.engine import SwapCost
from mobile_runtime.gates import NOT_RUN, Gate
from mobile_runtime.replay import Agreement
from mobile_runtime.samples import Continuation, Samples
from protos.artifacts import Artifact, create, open_artifact, read_json, write_json
from protos.errors import ArtifactError
from protos.golden import NoiseFloor

if TYPE_CHECKING:
    from rich.console import RenderableType

FORMAT = 4
FILE = "report.json"
SAMPLES_FILE = "samples.json"
KL_NOTE = "KL is a lower bound: the golden's 64 ids, and one bucket for all other tokens"


@dataclass(frozen=True)
class Measured:
    """What opening the bundle and taking its adapter off cost on this machine."""

    opened: SwapCost
    swapped: SwapCost | None


@dataclass(frozen=True)
class ParityResult:
    """Everything that parity found. `lowering` and the like map the adapter's state to numbers.

    layout: `base`, `adapter` or `merged`. stage_at_fault: None if all gates passed.
    prefill_decode, cache, reset: see `replay.Replay`. moved: the adapted model against the base, on
    the `device` and in `peft`. reference_stages: the golden's rungs against each other, which no
    device had a part in. operators: of `merge`, `quantization` and (with a probe) `lowering`,
    against the stage before; without what the golden does not have. operator_at_fault: the worst of
    the stage at fault; None if nothing failed or nobody can say. digests: of the bundles, of what
    they were made from, and of every file. samples: what a page draws.
    """

    passed: bool
    stage_at_fault: str | None
    operator_at_fault: str | None
    layout: str
    gates: list[Gate]
    lowering: dict[str, Comparison]
    quantization: dict[str, Comparison]
    prefill_decode: dict[str, Agreement]
    cache: dict[str, Agreement]
    reset: dict[str, Agreement]
    effect: Effect | None
    control: Effect | None
    moved: dict[str, Comparison]
    reference_stages: dict[str, dict[str, Comparison]]
    prompts: int
    positions: int
    operators: dict[str, OperatorNoise]
    thresholds: dict[str, float]
    noise_floor: NoiseFloor
    versions: dict[str, str]
    golden_versions: dict[str, str]
    digests: dict[str, str]
    measured: Measured
    samples: Samples


def as_json(result: ParityResult) -> dict[str, Any]:
    """The result as JSON values, with the figures of this run, without what only a page draws."""
    value = asdict(result)
    del value["samples"]
    return {"format": FORMAT, "kl": KL_NOTE, **value}


def write_report(
    out: Path, result: ParityResult, parents: Mapping[str, str], config: Mapping[str, Any]
) -> Artifact:
    """Keep a result as a ParityReport at `out`."""
    value = as_json(result)
    with create(out, "ParityReport", parents, config) as draft:
        draft.measured |= value.pop("measured")
        write_json(draft.path / FILE, value)
        write_json(draft.path / SAMPLES_FILE, asdict(result.samples))
    return open_artifact(out, "ParityReport")


def read_report(report: Artifact) -> ParityResult:
    """The result that a ParityReport of this build holds.

    Raises:
        ArtifactError: it is of another format.
    """
    raw, samples = read_json(report.file(FILE)), read_json(report.file(SAMPLES_FILE))
    try:
        return _parse(raw, samples, report.manifest.measured)
    except (KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{report.file(FILE)}: malformed report ({error!r})") from None


def table(result: ParityResult) -> RenderableType:
    """The verdict, every gate, and the numbers behind them."""
    from rich.console import Group

    return Group(_gate_table(result), _number_table(result), *_notes(result))


def _gate_table(result: ParityResult) -> RenderableType:
    from rich.table import Table

    grid = Table(title=f"Parity of the {result.layout}: {_verdict(result)}", title_justify="left")
    for name in ("gate", "found", "asked", "", "what it says"):
        grid.add_column(name, overflow="fold")
    for gate in result.gates:
        mark = "[green]pass[/]" if gate.passed else "[bold red]FAIL[/]"
        asked = f"{gate.relation} {_short(gate.limit)}"
        grid.add_row(gate.name, _short(gate.value), asked, mark, gate.explanation)
    return grid


def _number_table(result: ParityResult) -> RenderableType:
    from rich.table import Table

    names = (
        "against", "adapter", "max |d|", "KL mean (95%)", "median", "p99", "p99.9", "max", "top-1",
        "dp RMS", "ppl ratio", "diverges",
    )  # fmt: skip
    grid = Table(*names, title="Logits on the device", title_justify="left")
    comparisons = {
        "lowering: same weights in PyTorch": result.lowering,
        "quantization: float as trained": result.quantization,
        "effect: base to adapted": result.moved,
    }
    for name, states in comparisons.items():
        for state, each in states.items():
            grid.add_row(name, state, *_numbers(each))
    noise = result.noise_floor
    floor = ["" if value is None else _short(value) for value in (
        noise.max_abs, noise.kl_mean, None, None, None, noise.kl_max)]  # fmt: skip
    grid.add_row("noise floor of that PyTorch", "", *floor, f"{noise.top1:.2%}")
    return grid


def _numbers(each: Comparison) -> list[str]:
    low, high = each.intervals["kl_mean"]
    first = "never" if each.earliest is None else f"at token {each.earliest}"
    kls = map(_short, (each.kl_median, each.kl_p99, each.kl_p999, each.kl_max))
    return [
        _short(each.max_abs), f"{each.kl_mean:.2g} ({low:.2g} to {high:.2g})", *kls,
        f"{each.top1:.2%}", _short(each.dp_rms), f"{each.ppl_ratio:.5f}", first,
    ]  # fmt: skip


def _notes(result: ParityResult) -> list[str]:
    notes = [KL_NOTE, f"opened in {result.measured.opened}"]
    if result.measured.swapped:
        notes.append(f"adapter taken off in {result.measured.swapped}")
    return notes


def _verdict(result: ParityResult) -> str:
    if result.passed:
        return "[green]sound[/]"
    if result.stage_at_fault == NOT_RUN:
        return f"[yellow]{NOT_RUN}[/]"
    where = f", worst at {result.operator_at_fault}" if result.operator_at_fault else ""
    return f"[bold red]failed[/], stage at fault: {result.stage_at_fault}{where}"


def _short(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"


def _parse(raw: Any, samples: Any, measured: Mapping[str, Any]) -> ParityResult:
    if raw["format"] != FORMAT:
        raise KeyError(f"format {raw['format']!r}, this build reads {FORMAT}")
    swapped = measured["swapped"]
    fields = {name: value for name, value in raw.items() if name not in ("format", "kl")}
    fields |= {
        "gates": [Gate(**gate) for gate in raw["gates"]],
        "lowering": _comparisons(raw["lowering"]),
        "quantization": _comparisons(raw["quantization"]),
        **{name: _agreements(raw[name]) for name in ("prefill_decode", "cache", "reset")},
        "effect": _effect(raw["effect"]),
        "control": _effect(raw["control"]),
        "moved": _comparisons(raw["moved"]),
        "reference_stages": {s: _comparisons(c) for s, c in raw["reference_stages"].items()},
        "operators": {stage: _operators(each) for stage, each in raw["operators"].items()},
        "noise_floor": NoiseFloor(**raw["noise_floor"]),
        "measured": Measured(
            SwapCost(**measured["opened"]), SwapCost(**swapped) if swapped else None
        ),
        "samples": Samples(
            kl=samples["kl"],
            logits=samples["logits"],
            effect=samples["effect"],
            texts=[Continuation(**text) for text in samples["texts"]],
        ),
    }
    return ParityResult(**fields)


def _comparisons(raw: Mapping[str, Any]) -> dict[str, Comparison]:
    return {s: Comparison(**{**numbers, **_intervals(numbers)}) for s, numbers in raw.items()}


def _agreements(raw: Mapping[str, Any]) -> dict[str, Agreement]:
    return {state: Agreement(**numbers) for state, numbers in raw.items()}


def _operators(raw: Mapping[str, Any]) -> OperatorNoise:
    sqnr = {name: (given, gives) for name, (given, gives) in raw["sqnr"].items()}
    return OperatorNoise(sqnr, raw["worst"])


def _effect(raw: Mapping[str, Any] | None) -> Effect | None:
    return Effect(**{**raw, **_intervals(raw)}) if raw else None


def _intervals(raw: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has lists where the result has pairs."""
    return {"intervals": {name: (low, high) for name, (low, high) in raw["intervals"].items()}}
