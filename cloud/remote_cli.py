"""The commands `remote …`: the service from its caller's side, through the generated stubs alone.

Each opens a connection, calls `cloud.client` and prints what came back. Nothing here imports the
service, and nothing trains or exports: that happens on the server.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cloud import cli
from protos.errors import GateError, InputError
from protos.progress import shown

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from cloud.client import Client
    from cloud.client.personalize import Wishes

Command = TypeVar("Command", bound=Callable[..., Any])
DIRECTORY = click.Path(path_type=Path, file_okay=False)
DEFAULT_SERVER = "127.0.0.1:50051"
DEFAULT_RECIPE = "executorch-xnnpack-8da4w"
_FILE = click.Path(path_type=Path, dir_okay=False)

_connection = cli.options(
    click.option("--server", default=DEFAULT_SERVER, show_default=True,
                 envvar="POCKETUNE_SERVER", show_envvar=True, help="host:port of the service."),
    click.option("--api-key", envvar="POCKETUNE_API_KEY", show_envvar=True, default="",
                 help="API key or token; better given in the environment."),
    click.option("--tls", is_flag=True, help="Talk TLS, trusting the system's authorities."),
    click.option("--ca", type=_FILE, help="Talk TLS, trusting these PEM authorities."),
    click.option("--cert", type=_FILE, help="Client certificate (mTLS)."),
    click.option("--key", type=_FILE, help="Its key."),
)  # fmt: skip

_work = cli.options(
    click.option("--teacher", help="Who writes synthetic items; a name the operator configured."),
    click.option("--per-real", type=float, help="Synthetic items wanted for each real one."),
    click.option("--shots", type=int, help="Items shown in one request."),
    click.option("--temperature", type=float, help="Sampling temperature."),
    click.option("--top-p", type=float, help="Nucleus of the sampling."),
    click.option("--rank", type=int, help="LoRA rank."),
    click.option("--alpha", type=int, help="LoRA alpha."),
    click.option("--targets", help="Projections to adapt, separated by commas."),
    click.option("--learning-rate", type=float, help="Peak learning rate."),
    click.option("--epochs", type=int, help="Epochs at most."),
    click.option("--batch-size", type=int, help="Rows in a batch."),
    click.option("--seed", type=int, help="Seed of all randomness."),
)  # fmt: skip


@click.group()
def remote() -> None:
    """Call a running service (`pocketune serve`)."""


@remote.command("personalize")
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--base", default="pocket", show_default=True, help="Id of the base on the server.")
@click.option("--base-source", help="What to make the base of, if it is new.  [default: its id]")
@click.option("--recipe", default=DEFAULT_RECIPE, show_default=True, help="Recipe of the export.")
@click.option("--out", required=True, type=DIRECTORY, help="Folder for the bundle.")
@click.option("--base-bundle", type=DIRECTORY, help="Bring the lowered base here, too.")
@cli.profile_options
@_work
@_connection
@cli.json_option
def personalize_command(source: Path, as_json: bool, out: Path, **given: Any) -> None:
    """From one user's items to a verified bundle, all of it done by the service.

    SOURCE is a LaMP questions file or JSONL. User, profile and base are created where they are
    missing. Interrupted, the service goes on; run it again to wait for the rest.

    \b
    Example:
      pocketune remote personalize items.jsonl --user ann --base pocket --out work \\
          --prompt "Write a subject for this mail: {input}"
    """
    from cloud.client.personalize import personalize

    profile = cli.read_source(source, **given)
    with connect(**given) as client:
        made = personalize(client, profile, _wishes(given))
        with shown("download") as progress:
            paths = client.download(made.bundle.name, out / "adapter-bundle", progress=progress)
            if folder := given["base_bundle"]:
                client.download(made.bundle.base, folder, made.bundle.recipe, progress)
    if as_json:
        _print(made)
    else:
        size = sum(path.stat().st_size for path in paths)
        passed = sum(gate.passed for gate in made.parity_report.gates)
        click.echo(f"Bundle     {made.bundle.name}")
        click.echo(f"           {size / 1e6:.2f} MB in {out / 'adapter-bundle'}")
        click.echo(f"Parity     {passed} of {len(made.parity_report.gates)} gates passed")
    if not made.parity_report.passed:
        failed = [gate.metric for gate in made.parity_report.gates if not gate.passed]
        raise GateError(f"the phone would not answer as trained: {', '.join(failed)}")


def _wishes(given: dict[str, Any]) -> Wishes:
    from cloud.client.personalize import Wishes

    return Wishes(
        base=given["base"],
        base_source=given["base_source"] or given["base"],
        recipe=given["recipe"],
        augment=_set(given, "teacher", "per_real", "shots", "temperature", "top_p", "seed"),
        train=_set(
            given, "rank", "alpha", "targets", "learning_rate", "epochs", "batch_size", "seed"
        ),
    )


def _set(given: dict[str, Any], *names: str) -> dict[str, Any]:
    """Those options that were given; the others are the server's to choose."""
    return {name: given[name] for name in names if given[name] is not None}


