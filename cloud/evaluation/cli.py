"""The command `eval`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from cloud import cli
from cloud.teachers import POCKET_TEACHER
from protos.artifacts import Artifact
from protos.errors import InputError
from protos.progress import shown

if TYPE_CHECKING:
    from cloud.evaluation.inputs import Device

FOLDER = click.Path(path_type=Path, file_okay=False)
SPLITS = ("train", "dev", "test", "test2")
SUITES = ("pocket",)
POCKET_BASE = POCKET_TEACHER.with_name("base")
PAGE = "evaluation.md"
QUICK_ARMS = "base,real,mixed,other,teacher"
QUICK_USERS = 6
"""As few as have an interval; those with the fewest items, which take the least time."""
QUICK_OPTIONS = {"per_real": 1.0, "answer_shots": 0, "epochs": 6}
"""Most of the time goes into what the teacher writes, and into training."""
CONTRIBUTORS = 20
"""Users of the bundled world that the arm `task` learns from."""


OnDevice = Callable[[str, Path, int, int, int], "Device"]
"""From a base, a folder, the adapters' rank, the context and threads: what times answers."""


def command(on_device: OnDevice) -> click.Command:
    """The command with what it needs from outside of `cloud` injected."""
    settings = {**eval_command.context_settings, "obj": on_device}
    eval_command.context_settings = settings
    return eval_command


