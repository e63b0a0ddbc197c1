"""Plots as inline SVG: bars, points and lines on linear axes, with nothing to load.

In: numbers. Out: text to put into a page, which colours it by its classes (`page.STYLE`): `a` and
`b` are the two series, `axis`, `guide` and `label` the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 320, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 16, 10, 36
_FLOOR = HEIGHT - _BOTTOM


def histogram(
    title: str, description: str, edges: Sequence[float], series: Mapping[str, Sequence[int]],
    axis: str,
) -> str:  # fmt: skip
    """Bars for each series (two at most) side by side; edges are powers of ten."""
    highest = max((max(counts, default=0) for counts in series.values()), default=0) or 1
    across = (WIDTH - _LEFT - _RIGHT) / (len(edges) - 1)
    width = across * 0.8 / max(len(series), 1)
    bars = [
        _bar(
            _LEFT + place * across + across * 0.1 + row * width,
            _height(count / highest), width, "ab"[row], f"{name}: {count}",
        )
        for row, (name, counts) in enumerate(series.items())
        for place, count in enumerate(counts)
        if count
    ]  # fmt: skip
    ticks = [
        _text(_LEFT + place * across, _FLOOR + 14, f"1e{edge:g}", "middle")
        for place, edge in enumerate(edges)
        if edge % 4 == 0
    ]
    sides = [
        _text(_LEFT - 4, y, said, "end") for y, said in ((_TOP + 8, str(highest)), (_FLOOR, "0"))
    ]
    return _figure(title, description, [*bars, *ticks, *sides], axis)


def steps(title: str, description: str, values: Sequence[float], axis: str) -> str:
    """A bar for each value, from 0."""
    highest = max(values, default=0.0) or 1.0
    across = (WIDTH - _LEFT - _RIGHT) / max(len(values), 1)
    bars = [
        _bar(
            _LEFT + place * across + across * 0.1, _height(max(value, 0.0) / highest), across * 0.8,
            "a", f"{place}: {value:.1f}",
        )
        for place, value in enumerate(values)
    ]  # fmt: skip
    ticks = [
        _text(_LEFT + across / 2, _FLOOR + 14, "0", "middle"),
        _text(WIDTH - _RIGHT - across / 2, _FLOOR + 14, str(len(values) - 1), "middle"),
        _text(_LEFT - 4, _FLOOR, "0", "end"),
        _text(_LEFT - 4, _TOP + 8, f"{highest:.0f}", "end"),
    ]
    return _figure(title, description, [*bars, *ticks], axis)


def scatter(title: str, description: str, points: Sequence[Sequence[float]], axis: str) -> str:
    """Points (reference, device) and the line on which both are equal."""
    values = [value for point in points for value in point] or [0.0]
    low, high = min(values), max(values)
    reach = (high - low) or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        across = _LEFT + (x - low) / reach * (WIDTH - _LEFT - _RIGHT)
        return across, _height((y - low) / reach)

    dots = [
        f'<circle class="a" cx="{x:.1f}" cy="{y:.1f}" r="2.2"/>'
        for x, y in (place(*point) for point in points)
    ]
    (x1, y1), (x2, y2) = place(low, low), place(high, high)
    line = f'<line class="guide" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'
    ticks = [
        _text(_LEFT, _FLOOR + 14, f"{low:.3g}", "start"),
        _text(WIDTH - _RIGHT, _FLOOR + 14, f"{high:.3g}", "end"),
        _text(_LEFT - 4, _FLOOR, f"{low:.3g}", "end"),
        _text(_LEFT - 4, _TOP + 8, f"{high:.3g}", "end"),
    ]
    return _figure(title, description, [line, *dots, *ticks], axis)


def _figure(title: str, description: str, parts: Sequence[str], axis: str) -> str:
    number = f"{escape(title)}-".replace(" ", "-").lower()
    frame = f'<path class="axis" d="M{_LEFT} {_TOP}V{_FLOOR}H{WIDTH - _RIGHT}"/>' + _text(
        (WIDTH + _LEFT) / 2, HEIGHT - 6, axis, "middle"
    )
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-labelledby="{number}t {number}d"><title id="{number}t">{escape(title)}</title>'
        f'<desc id="{number}d">{escape(description)}</desc>{frame}{"".join(parts)}</svg>'
    )


def _bar(x: float, top: float, width: float, kind: str, said: str) -> str:
    height = _FLOOR - top
    return (
        f'<rect class="{kind}" x="{x:.1f}" y="{top:.1f}" width="{width:.1f}" '
        f'height="{height:.1f}"><title>{escape(said)}</title></rect>'
    )


def _text(x: float, y: float, said: str, anchor: str) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text class="label" {place}>{escape(said)}</text>'


def _height(share: float) -> float:
    """Where a share of the plot's height is, from the top."""
    return _FLOOR - share * (_FLOOR - _TOP)
