"""The commands `export base`, `export adapter`, `export merged`, `export package` and `recipes`.

Only flags and output are here; heavy imports happen inside the commands, so `--help` is instant.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from export.recipes import NOT_OFFERED, RECIPES
from protos.progress import Progress, shown

if TYPE_CHECKING:
    from protos.artifacts import Artifact

_Command = TypeVar("_Command", bound=Callable[..., Any])
_PATH = click.Path(path_type=Path)
_BASE = click.option(
    "--base", required=True, metavar="DIR|HUB_ID", help="The base model, in Hugging Face format."
)
_OUT = click.option(
    "--out", required=True, type=_PATH, help="Where the bundle goes; only a bundle is replaced."
)
_RECIPE = click.option(
    "--recipe",
    default="executorch-xnnpack-8da4w",
    show_default=True,
    help="How to lower; `pocketune recipes` lists them.",
)
_CONTEXT = click.option(
    "--context-length",
    type=int,
    help="Positions of the KV cache.  [default: the recipe's, or the model's if it has fewer]",
)
_PROMPTS = click.option(
    "--prompts",
    type=_PATH,
    metavar="FILE|DATASET",
    help="The task's prompts for the goldens: JSONL with `prompt`, or a Dataset artifact.",
)
_TRUST = click.option(
    "--trust-base", is_flag=True, help="Accept a plain PEFT directory, which cannot prove its base."
)

_CACHE = click.option(
    "--cache/--no-cache",
    default=True,
    show_default=True,
    help="Copy what was lowered before on this machine, and keep what is lowered now.",
)


_THREADS = click.option("--threads", type=click.IntRange(1), help="CPU threads for PyTorch.")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


def _shared(command: _Command) -> _Command:
    """Options of every command that exports."""
    return _PROMPTS(_THREADS(_JSON(command)))


@click.group("export")
def export() -> None:
    """Turn a base model, once, and adapters, many, into what a phone runs."""


@export.command("base", epilog="Example: pocketune export base --base ./model --out bundles/base")
@_BASE
@_OUT
@_RECIPE
@click.option("--rank", default=8, show_default=True, help="The highest LoRA rank that will fit.")
@_CONTEXT
@_CACHE
@_shared
def base_command(
    base: str,
    out: Path,
    recipe: str,
    rank: int,
    context_length: int | None,
    cache: bool,
    prompts: Path | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Lower a base model into a BaseBundle: once per base model and recipe; takes minutes."""
    from export.base import export_base
    from export.lowerings import default_cache

    def run(progress: Progress) -> Artifact:
        return export_base(
            base,
            out,
            recipe,
            rank=rank,
            context_length=context_length,
            prompts=_contents(prompts),
            threads=threads,
            cache=default_cache() if cache else None,
            progress=progress,
        )

    _run("export base", run, as_json=as_json)


