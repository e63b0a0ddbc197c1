"""A page about parity to look at: one HTML file that loads nothing and runs no script.

In: a `ParityResult`. Out: HTML. It has the verdict, every gate, plots, the texts side by side and
all digests; it is laid out for a phone first, in light and in dark. The texts are the user's, so
the page is too.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from html import escape

from mobile_runtime.compare import Comparison, OperatorNoise
from mobile_runtime.gates import NOT_RUN, Gate
from mobile_runtime.plots import histogram, scatter, steps
from mobile_runtime.report import KL_NOTE, ParityResult
from mobile_runtime.samples import KL_EDGES, Continuation

STYLE = """
:root { color-scheme: light dark; --back: #fbfaf7; --card: #ffffff; --text: #1d2126;
  --soft: #5a626c; --line: #d9d7d0; --a: #2f5f9e; --b: #b4541a; --good: #1c6b3c; --bad: #a8201a }
@media (prefers-color-scheme: dark) { :root { --back: #14171b; --card: #1d2126; --text: #e8eaed;
  --soft: #a3abb5; --line: #363c44; --a: #82b1f0; --b: #f0a06a; --good: #7fd6a0; --bad: #ff9b94 } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1rem; max-width: 72rem; background: var(--back);
  color: var(--text); font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere }
h1 { font-size: 1.4rem; line-height: 1.25; margin: .5rem 0 }
h2 { font-size: 1.1rem; margin: 2rem 0 .75rem }
h3 { font-size: 1rem; margin: 0 0 .25rem }
p { margin: .25rem 0 } .soft, dt, figcaption { color: var(--soft) } .good { color: var(--good) }
.bad { color: var(--bad) } .verdict { border-left: .4rem solid; padding-left: .75rem }
.cards { display: grid; gap: .75rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 19rem), 1fr)) }
.cards > * { margin: 0; padding: .75rem; background: var(--card); border: 1px solid var(--line);
  border-radius: .5rem; min-width: 0 }
table { width: 100%; border-collapse: collapse; font-size: .9rem }
th, td { text-align: left; vertical-align: top; padding: .35rem .5rem .35rem 0;
  border-bottom: 1px solid var(--line) } th { color: var(--soft); font-weight: 600 }
td.what { color: var(--soft) } .number { font-variant-numeric: tabular-nums }
td.good, td.bad { white-space: nowrap }
@media (min-width: 40rem) { td strong { white-space: nowrap } }
@media (max-width: 40rem) { thead { display: none } tr { display: grid; padding: .5rem 0;
  grid-template-columns: minmax(0, 1fr) minmax(0, auto); border-bottom: 1px solid var(--line) }
  td { border: 0; padding: 0 } td:nth-child(even) { text-align: right; padding-left: .75rem }
  td.what { grid-column: 1 / -1 } }
