"""The commands `task train` and `task withdraw`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from cloud import cli
from cloud.train import TrainConfig
from protos.artifacts import Artifact, open_artifact
from protos.errors import InputError
from protos.progress import shown


@click.group("task")
def task() -> None:
    """One adapter for everybody with a task, from users who agreed, merged into the base."""


@task.command("train")
@click.option(
    "--users",
    type=cli.DIRECTORY,
    multiple=True,
    required=True,
    help="A Profile imported with --contributes, or a folder of them; may be repeated.",
)
@click.option("--base", required=True, help="Base model: a Hugging Face directory or hub id.")
@click.option(
    "--out",
    required=True,
    type=cli.DIRECTORY,
    help="Folder for everything; OUT/base is a base model for --base.",
)
@cli.train_options
@cli.seed_option
@cli.threads_option
@cli.json_option
def train_command(
    users: tuple[Path, ...], base: str, out: Path, threads: int, as_json: bool, **given: Any
) -> None:
    """Train an adapter on the items of users who agreed, and merge it into the base.

    OUT/base is what `--base` of any command takes from then on: users' adapters go on top of it.
    OUT/adapter is the adapter alone. Manifests list the contributors by pseudonym.

    \b
    Example:
      pocketune task train --users work/profiles --base path/to/model --out work/task
      pocketune personalize items.jsonl --base work/task/base --out work/ann
    """
    from cloud.task_adapter import train_task
    from protos.base_model import open_base

    started = time.monotonic()
    profiles = _profiles(users)
    with shown("task train") as progress:
        made = train_task(
            profiles, open_base(base), out, cli.pick(TrainConfig, given), threads, progress
        )
    cli.print_result(made, started, as_json)


def _profiles(folders: Sequence[Path]) -> list[Artifact]:
    paths = [path for folder in folders for path in cli.artifacts_in(folder, "Profile")]
    return [open_artifact(path, "Profile") for path in paths]


@task.command("withdraw")
@click.argument("user")
@click.argument("folders", nargs=-1, required=True, type=cli.DIRECTORY)
def withdraw_command(user: str, folders: tuple[Path, ...]) -> None:
    """Mark for training again what USER's items went into; FOLDERS are --out of `task train`.

    USER is the name in the Profile. Nothing can be trained over a marked base or exported of it
    until `task train` has run again without this user; what was exported goes on running.

    \b
    Example:
      pocketune task withdraw ann work/task
    """
    from cloud.task_adapter import withdraw

    found = {folder: withdraw(user, folder) for folder in folders}
    for folder, names in found.items():
        what = f"marked: {', '.join(names)}" if names else f"{user} is no contributor"
        click.echo(f"{folder}: {what}")
    if not any(found.values()):
        raise InputError(f"{user} is no contributor of any; is that the name in the Profile?")