@remote.command("upload")
@click.argument("source", type=click.Path(path_type=Path))
@cli.profile_options
@_connection
@cli.json_option
def upload_command(source: Path, as_json: bool, **given: Any) -> None:
    """Append one user's items to their profile, which is created where it is missing.

    Interrupted, run it again: it goes on where the server has got to, and nothing is stored twice.

    \b
    Example:
      pocketune remote upload items.jsonl --user ann --prompt "Write a subject: {input}"
    """
    from cloud.client.personalize import ensure_profile, send_items

    profile = cli.read_source(source, **given)
    with connect(**given) as client:
        answer = send_items(client, ensure_profile(client, profile), profile)
    if as_json:
        _print(answer)
    else:
        sent, held = answer.upload, answer.profile
        click.echo(f"{held.name}: {sent.added_count} new, {held.item_count} items")


@remote.command("status")
@click.argument("operation", required=False)
@click.option("--wait", is_flag=True, help="Wait until it has ended.")
@_connection
@cli.json_option
def status_command(operation: str | None, wait: bool, as_json: bool, **given: Any) -> None:
    """Show an operation, or all that are open.

    \b
    Example:
      pocketune remote status
      pocketune remote status operations/0b9f… --wait
    """
    from google.longrunning import operations_pb2 as longrunning
    from google.protobuf.empty_pb2 import Empty

    from cloud.client import Operation

    with connect(**given) as client:
        if operation is None:
            found = [Operation(raw, Empty) for raw in client.list_operations(only_open=True)]
        else:
            one = client.get_operation(operation, Empty)
            if wait:
                with shown(one.metadata.method) as progress:
                    one = client.settle(one, progress)
            found = [one]
    if as_json:
        _print(longrunning.ListOperationsResponse(operations=[each.raw for each in found]))
        return
    for each in found:
        told = each.metadata
        state = "done" if each.done else f"{told.progress:.0%} {each.shown()}"
        click.echo(f"{each.name}  {told.method} {told.target}  {each.error or state}")


@remote.command("cancel")
@click.argument("operation")
@_connection
def cancel_command(operation: str, **given: Any) -> None:
    """Stop an operation; it ends within a second.

    \b
    Example:
      pocketune remote cancel operations/0b9f…
    """
    with connect(**given) as client:
        client.cancel(operation)


@remote.command("download")
@click.argument("name")
@click.option("--out", required=True, type=DIRECTORY, help="Folder for the files.")
@click.option("--recipe", default="", help="Which bundle of a base.")
@_connection
def download_command(name: str, out: Path, recipe: str, **given: Any) -> None:
    """Bring the files of a bundle, an adapter or a lowered base.

    Interrupted, run it again: it goes on where it was. Every file is checked by its sha256.

    \b
    Example:
      pocketune remote download users/ann/bundles/5f2c… --out work/adapter-bundle
      pocketune remote download bases/pocket --recipe executorch-xnnpack-8da4w --out work/base
    """
    with connect(**given) as client, shown("download") as progress:
        for path in client.download(name, out, recipe, progress):
            click.echo(path)


@remote.command("delete")
@click.argument("user")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--receipt", type=_FILE, help="Where the signed receipt goes, as protobuf JSON.")
@_connection
def delete_command(user: str, yes: bool, receipt: Path | None, **given: Any) -> None:
    """Erase a user and everything made from their items; prints the signed receipt.

    \b
    Example:
      pocketune remote delete ann --receipt ann-erased.json
    """
    from google.protobuf.json_format import MessageToJson

    name = user if user.startswith("users/") else f"users/{user}"
    if not yes:
        click.confirm(f"Erase {name} and everything made from their items?", abort=True)
    with connect(**given) as client, shown("erase") as progress:
        found = client.wait(client.delete_user(name), progress)
    if receipt:
        receipt.write_text(MessageToJson(found), encoding="utf-8")
    _print(found)


def connect(
    server: str,
    api_key: str,
    tls: bool,
    ca: Path | None,
    cert: Path | None,
    key: Path | None,
    **_: Any,
) -> Client:
    """A connection, as the options of a command say.

    Raises:
        InputError: no host and port, or files that cannot be read.
    """
    from cloud.client import Client, Tls

    if not server.rpartition(":")[2].isdigit():
        raise InputError(f"--server {server!r}: expected host:port, such as {DEFAULT_SERVER}")
    wants_tls = tls or ca or cert or key
    return Client(server, api_key, Tls(ca, cert, key) if wants_tls else None)


def _print(message: Message) -> None:
    from google.protobuf.json_format import MessageToDict

    click.echo(json.dumps(MessageToDict(message), ensure_ascii=False))
