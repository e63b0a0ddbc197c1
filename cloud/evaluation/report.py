"""The Evaluation as a page to read: a table of the arms, and what may be concluded.

In: an Evaluation, or what several found. Out: Markdown. All of it is in `evaluation.json`, and the
costs in the manifest.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from cloud.evaluation.arms import OTHER, TEACHER, parse_ratios, ratio_arm
from cloud.evaluation.results import read_results
from cloud.evaluation.statistics import gain
from protos.artifacts import Artifact

OURS = "mixed"
"""The arm that the product stands for."""
_HELD_AGAINST = ("base", "real", "real-repeated", OTHER)
METRICS = {
    "accuracy": "accuracy", "f1": "macro F1", "mae": "MAE", "rmse": "RMSE", "rouge-1": "ROUGE-1",
    "rouge-L": "ROUGE-L",
}  # fmt: skip


def markdown(evaluation: Artifact) -> str:
    """The whole page."""
    found, measured = read_results(evaluation), evaluation.manifest.measured
    head = (
        f"# {found['task']}: {measured['users']} users, {measured['questions']} questions\n\n"
        f"Base {found['base']}, teacher {found['teacher']}, seed {found['config']['seed']}, "
        f"Evaluation {evaluation.id[:12]}.\n"
    )
    parts = [head, _arms(found, measured["costs"]), _conclusions(found), _by_items(found)]
    for what, name in (
        ("Prompts that were too long and lost their beginning", "truncated"),
        ("Answers that were cut off, not at their end when the room for them was", "cut"),
        ("Questions to which nothing was said", "empty"),
    ):
        if counts := [f"{arm} {row[name]}" for arm, row in found["arms"].items() if row.get(name)]:
            parts.append(f"{what}: {', '.join(counts)}.\n")
    if found["left_out"]:
        reasons = "; ".join(f"{user}: {why}" for user, why in found["left_out"].items())
        parts.append(f"Left out: {reasons}.\n")
    if odd := found.get("odd"):
        counts = ", ".join(f"{user} {len(each)}" for user, each in odd.items())
        parts.append(
            f"Items and questions that are odd or too late were left out, of {counts}; the first: "
            f"{next(iter(odd.values()))[0]}. `evaluation.json` has all of them.\n"
        )
    if fell := [row["user"] for row in found["users"] if row["fell_back"]]:
        parts.append(
            f"Nothing that the teacher wrote passed for {len(fell)} of them ({', '.join(fell)}): "
            "their mixed adapters learned from the real items alone, and synthetic is the base.\n"
        )
    if mute := [row["user"] for row in found["users"] if row.get("unreadable")]:
        parts.append(
            f"Not one of the teacher's items, votes or marks could be read for {len(mute)} users "
            f"({', '.join(mute)}): refused, or not of the form that was asked for.\n"
        )
    return "\n".join(parts)


def summary(all_found: Sequence[dict[str, Any]]) -> str:
    """Tables over tasks: the scores of the arms, and what the product's arm gains in each.

    all_found: what `read_results` gives, of one Evaluation a task, with the same arms.
    """
    names = [name for name in (*_HELD_AGAINST, OURS, TEACHER) if name in all_found[0]["arms"]]
    overs = [name for name in _HELD_AGAINST if name in names and OURS in names]
    gap = ["of the gap"] * bool(overs)
    rows = [["task", "users", "measure", *names, *(f"{OURS} over {o}" for o in overs), *gap]]
    rows.append(["---"] * len(rows[0]))
    for found in all_found:
        main = found["main"]
        scores = [f"{found['arms'][name]['pooled'][main]:.3f}" for name in names]
        gains = [_interval(found["gains"][main][OURS][over]) for over in overs]
        row = [found["task"], str(len(found["users"])), METRICS[main], *scores, *gains]
        if overs:
            share = gap_closed(found)
            row.append("" if share is None else f"{share:.0%}")
        rows.append(row)
    about = "; the gap is the one between real and the teacher in context" if gap else ""
    note = (
        f"Gains are over users, positive is better, with 95% intervals{about}. Each task has a "
        "page of its own in its folder.\n"
    )
    count = f"{len(all_found)} task" + "s" * (len(all_found) > 1)
    parts = [f"# {count}\n", _table(rows), note + _gaps(all_found)]
    if "real" in overs:
        parts += [f"{OURS} over real, by the number of items:\n", _tasks_by_items(all_found)]
    ratios = parse_ratios(all_found[0]["config"]["ratios"])
    if ratios and "real" in names:
        title = "Gain over real, by how many synthetic items were asked for to each real one:\n"
        parts += [title, _tasks_by_ratio(all_found, ratios)]
    return "\n".join(parts)


def _gaps(all_found: Sequence[dict[str, Any]]) -> str:
    """The mean share of the gap, over the tasks where there is one, and which these are."""
    if any(not {OURS, "real", TEACHER} <= found["arms"].keys() for found in all_found):
        return ""
    shares = {found["task"]: gap_closed(found) for found in all_found}
    told = {task: share for task, share in shares.items() if share is not None}
    if not told:
        return "\nNo task's interval of teacher over real lies above zero: of no gap can be told.\n"
    each = ", ".join(f"{task} {share:.0%}" for task, share in told.items())
    return (
        f"\n{OURS} closes {fmean(told.values()):.0%} of the gap, the mean over the {len(told)} of "
        f"{len(shares)} tasks whose interval of teacher over real lies above zero: {each}.\n"
    )


def _tasks_by_items(all_found: Sequence[dict[str, Any]]) -> str:
    """What the product's arm gains over `real`: a row for so many items, a column for each task."""
    of_tasks = {found["task"]: by_items(found, "real") for found in all_found}
    rows = [["items", *of_tasks], ["---"] * (1 + len(of_tasks))]
    for items in sorted({items for groups in of_tasks.values() for items in groups}):
        told = [groups.get(items) for groups in of_tasks.values()]
        rows.append([_range(items), *(_interval(vars(each)) if each else "" for each in told)])
    return _table(rows)


