"""The command `eval`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from cloud import cli
from protos.artifacts import read_json
from protos.progress import shown

FOLDER = click.Path(path_type=Path, file_okay=False)
SPLITS = ("train", "dev", "test")


@click.command("eval")
@click.option("--data", type=FOLDER, help="Folder with LaMP's files: all users in it.")
@click.option(
    "--split",
    type=click.Choice(SPLITS),
    default="dev",
    show_default=True,
    help="Which of LaMP's files in --data: {split}_questions.json and _outputs.json.",
)
@click.option(
    "--profiles",
    type=FOLDER,
    multiple=True,
    help="A Profile with questions, or a folder of them; may be repeated.",
)
@click.option("--task", "task_name", help="LaMP task, where --data's outputs do not tell it.")
@click.option("--users", type=click.IntRange(min=1), help="Only so many users, the first ones.")
@click.option(
    "--others",
    type=FOLDER,
    multiple=True,
    help="Users that the arm `task` learns from, as --data or --profiles: those who are "
    "evaluated are left out.",
)
@click.option("--base", required=True, help="Base model: a Hugging Face directory or hub id.")
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
@cli.augment_options
@cli.train_options
@cli.seed_option
@cli.threads_option
@cli.json_option
def eval_command(
    data: Path | None,
    split: str,
    profiles: tuple[Path, ...],
    task_name: str | None,
    users: int | None,
    others: tuple[Path, ...],
    base: str,
    out: Path,
    arms: str | None,
    ratios: str,
    nearest: int,
    teacher_shots: int,
    third_party: bool,
    plots: bool,
    threads: int,
    as_json: bool,
    seed: int,
    **given: Any,
) -> None:
    """Measure whether personalization helps: the same users' questions, answered in several ways.

    \b
    Arms: base, base+bm25 (the nearest items in the prompt), task (an adapter trained on --others),
    real (own items), mixed-unfiltered, mixed (own and filtered synthetic items: the product),
    synthetic, mixed+bm25, other (another user's mixed adapter: the control), teacher (in context).

    Interrupted, it goes on where it was; what has not changed is not made again.

    \b
    Examples:
      pocketune eval --data lamp/LaMP_4 --users 40 --base path/to/model --out work/eval \\
          --teacher "openai:http://localhost:8000/v1#my-model"
      pocketune eval --profiles work/profiles --base path/to/model --out work/eval \\
          --arms base,real,mixed,other --ratios 0,0.5,1,2,3
    """  # fmt: skip
    from cloud.augment import AugmentConfig
    from cloud.evaluation.arms import DEFAULT
    from cloud.evaluation.evaluate import RESULTS_FILE, evaluate
    from cloud.evaluation.inputs import EvaluateConfig, Means
    from cloud.evaluation.plots import check, draw
    from cloud.evaluation.report import markdown
    from cloud.evaluation.users import read_users
    from cloud.train import TrainConfig
    from protos.base_model import open_base

    started = time.monotonic()
    if (data is None) == (not profiles):
        raise click.UsageError("give either --data or --profiles")
    if plots:
        check()
    config = EvaluateConfig(arms or ",".join(DEFAULT), ratios, nearest, teacher_shots, seed)
    teachers = cli.open_teachers(threads, **given)
    given["seed"] = seed
    augmenting, training = cli.pick(AugmentConfig, given), cli.pick(TrainConfig, given)
    model = open_base(base)
    folders = [data] if data else list(profiles)
    people = [read_users(f, split, task_name, third_party, out, users) for f in folders]
    helping = [read_users(f, split, task_name, third_party, out / "others") for f in others]
    means = Means(
        model,
        teachers.writer,
        augmenting,
        training,
        [profile for each in helping for profile in each.profiles],
        teachers.judge,
        teachers.calls,
        threads,
    )
    left_out = {name: why for each in people for name, why in each.left_out.items()}
    found = [profile for each in people for profile in each.profiles][:users]
    with shown("eval") as progress:
        made = evaluate(found, means, out, config, left_out, progress)
    page = markdown(made)
    (out / "evaluation.md").write_text(page, encoding="utf-8")
    drawn = draw(made, out / "plots") if plots else []
    if as_json:
        results = read_json(made.file(RESULTS_FILE))
        short = {name: results[name] for name in ("task", "main", "arms", "gains")}
        files = {"page": str(out / "evaluation.md"), "plots": [str(path) for path in drawn]}
        cli.print_result(made, started, True, {**short, **files})
        return
    click.echo(page)
    cli.print_result(made, started, False)
