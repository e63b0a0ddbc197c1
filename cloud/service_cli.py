"""The commands `serve`, `worker` and `doctor`: the service from its operator's side.

In: settings from the environment, over which options go. The stages that lie outside of `cloud` are
injected by the composition root, see `commands`. Everything heavy is imported inside the command
that needs it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cloud.keys_cli import keys, read_settings
from cloud.remote_cli import remote

if TYPE_CHECKING:
    from structlog.typing import EventDict

    from cloud.service.parts import Parts
    from cloud.service.pipeline import Pipeline
    from cloud.service.settings import Settings
    from cloud.service.stages.site import Tools

Stages = Callable[[], "Tools"]
"""Gives what jobs need from outside of `cloud`; called when it is needed."""
Command = TypeVar("Command", bound=Callable[..., Any])
_FILE = click.Path(path_type=Path, dir_okay=False)


def commands(stages: Stages) -> list[click.Command]:
    """The commands of this module and `remote`, with what their jobs need injected."""
    for command in (serve_command, worker_command):
        command.context_settings = {**command.context_settings, "obj": stages}
    return [serve_command, worker_command, remote, doctor_command, keys]


def _shared_options(command: Command) -> Command:
    """What server, worker and doctor have in common."""
    for option in (
        click.option("--log-format", type=click.Choice(["auto", "json", "console"]),
                     help="How events are written on standard error."),
        click.option("--metrics-port", type=click.IntRange(0, 65535),
                     help="Port of the Prometheus metrics; 0: none."),
        click.option("--blobs-url", help="file:///… or s3://bucket/prefix."),
        click.option("--database-url", help="SQLAlchemy URL; default: SQLite in the data folder."),
        click.option("--data-dir", type=click.Path(path_type=Path, file_okay=False),
                     help="Folder of the embedded default.  [default: pocketune-data]"),
    ):  # fmt: skip
        command = option(command)
    return command


@click.command("serve")
@_shared_options
@click.option("--host", help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), help="0: a free one.  [default: 50051]")
@click.option("--worker/--no-worker", default=None, help="Run jobs, too.  [default: worker]")
@click.option("--api-keys", "api_keys_file", type=_FILE, help="File made by `pocketune keys`.")
@click.option("--tls-cert", "tls_cert_file", type=_FILE, help="PEM chain; the server speaks TLS.")
@click.option("--tls-key", "tls_key_file", type=_FILE, help="PEM key.")
@click.pass_obj
def serve_command(stages: Stages, **given: Any) -> None:
    """Run the service. With no options: SQLite, a local folder, one worker, this machine only.

    Settings come from the environment (POCKETUNE_…, see docs/service.md); options go before them.
    Ctrl-C or SIGTERM drains: running calls finish, jobs go on at the next start.

    \b
    Example:
      pocketune serve
      pocketune serve --host 0.0.0.0 --tls-cert cert.pem --tls-key key.pem --api-keys keys.json
    """
    import asyncio

    from cloud.service.parts import open_parts
    from cloud.service.server import serve

    settings = read_settings(**given)

    def listen(event: EventDict) -> None:
        if event.get("event") == "serving":
            click.echo(_how_to_call(settings, str(event["address"])))

    with _observed(settings, "pocketune-server", listen), open_parts(settings) as parts:
        asyncio.run(serve(parts, _pipelines(parts, stages) if settings.worker else {}))
    _end()


@click.command("worker")
@_shared_options
@click.option("--jobs-at-once", type=click.IntRange(min=1), help="Jobs at a time.  [default: 1]")
@click.option("--threads", type=click.IntRange(min=0), help="CPU threads of a heavy step.")
@click.option("--queue", "queues", multiple=True, help="Queue to take from; repeatable.")
@click.pass_obj
def worker_command(stages: Stages, queues: tuple[str, ...], **given: Any) -> None:
    """Run jobs for servers that use the same database, blobs and keys. As many as you want.

    Ctrl-C or SIGTERM hands the running jobs back; another worker goes on with them.

    \b
    Example:
      pocketune worker --database-url postgresql+psycopg://db/pocketune --blobs-url s3://bucket/p
      pocketune worker --queue gpu
    """
    from cloud.service.jobs import JobWorker
    from cloud.service.parts import open_parts
    from cloud.service.sweeper import Sweeper

    settings = read_settings(**given, queues=queues or None)
    if settings.resolved_database_url.startswith("sqlite") and not given["data_dir"]:
        click.echo("Note: on SQLite, workers must share the server's data folder.", err=True)
    with _observed(settings, "pocketune-worker"), open_parts(settings) as parts:
        lines = _pipelines(parts, stages)
        found = JobWorker(parts.database, parts.vault, settings, lines)
        with _told_to_end() as told, Sweeper(parts).running():
            found.start()
            click.echo(f"Worker {found.executor_id} takes jobs from {', '.join(settings.queues)}.")
            told.wait()
        found.stop()
    _end()


@contextlib.contextmanager
def _observed(
    settings: Settings, name: str, listen: Callable[[EventDict], None] | None = None
) -> Generator[None]:
    """Logs, metrics and traces, while the block runs."""
    from cloud.service import logs, telemetry, traces

    logs.configure(settings.log_format, settings.log_level, listen)
    finish = traces.export(settings, name)
    try:
        with telemetry.metrics(settings):
            yield
    finally:
        finish()


def _pipelines(parts: Parts, stages: Stages) -> Mapping[str, Pipeline]:
    from cloud.service.pipelines import pipelines

    return pipelines(parts, stages())


@contextlib.contextmanager
def _told_to_end() -> Generator[threading.Event]:
    """An event that SIGTERM and SIGINT set."""
    told = threading.Event()

    def tell(*_: object) -> None:
        told.set()

    before = {number: signal.signal(number, tell) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end() -> None:
    """End the process: threads that were inside a stage never come back."""
    click.echo("Drained.")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _how_to_call(settings: Settings, address: str) -> str:
    reach = "this machine only" if settings.is_loopback else "the network"
    safe = "TLS" if settings.tls_cert_file else "plain"
    flags = "" if settings.port == 50051 and settings.is_loopback else f" --server {address}"
    work = "one worker" if settings.worker else "no worker: start `pocketune worker`"
    plain = "" if settings.tls_cert_file else " -plaintext"
    return "\n".join([
        f"Pocketune serves on {address} ({safe}, {reach}; {work}; data in {settings.data_dir}).",
        f"  pocketune remote personalize items.jsonl --base pocket --out work{flags}",
        f"  grpcurl{plain} {address} list",
        "Ctrl-C drains: running calls finish, jobs go on at the next start.",
    ])  # fmt: skip


@click.command("doctor")
@_shared_options
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def doctor_command(as_json: bool, **given: Any) -> None:
    """Say whether a server or worker with these settings would run, and what to do if not.

    Looks at versions, database, blob store, keys, disk, port, certificate. Exit code 1: it would
    not run.

    \b
    Example:
      pocketune doctor
      pocketune doctor --database-url postgresql+psycopg://db/pocketune --json
    """
    from cloud.service.doctor import examine

    findings = examine(read_settings(**given))
    if as_json:
        click.echo(json.dumps([vars(finding) for finding in findings]))
    else:
        for found in findings:
            click.echo(f"{found.level:<5} {found.what:<11} {found.text}")
    if any(finding.level == "fail" for finding in findings):
        sys.exit(1)
