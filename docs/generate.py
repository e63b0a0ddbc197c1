"""Writes what is made from the code: `docs/cli.md`, `docs/tables.md`, a table in `docs/service.md`.

And the table of docs/benchmarks.md, from the files in benchmarks/results, and those of
docs/evaluation.md, from the files in docs/evaluation. `python docs/generate.py` writes them;
tests/test_docs.py fails when they differ from the code or from those files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from pydantic.fields import FieldInfo

from cloud.evaluation.report import summary
from cloud.service.settings import Settings
from cloud.tasks import TASKS
from export.recipes import RECIPES
from pocketune import main
from protos import errors

HERE = Path(__file__).parent
_WIDTH = 92
_BEGIN, _END = "<!-- settings: made by docs/generate.py -->", "<!-- end of settings -->"
_RESULTS_BEGIN = "<!-- results: made by docs/generate.py from benchmarks/results -->"
_RESULTS_END = "<!-- end of results -->"
_NOTE = "<!-- Made by docs/generate.py; do not edit. -->\n"


def pages() -> dict[str, str]:
    """File name -> content of every generated page."""
    return {
        "cli.md": cli_page(), "tables.md": tables_page(), "service.md": service_page(),
        "benchmarks.md": benchmarks_page(), "evaluation.md": evaluation_page(),
    }  # fmt: skip


def cli_page() -> str:
    """`--help` of every command."""
    parts = ["# Commands\n", _NOTE]
    for path, context in _commands(
        click.Context(main, info_name="pocketune", help_option_names=["-h", "--help"]), "pocketune"
    ):
        context.terminal_width = _WIDTH
        shown = _machine_free(context.command.get_help(context))
        parts += [f"## {path}\n", "```text", shown, "```\n"]
    return "\n".join(parts)


def tables_page() -> str:
    """The tasks, the recipes and the exit codes."""
    parts = ["# Tables\n", _NOTE, "## Tasks\n"]
    parts += _table(
        ("task", "kind", "item's fields", "a training pair's prompt"),
        [
            (t.name, t.kind, " → ".join(filter(None, (t.input_field, t.output_field))), t.prompt)
            for t in TASKS.values()
        ],
    )
    parts += ["\n## Recipes\n"]
    parts += _table(
        ("recipe", "weights", "form", "adapter", "here", "gates"),
        [
            (
                r.name,
                r.weights,
                r.form,
                r.adapter_form,
                "runs" if r.runs_here else "lowered, not run here",
                ", ".join(f"{k} {v:g}" for k, v in r.thresholds.items()),
            )
            for r in RECIPES.values()
        ],
    )
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.PocketuneError)
    ]
    rows = [(str(k.exit_code), k.__name__, str(k.__doc__).split("\n")[0]) for k in kinds[1:]]
    rows += [("8", "CallError", "The service refused, failed or could not be reached (`remote`).")]
    rows += [("130", "", "Interrupted with Ctrl-C.")]
    rows.sort(key=lambda row: int(row[0]))
    parts += ["\n## Exit codes\n", *_table(("code", "error", "meaning"), rows)]
    return "\n".join(parts) + "\n"


def service_page() -> str:
    """The page as it is, with the table of settings between its two marks."""
    page = (HERE / "service.md").read_text("utf-8")
    head, rest = page.split(_BEGIN)
    rows = [
        (f"`POCKETUNE_{name.upper()}`", _default(field), " ".join(str(field.description).split()))
        for name, field in Settings.model_fields.items()
    ]
    table = _table(("variable", "default", "meaning"), rows)
    return "\n".join([head + _BEGIN, *table, _END + rest.split(_END)[1]])


def benchmarks_page() -> str:
    """The page as it is, with what the benchmarks found between its two marks."""
    page = (HERE / "benchmarks.md").read_text("utf-8")
    head, rest = page.split(_RESULTS_BEGIN)
    files = sorted((HERE.parent / "benchmarks" / "results").glob("*.json"))
    results = [json.loads(file.read_text("utf-8")) for file in files]
    figures: list[tuple[str, ...]] = []
    for result in results:
        figures.append((f"**{result['benchmark']}**", "", "", "", "", ""))
        figures += [_figure(row) for row in result["rows"]]
        if "error" in result:
            figures.append(("failed", "", "", "", result["error"], ""))
    runs = [
        (
            f"`{r['command']}`: {r['benchmark']}", r["date"], f"{r['seconds']:,} s",
            f"{r['load'][0]:g}, {r['load'][1]:g}",
        )
        for r in results
    ]  # fmt: skip
    machines = dict.fromkeys(_machine(result) for result in results)
    columns = ("figure", "ours", "peer", "peer's", "ratio (lowest to highest)", "aim")
    made = [
        *_table(columns, figures), "", *machines, "",
        *_table(("command: benchmark", "date", "took", "load before, after"), runs),
    ]  # fmt: skip
    return "\n".join(
        [head + _RESULTS_BEGIN, "", *made, "", _RESULTS_END + rest.split(_RESULTS_END)[1]]
    )


def evaluation_page() -> str:
    """The page as it is, with what the evaluations in each folder of docs/evaluation found."""
    page = (HERE / "evaluation.md").read_text("utf-8")
    for folder in sorted(path for path in (HERE / "evaluation").iterdir() if path.is_dir()):
        begin = (
            f"<!-- {folder.name}: made by docs/generate.py from docs/evaluation/{folder.name} -->"
        )
        end = f"<!-- end of {folder.name} -->"
        files = sorted(folder.glob("*/evaluation.json"))
        made = summary([json.loads(file.read_text("utf-8")) for file in files])
        _, _, tables = made.partition("\n")
        (head, _), (_, tail) = page.split(begin), page.split(end)
        page = f"{head}{begin}\n{tables}\n{end}{tail}"
    return page


def _figure(row: dict[str, Any]) -> tuple[str, ...]:
    """A line of the table of benchmarks."""
    figure = f"{row['figure']} ({row['note']})" if row["note"] else row["figure"]
    ratio, aim = row["ratio"], row["aim"]
    shown = "" if ratio is None else f"{ratio:.2f}"
    if row["spread"]:
        shown += " ({:.2f} to {:.2f})".format(*row["spread"])
    verdict = "" if aim is None else f"{aim:.3g}, {'met' if ratio >= aim else '**missed**'}"
    theirs = "" if row["theirs"] is None else f"{_number(row['theirs'])} {row['unit']}"
    ours = "" if row["ours"] is None else f"{_number(row['ours'])} {row['unit']}"
    return figure, ours, row["peer"], theirs, shown, verdict


def _number(value: float) -> str:
    """Three significant digits, whole numbers in full."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _machine(result: dict[str, Any]) -> str:
    machine = result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return (
        f"- {machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, "
        f"{machine['system']}; {versions}"
    )


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if value in (None, "", {}):
        return ""
    shown = json.dumps(value) if isinstance(value, bool | tuple) else str(value)
    return f"`{shown}`"


def _commands(context: click.Context, path: str) -> Iterator[tuple[str, click.Context]]:
    """Every command in the context of its group, as on the command line."""
    yield path, context
    if isinstance(context.command, click.Group):
        for name, child in sorted(context.command.commands.items()):
            inner = click.Context(
                child, info_name=name, parent=context, help_option_names=["-h", "--help"]
            )
            yield from _commands(inner, f"{path} {name}")


def _machine_free(text: str) -> str:
    """Help without what differs from one machine to the next."""
    return re.sub(r"[ \t]+\n", "\n", text)


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in [head, *rows]]
    lines = [f"| {' | '.join(row)} |" for row in escaped]
    return [lines[0], "|---" * len(head) + "|", *lines[1:]]


if __name__ == "__main__":
    for name, content in pages().items():
        (HERE / name).write_text(content, encoding="utf-8")
