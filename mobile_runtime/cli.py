"""The commands `parity` and `run`.

Thin: each opens bundles, calls the stage's function and prints. The runtime itself is imported when
a command runs, so that `--help` answers at once.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from protos.errors import InputError
from protos.progress import shown

if TYPE_CHECKING:
    from mobile_runtime.engine import Engine
    from mobile_runtime.generate import Finish

DIRECTORY = click.Path(path_type=Path, file_okay=False)
PAGE = click.Path(path_type=Path, dir_okay=False, writable=True)

_base = click.option(
    "--base-bundle", type=DIRECTORY, help="BaseBundle; a merged bundle needs none."
)
_adapter = click.option("--adapter-bundle", type=DIRECTORY, help="AdapterBundle; none: base alone.")
_threads = click.option(
    "--threads", type=click.IntRange(min=1), help="CPU threads.  [default: all cores, at most 4]"
)
_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


@click.command()
@_base
@_adapter
@click.option("--out", type=DIRECTORY, required=True, help="Where the ParityReport goes.")
@click.option(
    "--probe", type=DIRECTORY, help="The base's ProbeBundle: names the device's operator."
)
@click.option("--html", type=PAGE, help="Write a page to look at, too; it holds the user's texts.")
@_json
@_threads
def parity(
    base_bundle: Path | None,
    adapter_bundle: Path | None,
    out: Path,
    probe: Path | None,
    html: Path | None,
    as_json: bool,
    threads: int | None,
) -> None:
    """Prove that a bundle answers as it was trained; exit code 7 if it would not.

    Replays the bundle's goldens on the phone's runtime, with the adapter on and off, and writes a
    ParityReport in either case. Where one of the same inputs is there already it is read instead,
    so a page can be had of it later.

    \b
    Example:
      pocketune parity --base-bundle work/base --adapter-bundle work/adapter --out work/parity
    """
    from mobile_runtime.page import page
    from mobile_runtime.parity import parity as measure
    from mobile_runtime.parity import require
    from mobile_runtime.report import as_json as json_of
    from mobile_runtime.report import table

    with shown("parity") as progress:
        report, result = measure(base_bundle, adapter_bundle, out, threads, progress, probe=probe)
    if html is not None:
        html.parent.mkdir(parents=True, exist_ok=True)
        html.write_text(page(result), encoding="utf-8")
    if as_json:
        click.echo(json.dumps({"id": report.id, "path": str(out), **json_of(result)}, indent=1))
    else:
        _print(table(result))
    require(result)


@click.command()
@_base
@_adapter
@click.argument("prompt", required=False)
@click.option("--max-new-tokens", default=128, show_default=True, help="Most tokens to answer.")
@click.option("--temperature", default=0.0, show_default=True, help="0 always takes the likeliest.")
@click.option("--top-p", default=1.0, show_default=True, help="Nucleus to sample from.")
@click.option(
    "--top-k", default=0, show_default=True, help="Likeliest tokens to sample from; 0: all."
)
@click.option("--seed", default=0, show_default=True, help="Seed of the sampling.")
@click.option(
    "--stop", multiple=True, help="Text that ends the answer; may be given several times."
)
@click.option(
    "--choice",
    "choices",
    multiple=True,
    help="Answer with this text, or that of another --choice, and nothing else.",
)
@click.option("--raw", is_flag=True, help="Feed the text as it is, without the template.")
@click.option("--stats", is_flag=True, help="Print speed and what opening cost, on standard error.")
@_json
@_threads
def run(
    base_bundle: Path | None,
    adapter_bundle: Path | None,
    prompt: str | None,
    raw: bool,
    stats: bool,
    as_json: bool,
    threads: int | None,
    **sampling: Any,
) -> None:
    """Answer PROMPT (or standard input) as the phone would, streaming the text.

    \b
    Example:
      pocketune run --base-bundle work/base --adapter-bundle work/adapter "Write a headline: …"
    """
    from mobile_runtime.engine import open_engine
    from mobile_runtime.generate import Finish, Sampling, generate
    from mobile_runtime.prompt import open_prompt

    config = Sampling(**sampling)
    content = _stdin() if prompt is None else prompt
    engine = open_engine(base_bundle, adapter_bundle, threads)
    reader = open_prompt(_tokenizer_home(base_bundle, adapter_bundle))
    ids = reader.encode_raw(content) if raw else reader.encode(content)
    pieces: list[str] = []
    for part in generate(engine, reader, ids, config):
        if isinstance(part, Finish):
            _end("".join(pieces), part, engine, stats=stats, as_json=as_json)
        else:
            pieces.append(part)
            if not as_json:
                click.echo(part, nl=False)


def _end(text: str, finish: Finish, engine: Engine, *, stats: bool, as_json: bool) -> None:
    figures = {
        "finish": finish.reason,
        "prompt_tokens": finish.prompt_tokens,
        "new_tokens": finish.new_tokens,
        "prefill_tokens_per_s": round(finish.prefill_rate, 1),
        "decode_tokens_per_s": round(finish.decode_rate, 1),
    }
    if as_json:
        value = {"text": text, "ids": finish.ids, **figures, "opened": vars(engine.cost)}
        click.echo(json.dumps(value, ensure_ascii=False))
        return
    click.echo()
    if stats:
        click.echo(", ".join(f"{name} {value}" for name, value in figures.items()), err=True)
        click.echo(f"opened in {engine.cost}", err=True)


def _tokenizer_home(base: Path | None, adapter: Path | None) -> Path:
    """The bundle whose tokenizer counts: a merged bundle brings its own."""
    from mobile_runtime.prompt import TOKENIZER_FILE

    if adapter is not None and (adapter / TOKENIZER_FILE).is_file():
        return adapter
    if base is None:
        raise InputError(f"{adapter}: no {TOKENIZER_FILE} in it; give its BaseBundle as well")
    return base


def _stdin() -> str:
    data = sys.stdin.buffer.read()
    try:
        return data.decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"standard input: not UTF-8 at byte {error.start}") from None


def _print(what: Any) -> None:
    from rich.console import Console

    width = None if sys.stdout.isatty() else 160
    Console(file=sys.stdout, width=width).print(what)