dl { display: grid; grid-template-columns: auto 1fr; gap: 0 .75rem; margin: 0; font-size: .9rem }
dd { margin: 0; text-align: right; font-variant-numeric: tabular-nums }
svg { display: block; width: 100%; height: auto } .axis { fill: none; stroke: var(--soft) }
.guide { stroke: var(--soft); stroke-dasharray: 4 3 } .label { fill: var(--soft); font-size: 11px }
rect.a, circle.a { fill: var(--a) } rect.b { fill: var(--b) } circle.a { fill-opacity: .55 }
.key::before { content: "■ " } .key.a { color: var(--a) } .key.b { color: var(--b) }
mark { background: none; color: var(--b); font-weight: 600; text-decoration: underline }
.text { white-space: pre-wrap } details { margin: .75rem 0 } summary { cursor: pointer }
code { font-size: .85rem }
"""


def page(result: ParityResult) -> str:
    """The whole page."""
    unrun = result.stage_at_fault == NOT_RUN
    title = f"Parity of the {result.layout}: {NOT_RUN if unrun else _sound(result)}"
    parts = [
        _verdict(title, result),
        _section("Gates", [_gates(result.gates)]),
        _section("How far apart", [_cards(_plots(result))]),
        _section("Figures", [_cards(_figures(result)), f'<p class="soft">{escape(KL_NOTE)}.</p>']),
        _section("Texts", [_cards(_text(text) for text in result.samples.texts)]),
        _section("Versions and digests", [_origins(result)]),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


def _sound(result: ParityResult) -> str:
    return "sound" if result.passed else "failed"


def _section(title: str, parts: Iterable[str]) -> str:
    return f"<section><h2>{escape(title)}</h2>{''.join(parts)}</section>\n"


def _cards(cards: Iterable[str]) -> str:
    return f'<div class="cards">{"".join(cards)}</div>'


def _verdict(title: str, result: ParityResult) -> str:
    failed = sum(not gate.passed for gate in result.gates)
    where = f", worst at {escape(result.operator_at_fault)}" if result.operator_at_fault else ""
    at = (
        ""
        if result.passed
        else f" Stage at fault: <strong>{escape(str(result.stage_at_fault))}</strong>{where}."
    )
    return (
        f'<header class="verdict {"good" if result.passed else "bad"}"><h1>{escape(title)}</h1>'
        f"<p>{len(result.gates) - failed} of {len(result.gates)} gates passed over "
        f"{result.positions:,} positions of {result.prompts} prompts.{at}</p></header>\n"
    )


def _gates(gates: list[Gate]) -> str:
    names = ("gate", "", "found", "asked", "what it says")
    head = f"<thead><tr>{''.join(f'<th>{name}</th>' for name in names)}</tr></thead>"
    rows = [
        f'<tr><td><strong>{escape(gate.name)}</strong></td><td class="{kind}">{mark}</td>'
        f'<td class="number">{_short(gate.value)}</td>'
        f'<td class="number">{escape(gate.relation)} {_short(gate.limit)}</td>'
        f'<td class="what">{escape(gate.explanation)}</td></tr>'
        for gate in sorted(gates, key=lambda gate: gate.passed)
        for kind, mark in [("good", "pass") if gate.passed else ("bad", "FAIL")]
    ]
    return f"<table>{head}<tbody>{''.join(rows)}</tbody></table>"


def _plots(result: ParityResult) -> list[str]:
    samples = result.samples
    if not samples.kl:
        return []
    names = list(samples.kl)
    keys = " ".join(
        f'<span class="key {kind}">{escape(name)}</span>'
        for kind, name in zip("ab", names, strict=True)
    )
    plots = [
        _figure(
            "KL of the positions",
            histogram(
                "KL of the positions", f"Rows for each power of ten of KL: {', '.join(names)}",
                KL_EDGES, samples.kl, "KL in nats, per position",
            ),
            f"{keys}. Noise floor of the reference itself: {result.noise_floor.kl_mean:.2g} nats.",
        ),
        _figure(
            "Logits",
            scatter(
                "Logits, reference against device",
                f"{len(samples.logits)} logits of the same weights in PyTorch and on the device; "
                "on the dashed line both are equal", samples.logits, "PyTorch →, device ↑",
            ),
            "The same weights in PyTorch and on the device.",
        ),
    ]  # fmt: skip
    if samples.effect and result.effect:
        low, high = result.effect.intervals["cosine"]
        plots.append(
            _figure(
                "Effect of the adapter",
                scatter(
                    "Effect, PEFT against device",
                    f"How the adapter changes {len(samples.effect)} logits, in PEFT and on the "
                    "device", samples.effect, "change in PEFT →, on the device ↑",
                ),
                f"Cosine {result.effect.cosine:.4f} (95% {low:.4f} to {high:.4f}), norm ratio "
                f"{result.effect.norm_ratio:.4f}.",
            )
        )  # fmt: skip
    return plots + [
        _figure(
            f"Layers, {stage}",
            steps(
                f"Signal to noise of the layers, {stage}",
                f"Decibels of each decoder layer's output and, last, of the logits, {against}",
                _layers(result.operators[stage]), "decoder layer →, dB ↑",
            ) + _operators(result.operators[stage]),
            f"{against.capitalize()}; noise rises most at {escape(result.operators[stage].worst)}. "
            "In the table: decibels of what operators are given and of what they give.",
        )
        for stage, against in _AGAINST.items()
        if stage in result.operators
    ]  # fmt: skip


def _layers(noise: OperatorNoise) -> list[float]:
    """Decibels of each decoder layer's output, as what follows is given it, and of the logits."""
    follows = [
        given
        for (name, _), (after, (given, _)) in itertools.pairwise(noise.sqnr.items())
        if _place(name) and _place(after) != _place(name)
    ]
    return [*follows, *(gives for _, gives in list(noise.sqnr.values())[-1:])]