def _tasks_by_ratio(all_found: Sequence[dict[str, Any]], ratios: Sequence[float]) -> str:
    """What each ratio's arm gains over `real`: a row for a ratio, a column for each task."""
    rows = [["ratio", *(found["task"] for found in all_found)]]
    rows.append(["---"] * len(rows[0]))
    for ratio in ratios:
        name = ratio_arm(ratio).name
        gains = [found["gains"][found["main"]][name]["real"] for found in all_found]
        rows.append([f"{ratio:g}", *(_interval(each) for each in gains)])
    return _table(rows)


def _arms(found: dict[str, Any], costs: dict[str, Any]) -> str:
    metrics = list(next(iter(found["arms"].values()))["pooled"])
    overs = [name for name in ("base", "real", "real-repeated") if name in found["arms"]]
    head = ["arm", "what answers", *(METRICS[name] for name in metrics)]
    for over in overs:
        head += [f"gain over {over}", "won : lost"]
    head += ["rows", "synthetic", "steps", "adapter", "training", "teacher read", "teacher wrote"]
    priced = any(cost["teacher_cost"] is not None for cost in costs.values())
    head += ["teacher's price"] * priced
    timed = any(cost["device_ms"] is not None for cost in costs.values())
    head += ["phone's runtime"] * timed
    rows = [head, ["---"] * len(head)]
    for name, arm in found["arms"].items():
        row = [name, arm["about"], *(f"{arm['pooled'][metric]:.3f}" for metric in metrics)]
        for over in overs:
            each = found["gains"][found["main"]][name].get(over)
            row += [_interval(each), f"{each['won']} : {each['lost']}"] if each else ["", ""]
        cost = costs[name]
        row += [
            *(_learned(found, name, what) for what in ("rows", "synthetic")),
            "" if cost["train_steps"] is None else f"{cost['train_steps']:.1f}",
            _shown(cost["adapter_bytes"], 1e-3, " kB"),
            _shown(cost["train_seconds"], 1, " s"),
            _shown(cost["teacher_prompt_tokens"], 1, " tokens"),
            _shown(cost["teacher_tokens"], 1, " tokens"),
            *["" if cost["teacher_cost"] is None else f"{cost['teacher_cost']:.4f}"] * priced,
            *[_shown(cost["device_ms"], 1, " ms")] * timed,
        ]
        rows.append(row)
    note = (
        f"Scores are over all questions; gains are in {METRICS[found['main']]}, each user counted "
        "once, positive is better, with 95% intervals. Rows to train on, how many of them are "
        "synthetic, and costs are means over users.\n"
    )
    if timed:
        first = found["users"][0]["user"]
        note += (
            f"The phone's runtime was timed on the questions of the first user alone ({first}).\n"
        )
    return f"{_table(rows)}\n{note}"