@export.command(
    "adapter",
    epilog="Example: pocketune export adapter ./adapter --base ./model --bundle bundles/base "
    "--out bundles/alice",
)
@click.argument("adapter", type=_PATH)
@_BASE
@click.option("--bundle", required=True, type=_PATH, help="The BaseBundle of that base.")
@_OUT
@click.option(
    "--mode",
    type=click.Choice(["lora-parameters", "merged"]),
    help="For MLC: A and B as parameters, or merged into shards.  [default: lora-parameters]",
)
@click.option("--goldens/--no-goldens", default=True, help="Write what parity is judged by.")
@_TRUST
@_shared
def adapter_command(
    adapter: Path,
    base: str,
    bundle: Path,
    out: Path,
    mode: str | None,
    goldens: bool,
    trust_base: bool,
    prompts: Path | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Package an ADAPTER for the phone that has the BaseBundle; takes a second."""
    from export.adapter import export_adapter

    def run(progress: Progress) -> Artifact:
        return export_adapter(
            adapter,
            bundle,
            out,
            base=base,
            prompts=_contents(prompts),
            mode=mode,
            goldens=goldens,
            trust_base=trust_base,
            threads=threads,
            progress=progress,
        )

    _run("export adapter", run, as_json=as_json)


@export.command(
    "merged",
    epilog="Example: pocketune export merged ./adapter --base ./model --out bundles/alice-merged",
)
@click.argument("adapter", type=_PATH)
@_BASE
@_OUT
@_RECIPE
@_CONTEXT
@_TRUST
@_CACHE
@_shared
def merged_command(
    adapter: Path,
    base: str,
    out: Path,
    recipe: str,
    context_length: int | None,
    trust_base: bool,
    cache: bool,
    prompts: Path | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Merge an ADAPTER into its base and lower both into one self-contained file."""
    from export.lowerings import default_cache
    from export.merged import export_merged

    def run(progress: Progress) -> Artifact:
        return export_merged(
            adapter,
            out,
            recipe,
            base=base,
            context_length=context_length,
            prompts=_contents(prompts),
            trust_base=trust_base,
            threads=threads,
            cache=default_cache() if cache else None,
            progress=progress,
        )

    _run("export merged", run, as_json=as_json)


@export.command(
    "probe",
    epilog="Example: pocketune export probe --base ./model --bundle bundles/base "
    "--out bundles/probe",
)
@_BASE
@click.option("--bundle", required=True, type=_PATH, help="The BaseBundle of that base.")
@_OUT
@_THREADS
@_JSON
def probe_command(base: str, bundle: Path, out: Path, threads: int | None, as_json: bool) -> None:
    """Lower a base once more, to say what each operator gives; for `parity --probe`."""
    from export.executorch.probe import export_probe

    def run(progress: Progress) -> Artifact:
        return export_probe(bundle, out, base=base, threads=threads, progress=progress)

    _run("export probe", run, as_json=as_json)


@export.command(
    "package",
    epilog="Example: pocketune export package --base-bundle bundles/base --adapter-bundle "
    "bundles/alice --platform android --out app/alice --assemble-only",
)
@click.option("--base-bundle", type=_PATH, help="The MLC BaseBundle; a merged bundle needs none.")
@click.option("--adapter-bundle", type=_PATH, help="The adapter's bundle, or a merged one.")
@click.option("--platform", required=True, type=click.Choice(["android", "ios"]))
@click.option("--out", required=True, type=_PATH, help="Where the folder goes.")
@click.option(
    "--mlc-python",
    default=sys.executable,
    metavar="PYTHON",
    envvar="POCKETUNE_MLC_PYTHON",
    help="The Python that has mlc_llm.  [default: this one]",
)
@click.option(
    "--mlc-source",
    type=_PATH,
    envvar="MLC_LLM_SOURCE_DIR",
    help="A copy of MLC's repository, which its `package` needs.",
)
@click.option(
    "--assemble-only", is_flag=True, help="Write model directory and config; build nothing."
)
def package_command(
    base_bundle: Path | None,
    adapter_bundle: Path | None,
    platform: str,
    out: Path,
    mlc_python: str,
    mlc_source: Path | None,
    assemble_only: bool,
) -> None:
    """Make of MLC bundles what goes into an app, with MLC's own tools out of process."""
    from export.mlc.package import Tools, export_package

    tools = None if assemble_only else Tools(mlc_python, mlc_source)
    click.echo(export_package(base_bundle, adapter_bundle, platform, out, tools))


@click.command(epilog="Example: pocketune recipes --json")
@click.option("--json", "as_json", is_flag=True, help="Print all fields as JSON.")
def recipes(as_json: bool) -> None:
    """List how a model can be lowered, what runs here, and what is not offered."""
    if as_json:
        rows = [{**vars(r), "thresholds": dict(r.thresholds)} for r in RECIPES.values()]
        click.echo(json.dumps({"recipes": rows, "not_offered": dict(NOT_OFFERED)}, indent=1))
        return
    for recipe in RECIPES.values():
        click.echo(recipe.name)
        for title, text in (
            ("weights", recipe.weights),
            ("form", recipe.form),
            ("adapter", recipe.adapter_form),
            ("context", f"{recipe.context_length} positions, or as many as the model has"),
            ("here", "runs" if recipe.runs_here else "lowered, not run here"),
            ("needs", recipe.needs),
        ):
            if text:
                click.echo(f"  {title:<8} {text}")
    click.echo("not offered, and what each would need")
    for name, needs in NOT_OFFERED.items():
        click.echo(f"  {name:<23} {needs}")


def _contents(prompts: Path | None) -> Sequence[str]:
    from export.prompts import read_prompts

    return read_prompts(prompts) if prompts else ()


def _run(title: str, run: Callable[[Progress], Artifact], *, as_json: bool) -> None:
    started = time.perf_counter()
    with shown(title) as progress:
        artifact = run(progress)
    seconds = round(time.perf_counter() - started, 3)
    manifest = artifact.manifest
    result = {
        "path": str(artifact.path),
        "id": manifest.id,
        "kind": manifest.kind,
        "files": {name: entry.size_bytes for name, entry in manifest.files.items()},
        "measured": dict(manifest.measured),
        "seconds": seconds,
    }
    for line in manifest.measured.get("warnings", ()):
        click.echo(f"warning: {line}", err=True)
    click.echo(json.dumps(result, indent=1) if as_json else _text(result))


def _text(result: dict[str, Any]) -> str:
    wire = int(result["measured"].get("wire_bytes", 0))
    files = cast("dict[str, int]", result["files"])
    lines = [f"{result['kind']} {result['id'][:12]} at {result['path']} ({result['seconds']} s)"]
    lines += [f"  {name:<20} {size:>12,} bytes" for name, size in files.items()]
    return "\n".join([*lines, f"  {'over the wire':<20} {wire:>12,} bytes, goldens apart"])