@click.command("eval")
@click.option(
    "--data",
    type=FOLDER,
    multiple=True,
    help="Folder with LaMP's files: all users in it. Repeated, one task after the other, each in a "
    "folder of --out called like its own.",
)
@click.option(
    "--suite",
    type=click.Choice(SUITES),
    help="Instead of --data: the users of the bundled world, all of its tasks one after the "
    "other. Options that are not given are those of `demo`.",
)
@click.option(
    "--quick",
    is_flag=True,
    help=f"With --suite: the {QUICK_USERS} users of each task with the fewest items, one "
    f"synthetic item for each real one, half the epochs, and the arms {QUICK_ARMS}.",
)
@click.option(
    "--split",
    type=click.Choice(SPLITS),
    default="dev",
    show_default=True,
    help="Which of LaMP's files in --data, {split}_questions.json and _outputs.json, or of the "
    "bundled users.",
)
@click.option(
    "--profiles",
    type=FOLDER,
    multiple=True,
    help="A Profile with questions, or a folder of them; may be repeated.",
)
@click.option(
    "--task",
    "task_name",
    help="LaMP task of all --data and --others; without it their files tell, LaMP_2N by its items. "
    "With --suite: only these tasks, separated by commas.",
)
@click.option("--users", type=click.IntRange(min=1), help="Only so many users, the first ones.")
@click.option(
    "--others",
    type=FOLDER,
    multiple=True,
    help="Users that the arm `task` learns from, as --data or --profiles: those who are "
    "evaluated are left out.",
)
@click.option(
    "--base",
    help="Base model: a Hugging Face directory or hub id.  [default: the bundled one with --suite]",
)
@click.option("--out", required=True, type=FOLDER, help="Folder for everything that is made.")
@click.option(
    "--arms", help="What is compared, separated by commas; see above.  [default: all but task]"
)
@click.option(
    "--ratios",
    default="",
    help="Also so many filtered items for each real one, such as 0,0.5,1,2,3.",
)
@click.option("--nearest", default=4, show_default=True, help="Items in the prompts of +bm25.")
@click.option(
    "--teacher-shots",
    default=16,
    show_default=True,
    help="Items that the teacher is shown with a question.",
)
@click.option("--third-party", is_flag=True, help="The users of --data allow third-party teachers.")
@click.option("--plots/--no-plots", default=True, show_default=True, help="Draw the results.")
@click.option(
    "--device/--no-device",
    default=False,
    show_default=True,
    help="Time the first user's answers by the phone's runtime on this machine; lowers the base.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Only print what teachers would be sent first, as `augment` does, and the questions that "
    "the arm `teacher` would be sent; nothing is written to --out.",
)
@cli.augment_options
@cli.train_options
@cli.seed_option
@cli.threads_option
@cli.json_option
@click.pass_obj
def eval_command(
    on_device: OnDevice,
    *,
    data: tuple[Path, ...],
    suite: str | None,
    quick: bool,
    split: str,
    profiles: tuple[Path, ...],
    task_name: str | None,
    users: int | None,
    others: tuple[Path, ...],
    base: str | None,
    out: Path,
    arms: str | None,
    ratios: str,
    nearest: int,
    teacher_shots: int,
    third_party: bool,
    plots: bool,
    device: bool,
    dry_run: bool,
    threads: int,
    as_json: bool,
    seed: int,
    **given: Any,
) -> None:
    """Measure whether personalization helps: the same users' questions, answered in several ways.

    \b
    Arms: base, base+bm25 (the nearest items in the prompt), task (an adapter trained on --others),
    real (own items), real-repeated (these in as many rows as mixed), mixed-unfiltered, mixed (own
    and filtered synthetic items: the product), synthetic, mixed+bm25, other (another user's mixed
    adapter: the control), teacher (in context).

    Interrupted, it goes on where it was; what has not changed is not made again.

    \b
    Examples:
      pocketune eval --data lamp/LaMP_4 --users 40 --base path/to/model --out work/eval \\
          --teacher "openai:http://localhost:8000/v1#my-model"
      pocketune eval --profiles work/profiles --base path/to/model --out work/eval \\
          --arms base,real,mixed,other --ratios 0,0.5,1,2,3
      pocketune eval --suite pocket --quick --out work/eval
    """
    from cloud.augment import AugmentConfig
    from cloud.evaluation.arms import DEFAULT
    from cloud.evaluation.dry_run import dry_run as would_send
    from cloud.evaluation.evaluate import evaluate
    from cloud.evaluation.inputs import EvaluateConfig, Means, context
    from cloud.evaluation.plots import check, draw
    from cloud.evaluation.report import markdown
    from cloud.evaluation.users import read_users
    from cloud.train import TrainConfig
    from protos.base_model import open_base

    started = time.monotonic()
    _require_source(data, profiles, suite, quick, base)
    if dry_run:
        out = Path(click.get_current_context().with_resource(TemporaryDirectory()))
        plots = device = False
    users = users or (QUICK_USERS if quick else None)
    arms = arms or (QUICK_ARMS if quick else ",".join(DEFAULT))
    if suite:
        given |= _pocket_options(QUICK_OPTIONS if quick else {})
        data = world_users(split, None if quick else users, out / "users", task_name)
        others = others or contributors(arms, out / "contributors")
        task_name = None
    base = base or str(POCKET_BASE)
    places = task_folders(data, out, bool(suite)) if data else {out: list(profiles)}
    if plots:
        check()
    config = EvaluateConfig(arms, ratios, nearest, teacher_shots, seed)
    teachers = cli.open_teachers(threads, **given)
    given["seed"] = seed
    augmenting, training = cli.pick(AugmentConfig, given), cli.pick(TrainConfig, given)
    theirs = "train" if suite else split
    helping = [
        read_users(f, theirs, task_name, third_party, out / "others" / str(n), contributes=True)
        for n, f in enumerate(others, 1)
    ]
    means = Means(
        open_base(base), teachers.writer, augmenting, training,
        [profile for each in helping for profile in each.profiles], teachers.judge,
        teachers.calls, threads,
    )  # fmt: skip
    if device:
        timed = on_device(base, out / "device", training.rank, context(means), threads)
        means = replace(means, device=timed)
    made: list[Artifact] = []
    for place, folders in places.items():
        most = None if quick else users
        read = [read_users(f, split, task_name, third_party, place, most) for f in folders]
        left_out = {name: why for each in read for name, why in each.left_out.items()}
        people = _first([profile for each in read for profile in each.profiles], users, quick)
        if dry_run:
            _echo(would_send(people, means, place, config))
            continue
        with shown(f"eval {place.name}") as progress:
            made.append(evaluate(people, means, place, config, left_out, progress))
        (place / PAGE).write_text(markdown(made[-1]), encoding="utf-8")
        if plots:
            draw(made[-1], place / "plots")
    if not dry_run:
        _report(made, out, places.keys() != {out}, started, as_json)