def _learned(found: dict[str, Any], arm: str, what: str) -> str:
    """The mean over users of what an arm's adapters learned from; nothing without one."""
    if arm not in found["users"][0][what]:
        return ""
    return f"{fmean(user[what][arm] for user in found['users']):.1f}"


def _conclusions(found: dict[str, Any]) -> str:
    """What the product's arm gains over each arm that it is held against, in words."""
    gains = found["gains"][found["main"]].get(OURS)
    if not gains:
        return ""
    lines = [f"- {OURS} over {over}: {_sentence(each)}" for over, each in gains.items()]
    if (share := gap_closed(found)) is not None:
        lines.append(f"- {OURS} closes {share:.0%} of the gap between real and the teacher.")
    return "\n".join(lines) + "\n"


def gap_closed(found: dict[str, Any]) -> float | None:
    """How much of what the teacher is better than `real` the product's arm makes up for.

    None where one of them is missing, or the teacher is not surely better: its interval over `real`
    is not above zero, or it has none. By a gap that may be none nothing can be divided.
    """
    over_real = {
        name: gains["real"]
        for name, gains in found["gains"][found["main"]].items()
        if "real" in gains
    }
    if not {OURS, TEACHER} <= over_real.keys() or (over_real[TEACHER]["low"] or 0) <= 0:
        return None
    return over_real[OURS]["mean"] / over_real[TEACHER]["mean"]


def _sentence(each: dict[str, Any]) -> str:
    text = f"{_interval(each)}; users: {each['won']} won, {each['lost']} lost, {each['tied']} alike"
    text += f" (sign test p = {each['sign_p']:.2g})"
    if each["low"] is None:
        return f"{text}; too few users for an interval."
    if each["low"] > 0:
        return f"{text}: a gain."
    if each["high"] < 0:
        return f"{text}: **a loss**."
    return f"{text}: not told from nothing; {each['detectable']:.3f} would have been."


def by_items(found: dict[str, Any], over: str) -> dict[int, Any]:
    """The gain of the product's arm by the number of items, to the next lower power of two."""
    metric = found["main"]
    groups: dict[int, list[dict[str, Any]]] = {}
    for user in sorted(found["users"], key=lambda each: each["items"]):
        groups.setdefault(1 << (user["items"].bit_length() - 1), []).append(user["values"])
    return {
        items: gain(
            [values[OURS][metric] for values in group],
            [values[over][metric] for values in group],
            metric in found["lower_is_better"],
        )
        for items, group in groups.items()
    }


def _by_items(found: dict[str, Any]) -> str:
    overs = plottable(found)
    if not overs:
        return ""
    groups = {over: by_items(found, over) for over in overs}
    head = ["items", "users", *(f"{OURS} over {over}" for over in overs)]
    rows = [head, ["---"] * len(head)]
    for items, first in groups[overs[0]].items():
        gains = [_interval(vars(groups[over][items])) for over in overs]
        rows.append([_range(items), str(first.users), *gains])
    return _table(rows)


def _range(items: int) -> str:
    return f"{items} to {2 * items - 1}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _interval(each: dict[str, Any]) -> str:
    if each["low"] is None:
        return f"{each['mean']:+.3f}"
    return f"{each['mean']:+.3f} ({each['low']:+.3f} to {each['high']:+.3f})"


def _shown(value: float | None, factor: float, unit: str) -> str:
    if value is None:
        return ""
    scaled = value * factor
    return f"{scaled:,.0f}{unit}" if scaled >= 10 or scaled == 0 else f"{scaled:.2g}{unit}"


def plottable(found: dict[str, Any]) -> list[str]:
    """The arms over which the product's arm can be shown."""
    arms = found["arms"]
    return [name for name in _HELD_AGAINST if name in arms and OURS in arms]