def _operators(noise: OperatorNoise) -> str:
    """A table of those in the worst one's layer."""
    place = _place(noise.worst)
    rows = [
        f"<tr><td><code>{escape(name.removeprefix(f'{place}.'))}</code></td>"
        f'<td class="number">{given:.1f} → {gives:.1f}</td></tr>'
        for name, (given, gives) in noise.sqnr.items()
        if _place(name) == place
    ]
    return f"<table><tbody>{''.join(rows)}</tbody></table>"


def _place(operator: str) -> str:
    """The path of the decoder layer that it is in, or nothing."""
    found = re.search(r"\S+\.layers\.\d+", operator)
    return found[0] if found else ""


_AGAINST = {
    "quantization": "quantized against float, in PyTorch",
    "lowering": "the device against PyTorch with the same weights",
}
"""Stage -> what its signal to noise is of. Merging in float32 only rounds: nothing to see."""


def _figure(title: str, plot: str, caption: str) -> str:
    """`caption` is HTML."""
    return f"<figure><h3>{escape(title)}</h3>{plot}<figcaption>{caption}</figcaption></figure>"


def _figures(result: ParityResult) -> list[str]:
    groups: dict[str, Mapping[str, Comparison]] = {
        "Lowering": result.lowering, "Quantization": result.quantization, "Effect": result.moved,
    }  # fmt: skip
    return [
        f"<section><h3>{name}, {escape(state)}</h3>{_numbers(each)}</section>"
        for name, states in groups.items()
        for state, each in states.items()
    ]


def _numbers(each: Comparison) -> str:
    low, high = each.intervals["kl_mean"]
    rows = {
        "KL mean": f"{each.kl_mean:.2g} ({low:.2g} to {high:.2g})",
        "KL median": f"{each.kl_median:.2g}",
        "KL 99%": f"{each.kl_p99:.2g}",
        "KL 99.9%": f"{each.kl_p999:.2g}",
        "KL max": f"{each.kl_max:.2g}",
        "top-1": f"{each.top1:.2%}",
        "Δp RMS": f"{each.dp_rms:.2%}",
        "perplexity ratio": f"{each.ppl_ratio:.5f}",
        "max |Δ logit|": f"{each.max_abs:.2g}",
        "first divergence": "never" if each.earliest is None else f"token {each.earliest}",
    }
    return f"<dl>{''.join(f'<dt>{name}</dt><dd>{value}</dd>' for name, value in rows.items())}</dl>"


def _text(text: Continuation) -> str:
    head = f'<h3>{escape(text.name)}</h3><p class="soft text">{escape(_cut(text.asked))}</p>'
    if not text.device:
        said = f'<p class="text">{escape(text.agreed)}</p><p class="good">the same on both</p>'
        return f"<article>{head}{said}</article>"
    both = [
        f'<p><span class="soft">{who}</span></p><p class="text">{escape(text.agreed)}'
        f"<mark>{escape(rest)}</mark></p>"
        for who, rest in (("trained model", text.reference), ("device", f"{text.device}…"))
    ]
    return f"<article>{head}{''.join(both)}</article>"


def _origins(result: ParityResult) -> str:
    blocks = {
        "Versions here": result.versions,
        "Versions of the goldens": result.golden_versions,
        "Digests": result.digests,
        "Thresholds": {name: f"{value:g}" for name, value in result.thresholds.items()},
    }
    return "".join(
        f"<details><summary>{name}</summary><table><tbody>"
        + "".join(
            f"<tr><td>{escape(key)}</td><td><code>{escape(value)}</code></td></tr>"
            for key, value in values.items()
        )
        + "</tbody></table></details>"
        for name, values in blocks.items()
    )


def _short(value: float | str) -> str:
    return escape(value) if isinstance(value, str) else f"{value:.3g}"


def _cut(text: str, most: int = 280) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