def _report(
    made: Sequence[Artifact], out: Path, of_tasks: bool, started: float, as_json: bool
) -> None:
    """Print what was made; of_tasks: with a page over them, which is written to `out`."""
    from cloud.evaluation.report import summary
    from cloud.evaluation.results import read_results

    if of_tasks:
        (out / PAGE).write_text(summary([read_results(each) for each in made]), encoding="utf-8")
    if not as_json:
        click.echo((out / PAGE).read_text("utf-8"))
    for each in made:
        cli.print_result(each, started, as_json, _scores(each) if as_json else None)


def _require_source(
    data: Sequence[Path], profiles: Sequence[Path], suite: str | None, quick: bool,
    base: str | None,
) -> None:  # fmt: skip
    if [bool(data), bool(profiles), bool(suite)].count(True) != 1:
        raise click.UsageError("give one of --data, --profiles and --suite")
    if quick and suite is None:
        raise click.UsageError("--quick is for --suite; with others, give --users and --arms")
    if base is None and suite is None:
        raise click.UsageError("give --base")


def _pocket_options(others: dict[str, Any]) -> dict[str, Any]:
    """What suits the bundled models, for those options that the caller left alone."""
    from cloud.pocket import OPTIONS

    source = click.get_current_context().get_parameter_source
    return {
        name: value
        for name, value in {**OPTIONS, **others}.items()
        if source(name) is ParameterSource.DEFAULT
    }


def world_users(
    split: str, users: int | None, out: Path, tasks: str | None = None
) -> tuple[Path, ...]:
    """The folders of the pocket world's users, a task each, written into `out`.

    Raises:
        InputError: `tasks`, names with commas between them, has one that the world has not.
    """
    from cloud.pocket.world import WORLDS, write_users

    wanted = list(WORLDS) if tasks is None else [name.strip() for name in tasks.split(",")]
    if unknown := [name for name in wanted if name not in WORLDS]:
        raise InputError(f"--task {unknown[0]}: the suite has {', '.join(WORLDS)}")
    folders = {task: out / task for task in wanted}
    for task, folder in folders.items():
        write_users(task, split, folder, users)
    return tuple(folders.values())


def contributors(arms: str, out: Path) -> tuple[Path, ...]:
    """Other users of the pocket world, for the arm that learns from them."""
    from cloud.evaluation.arms import TASK

    wanted = TASK in [name.strip() for name in arms.split(",")]
    return world_users("train", CONTRIBUTORS, out) if wanted else ()


def task_folders(data: Sequence[Path], out: Path, apart: bool) -> dict[Path, list[Path]]:
    """Where each task's evaluation goes, and the folder that it is about.

    apart: in a folder of its own also where it is the only one.

    Raises:
        InputError: two folders have the same name.
    """
    if len(data) == 1 and not apart:
        return {out: [data[0]]}
    places = {out / folder.resolve().name: [folder] for folder in data}
    if len(places) < len(data):
        names = ", ".join(str(folder) for folder in data)
        raise InputError(f"--data {names}: two of the same name; rename one")
    return places


def _first(profiles: list[Artifact], users: int | None, fewest: bool) -> list[Artifact]:
    """So many of them; fewest: those with the fewest items."""
    if fewest:
        profiles = sorted(profiles, key=lambda each: each.manifest.measured["items"])
    return profiles[:users]


def _echo(rows: Iterable[dict[str, Any]]) -> None:
    for row in rows:
        click.echo(json.dumps(row, ensure_ascii=False))


def _scores(evaluation: Artifact) -> dict[str, Any]:
    """What scripts ask for, without the users."""
    from cloud.evaluation.results import read_results

    found = read_results(evaluation)
    return {name: found[name] for name in ("task", "main", "arms", "gains")}
