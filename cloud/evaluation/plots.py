"""The Evaluation as pictures, each as SVG and PNG.

In: an Evaluation. Out: files: the gain of each user; the gain by how many items a user has; and,
where ratios were asked for, the gain by how many synthetic items there are to a real one.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloud.evaluation.arms import parse_ratios, ratio_arm
from cloud.evaluation.report import METRICS, OURS, by_items, plottable
from cloud.evaluation.results import read_results
from protos.artifacts import Artifact
from protos.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WON, _LOST, _TIED, _MEAN = "#2a7f62", "#c8553d", "#9a9a9a", "#1b3a4b"
_DPI = 144
_BESIDE = 1.12
"""A mean stands a little to the right of the dots that it is of."""
_STYLE: Any = {
    "font.size": 9, "axes.spines.top": False, "axes.spines.right": False,
    "axes.titlesize": 10, "axes.titlelocation": "left", "svg.hashsalt": "pocketune",
}  # fmt: skip


def check() -> None:
    """Refuse to draw where it cannot be done.

    Raises:
        InputError: the extra `eval` is not installed.
    """
    if find_spec("matplotlib") is None:
        raise InputError("plots need pip install 'pocketune[eval]'; --no-plots goes without")


def draw(evaluation: Artifact, folder: Path) -> list[Path]:
    """Draw what there is to draw; returns the files."""
    import matplotlib as mpl

    found = read_results(evaluation)
    overs, ratios = plottable(found), parse_ratios(found["config"]["ratios"])
    figures: dict[str, Any] = {}
    with mpl.rc_context(_STYLE):
        if overs:
            figures["gain-per-user"] = _per_user(found, overs)
            figures["gain-by-items"] = _by_items(found, overs)
        if len(ratios) > 1 and "real" in found["arms"]:
            figures["gain-by-ratio"] = _by_ratio(found, ratios)
        folder.mkdir(parents=True, exist_ok=True)
        written: list[Path] = []
        for name, figure in figures.items():
            for kind in ("svg", "png"):
                path = folder / f"{name}.{kind}"
                metadata = {"Date": None} if kind == "svg" else {}
                figure.savefig(path, dpi=_DPI, metadata=metadata, bbox_inches="tight")
                written.append(path)
    return written


def _figure(columns: int) -> tuple[Figure, Sequence[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6 * columns, 3.2), layout="constrained")
    axes = figure.subplots(1, columns, sharey=True, squeeze=False)[0]
    return figure, list(axes)


def _name(found: dict[str, Any]) -> str:
    """The axis of a gain: which measure, and that up is better."""
    lower = found["main"] in found["lower_is_better"]
    return f"gain in {METRICS[found['main']]}" + (" (less error)" if lower else "")


def differences(found: dict[str, Any], arm: str, over: str) -> list[float]:
    """What each user gains by one arm over another, in the order of the users."""
    metric = found["main"]
    sign = -1 if metric in found["lower_is_better"] else 1
    return [
        sign * (user["values"][arm][metric] - user["values"][over][metric])
        for user in found["users"]
    ]


def _per_user(found: dict[str, Any], overs: Sequence[str]) -> Figure:
    """Each user a dot, sorted; the mean as a line, its interval as a band."""
    figure, axes = _figure(len(overs))
    for axis, over in zip(axes, overs, strict=True):
        values = sorted(differences(found, OURS, over))
        each = found["gains"][found["main"]][OURS][over]
        axis.axhline(0, color="black", linewidth=0.8)
        if each["low"] is not None:
            axis.axhspan(each["low"], each["high"], color=_MEAN, alpha=0.15, linewidth=0)
        axis.axhline(each["mean"], color=_MEAN, linewidth=1.2)
        axis.vlines(range(len(values)), 0, values, color=_colors(values), linewidth=0.8, alpha=0.5)
        axis.scatter(range(len(values)), values, c=_colors(values), s=18, zorder=3)
        axis.set_title(f"{OURS} over {over}: {each['won']} won, {each['lost']} lost")
        axis.set_xlabel(f"{len(values)} users, sorted")
        axis.set_xticks([])
    axes[0].set_ylabel(_name(found))
    figure.suptitle(f"{found['task']}: what each user gains (line: mean, band: 95% interval)")
    return figure


def _colors(gains: Sequence[float]) -> list[str]:
    return [_WON if gain > 0 else _LOST if gain < 0 else _TIED for gain in gains]


def _by_items(found: dict[str, Any], overs: Sequence[str]) -> Figure:
    """Each user a dot by the number of items, and the mean of each group with its interval."""
    figure, axes = _figure(len(overs))
    items = [user["items"] for user in found["users"]]
    for axis, over in zip(axes, overs, strict=True):
        gains, groups = differences(found, OURS, over), by_items(found, over)
        axis.axhline(0, color="black", linewidth=0.8)
        axis.scatter(items, gains, c=_colors(gains), s=16, alpha=0.6, linewidth=0)
        for low, each in groups.items():
            place = _BESIDE * statistics.fmean(n for n in items if low <= n < 2 * low)
            if each.low is not None:
                axis.plot([place, place], [each.low, each.high], color=_MEAN, linewidth=2)
            axis.plot(place, each.mean, "D", color=_MEAN, markersize=5)
        axis.set_xscale("log", base=2)
        axis.set_xticks(sorted(set(groups)), [str(low) for low in sorted(set(groups))])
        axis.set_xticks([], minor=True)
        axis.set_xlabel("the user's own items")
        axis.set_title(f"{OURS} over {over}")
    axes[0].set_ylabel(_name(found))
    figure.suptitle(f"{found['task']}: gain by items a user has (diamonds: mean, 95% interval)")
    return figure


def made_ratio(found: dict[str, Any], ratio: float) -> float:
    """Synthetic items for each real one in this ratio's arm, mean over users.

    Fewer than were asked for where fewer passed.
    """
    name = ratio_arm(ratio).name
    return statistics.fmean(user["synthetic"][name] / user["trained_on"] for user in found["users"])


def _by_ratio(found: dict[str, Any], ratios: Sequence[float]) -> Figure:
    """The mean gain over `real` for each ratio, as it came out, with its interval."""
    figure, (axis,) = _figure(1)
    places = [made_ratio(found, ratio) for ratio in ratios]
    gains = [found["gains"][found["main"]][ratio_arm(ratio).name]["real"] for ratio in ratios]
    axis.axhline(0, color="black", linewidth=0.8)
    if gains[0]["low"] is not None:
        low, high = [each["low"] for each in gains], [each["high"] for each in gains]
        axis.fill_between(places, low, high, color=_MEAN, alpha=0.15, linewidth=0)
    axis.plot(places, [each["mean"] for each in gains], "o-", color=_MEAN)
    asked = ", ".join(f"{ratio:g}" for ratio in ratios)
    axis.set_xlabel(f"synthetic items for each real one (asked for: {asked})")
    axis.set_ylabel(f"{_name(found)} over real")
    axis.set_title(f"{found['task']}, {len(found['users'])} users (band: 95% interval)")
    return figure
