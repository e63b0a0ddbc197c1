"""Writes what is made from the code: `docs/cli.md`, `docs/tables.md`, a table in `docs/service.md`.

`python docs/generate.py` writes them; tests/test_docs.py fails when they differ from the code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import click
from pydantic.fields import FieldInfo

from cloud.service.settings import Settings
from cloud.tasks import TASKS
from export.recipes import RECIPES
from pocketune import main
from protos import errors

HERE = Path(__file__).parent
_WIDTH = 92
_BEGIN, _END = "<!-- settings: made by docs/generate.py -->", "<!-- end of settings -->"
_NOTE = "<!-- Made by docs/generate.py; do not edit. -->\n"


def pages() -> dict[str, str]:
    """File name -> content of every generated page."""
    return {"cli.md": cli_page(), "tables.md": tables_page(), "service.md": service_page()}


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
        ("recipe", "what it makes", "gates"),
        [
            (r.name, r.description, ", ".join(f"{k} {v:g}" for k, v in r.thresholds.items()))
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
