"""The commands `profile import`, `augment` and `train`.

Thin: each opens its inputs, calls the stage's one function and prints the artifact that it made.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from cloud.augment import LABEL_SHARES, SCRUBBING, AugmentConfig
from cloud.profiles import Consent
from cloud.tasks import KINDS
from cloud.teachers import Calls
from cloud.train import TrainConfig
from protos.artifacts import MANIFEST, Artifact, open_artifact
from protos.errors import InputError, PocketuneError, listed
from protos.progress import shown

if TYPE_CHECKING:
    from cloud.profiles import Item, Profile, Question
    from cloud.tasks import Task
    from cloud.teachers import Teacher

Command = TypeVar("Command", bound=Callable[..., Any])
C = TypeVar("C")
DIRECTORY = click.Path(path_type=Path, file_okay=False)
_NAMED = 5
"""Of what an import leaves out, so many are named on the terminal."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
seed_option = click.option("--seed", default=0, show_default=True, help="Seed of all randomness.")
threads_option = click.option(
    "--threads", default=os.cpu_count() or 1, show_default="all cores", help="CPU threads."
)


def options(*decorators: Callable[[Any], Any]) -> Callable[[Command], Command]:
    """Several click options as one decorator, listed in --help in the order given."""

    def decorate(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


def _number(name: str, config: type, help_text: str) -> Callable[[Any], Any]:
    default = getattr(config, name)
    flag = "--" + name.replace("_", "-")
    return click.option(flag, default=default, show_default=True, help=help_text)


profile_options = options(
    click.option("--task", help="LaMP task (LaMP_1 … LaMP_7, LaMP_2N), or a name for your own."),
    click.option("--user", help="User to import, where the file holds several."),
    click.option("--outputs", type=click.Path(path_type=Path), help="LaMP outputs file."),
    click.option("--kind", type=click.Choice(KINDS), help="Kind of a task of your own (JSONL)."),
    click.option("--prompt", default="{input}", help="Instruction of your own task, with {input}."),
    click.option("--labels", default="", help="Labels of your own task, separated by commas."),
    click.option("--language", default="und", show_default=True, help="BCP 47 tag of the items."),
    click.option("--purpose", default=Consent.purpose, show_default=True, help="Consented use."),
    click.option(
        "--retention-days", default=Consent.retention_days, show_default=True,
        help="Days the items may be kept.",
    ),
    click.option("--third-party", is_flag=True, help="The user allows third-party teachers."),
)  # fmt: skip

augment_options = options(
    click.option("--teacher", default="pocket", show_default=True,
                 help="pocket, pocket-reader, hf:<dir or id>, or openai:<base-url>#<model>."),
    _number("per_real", AugmentConfig, "Synthetic items wanted for each real one."),
    _number("fill_to", AugmentConfig,
            "Items to train on, real ones included, above which none is written; 0: no bound."),
    _number("real_share", AugmentConfig,
            "Least share of real items in the mix: where they are too few, they are repeated."),
    click.option("--label-shares", type=click.Choice(LABEL_SHARES),
                 default=AugmentConfig.label_shares, show_default=True, help="How often a label "
                 "comes: as among the user's own items, or as the teacher gives it."),
    _number("strategies", AugmentConfig,
            "What is asked for, with shares: new, paraphrase, label; such as new=2,label=1; "
            "auto: label where labels come as among the user's own items, else new."),
    _number("shots", AugmentConfig, "Items shown in one request."),
    _number("answer_shots", AugmentConfig,
            "Items shown when a free output is asked for anew; 0: not asked anew."),
    _number("max_chars", AugmentConfig, "Characters shown in one request."),
    _number("temperature", AugmentConfig, "Sampling temperature."),
    _number("top_p", AugmentConfig, "Nucleus of the sampling."),
    _number("votes", AugmentConfig, "Votes of the teacher on a label; 0 leaves them out."),
    click.option("--judge", help="Another teacher, a chat model, that marks what was written."),
    _number("judge_least", AugmentConfig, "Least mark of the judge, 1 to 5."),
    _number("pool", AugmentConfig, "Candidates to choose from, for each one wanted."),
    _number("tries", AugmentConfig, "Candidates asked for at most, for each one wanted."),
    _number("round", AugmentConfig, "Requests sent at a time."),
    click.option("--scrub", type=click.Choice(SCRUBBING), default=AugmentConfig.scrub,
                 show_default=True, help="Take personal data out of what teachers see; auto: of "
                 "what openai: ones see."),
    _number("concurrency", Calls, "Calls of an openai: teacher at the same time."),
    _number("timeout_s", Calls, "Seconds that one call may take."),
    _number("retries", Calls, "Tries again of a call that failed for a passing reason."),
    _number("max_answer_tokens", Calls,
            "Tokens of one answer at most, reasoning included; 0: 4,096 and as many as the items "
            "asked for may have characters."),
    _number("requests_per_minute", Calls, "Calls a minute at most; 0: no limit."),
    _number("tokens_per_minute", Calls, "Tokens a minute at most; 0: no limit."),
    _number("price_in", Calls, "Price of a million tokens sent, for the accounts."),
    _number("price_out", Calls, "Price of a million tokens written, for the accounts."),
)  # fmt: skip

train_options = options(
    _number("rank", TrainConfig, "LoRA rank."),
    _number("alpha", TrainConfig, "LoRA alpha."),
    _number("targets", TrainConfig, "Projections to adapt, separated by commas."),
    _number("dropout", TrainConfig, "LoRA dropout."),
    _number("learning_rate", TrainConfig, "Peak learning rate."),
    _number("weight_decay", TrainConfig, "Weight decay of AdamW."),
    _number("warmup", TrainConfig, "Share of the steps that warm up."),
    _number("epochs", TrainConfig, "Epochs at most."),
    _number("batch_size", TrainConfig, "Rows in a batch."),
    _number("patience", TrainConfig, "Epochs without a better validation loss before it stops."),
    _number("max_length", TrainConfig, "Tokens of prompt and completion."),
    click.option("--dtype", type=click.Choice(["auto", "float32", "bfloat16"]),
                 default=TrainConfig.dtype, show_default=True, help="Type of the frozen base."),
    click.option("--gradient-checkpointing", is_flag=True,
                 help="Compute activations twice instead of keeping them: less memory, slower."),
)  # fmt: skip


@click.group()
def profile() -> None:
    """A user's own items."""


@profile.command("import")
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=DIRECTORY, help="Where the Profile goes.")
@profile_options
@click.option(
    "--questions",
    type=click.Path(path_type=Path),
    help="Held-out questions for `eval`, in JSONL, where the items are in JSONL.",
)
@click.option(
    "--contributes",
    is_flag=True,
    help="The user allows an adapter for all users of the task to learn from the items, too.",
)
@json_option
def import_command(source: Path, out: Path, as_json: bool, **given: Any) -> None:
    """Import one user's items from a LaMP questions file or from JSONL.

    Importing again renews the consent: its days begin anew.

    \b
    A line of JSONL is {"input": …, "output": …}, with "date" and "id" if they are known. A line of
    --questions is {"input": …} with the answer as "output"; from the first "date" of a question on,
    items are left out.

    \b
    Examples:
      pocketune profile import dev_questions.json --outputs dev_outputs.json \\
          --user 42 --out work/profile
      pocketune profile import items.jsonl --task mails --kind generation \\
          --prompt "Write a subject for this mail: {input}" --out work/profile \\
          --questions held-out.jsonl
    """
    started = time.monotonic()
    print_result(import_profile(source, out, **given), started, as_json)


@click.command("augment")
@click.option("--profile", "source", required=True, type=DIRECTORY, help="A Profile.")
@click.option("--out", required=True, type=DIRECTORY, help="Where the Dataset goes.")
@augment_options
@click.option(
    "--dry-run",
    is_flag=True,
    help="Only print what the teacher would be sent first, and how it and a judge "
    "would be asked for their opinion.",
)
@click.option("--explain", is_flag=True, help="Show examples of what each filter removed.")
@seed_option
@threads_option
@json_option
def augment_command(
    source: Path, out: Path, threads: int, dry_run: bool, explain: bool, as_json: bool, **given: Any
) -> None:
    """Widen a user's items with synthetic ones that a teacher writes.

    \b
    Examples:
      pocketune augment --profile work/profile --teacher pocket --out work/dataset
      pocketune augment --profile work/profile --out work/dataset \\
          --teacher "openai:http://localhost:8000/v1#my-model" --dry-run
    """
    import cloud.augment as stage

    started = time.monotonic()
    opened, config = open_artifact(source, "Profile"), pick(AugmentConfig, given)
    teachers = open_teachers(threads, **given)
    if dry_run:
        for sent in stage.dry_run(opened, teachers.writer, config, teachers.judge):
            click.echo(json.dumps(sent, ensure_ascii=False))
        return
    with shown("augment") as progress:
        made = stage.augment(
            opened, teachers.writer, out, config, progress, teachers.judge, teachers.calls
        )
    removed = stage.examples(made) if explain else {}
    warn(made)
    more: dict[str, Any] = {"removed": removed} if explain else {}
    both = (teachers.writer, teachers.judge)
    more["spent"] = stage.at_prices(made.manifest.measured["spent"], both, teachers.calls)
    print_result(made, started, as_json, more)
    if not as_json:
        click.echo("".join(_removed(*each) for each in removed.items()), nl=False)
        click.echo(_unread(made) if explain else "", nl=False)


class Teachers(NamedTuple):
    """The teachers that `augment_options` name."""

    writer: Teacher
    judge: Teacher | None
    calls: Calls


def open_teachers(threads: int, *, teacher: str, judge: str | None, **given: Any) -> Teachers:
    """Open them; local weights load at the first request.

    Raises:
        InputError: an option is malformed or names a model that is not there.
    """
    from cloud.teachers import open_teacher

    calls = pick(Calls, given)
    other = open_teacher(judge, threads, calls) if judge else None
    return Teachers(open_teacher(teacher, threads, calls), other, calls)


def _removed(reason: str, rows: list[dict[str, Any]]) -> str:
    """What one filter removed, for people."""
    lines = [f"{reason}\n"]
    for row in rows:
        parts = row["pair"] or [row["text"]]
        lines += [f"    {' → '.join(_short(part) for part in parts)}\n"]
    return "".join(lines)


def _unread(dataset: Artifact) -> str:
    """How many votes and marks could not be read, for people."""
    counts = {kind: dataset.manifest.measured.get(kind, {}) for kind in ("votes", "marks")}
    return "".join(
        f"{kind} that could not be read: {count['unread']} of {count['asked']}\n"
        for kind, count in counts.items()
        if count.get("unread")
    )


def _short(text: str, most: int = 100) -> str:
    flat = " ".join(text.split()) or "(nothing)"
    return flat if len(flat) <= most else f"{flat[: most - 1]}…"


@click.command("train")
@click.option("--dataset", type=DIRECTORY, help="A Dataset.")
@click.option(
    "--users",
    type=DIRECTORY,
    multiple=True,
    help="A Dataset of one of several users, or a folder of them; may be repeated.",
)
@click.option("--base", required=True, help="Base model: a Hugging Face directory or hub id.")
@click.option(
    "--out",
    required=True,
    type=DIRECTORY,
    help="Where the Adapter goes; with --users, a folder with one for each.",
)
@click.option(
    "--shipped",
    type=DIRECTORY,
    help="BaseBundle of the base: train over the weights that the phone holds.",
)
@train_options
@click.option(
    "--memory",
    type=click.FloatRange(min=0, min_open=True),
    help="GiB to use beside the model; by default four fifths of what is free.",
)
@seed_option
@threads_option
@json_option
def train_command(
    dataset: Path | None,
    users: tuple[Path, ...],
    base: str,
    out: Path,
    shipped: Path | None,
    threads: int,
    memory: float | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Train a LoRA adapter on a Dataset, or on each of several users' at once.

    The result is a plain PEFT directory; with --users, one in OUT for each Dataset, under its name.
    A user whose data or training is at fault is reported at the end; the others are kept.

    \b
    Examples:
      pocketune train --dataset work/dataset --base path/to/model --out work/adapter
      pocketune train --users work/datasets --base path/to/model --out work/adapters
      pocketune train --dataset work/dataset --base path/to/model --out work/adapter \\
          --shipped work/base-bundle
    """
    from cloud.train import train
    from protos.base_model import open_base

    started = time.monotonic()
    config = pick(TrainConfig, given)
    budget = None if memory is None else int(memory * (1 << 30))
    if (dataset is None) == (not users):
        raise click.UsageError("give either --dataset or --users")
    over = open_artifact(shipped, "BaseBundle") if shipped else None
    if dataset is None:
        answers = _train_users(named_datasets(users), base, out, config, threads, budget, over)
        _print_users(answers, started, as_json)
        return
    opened = open_artifact(dataset, "Dataset")
    with shown("train") as progress:
        made = train(opened, open_base(base), out, config, threads, progress, budget, over)
    print_result(made, started, as_json)


def named_datasets(folders: Sequence[Path]) -> dict[str, Path]:
    """The Datasets that `--users` stands for, by the names of their directories.

    Raises:
        InputError: a folder holds none, or two have the same name.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        for path in artifacts_in(folder, "Dataset"):
            name = path.resolve().name
            if name in found:
                raise InputError(f"two Datasets are called {name}: {found[name]} and {path}")
            found[name] = path
    return found


def artifacts_in(folder: Path, kind: str) -> list[Path]:
    """The folder itself, or the artifacts in it, which are to be of this kind.

    Raises:
        InputError: there are none.
    """
    inside = [folder] if _is_artifact(folder) else sorted(filter(_is_artifact, _inside(folder)))
    if not inside:
        raise InputError(f"{folder}: no {kind}, and no folder of {kind}s either")
    return inside


def _inside(folder: Path) -> list[Path]:
    visible = folder.iterdir() if folder.is_dir() else ()
    return [path for path in visible if not path.name.startswith(".")]


def _is_artifact(path: Path) -> bool:
    return (path / MANIFEST).is_file()


def _train_users(
    datasets: dict[str, Path],
    base: str,
    out: Path,
    config: TrainConfig,
    threads: int,
    memory_budget: int | None,
    shipped: Artifact | None,
) -> dict[str, Artifact | PocketuneError]:
    """For each user the Adapter, or what is wrong with this one."""
    from cloud.train import Member, train_many
    from protos.base_model import open_base

    answers: dict[str, Artifact | PocketuneError] = {}
    members: dict[str, Member] = {}
    for name, path in datasets.items():
        try:
            members[name] = Member(open_artifact(path, "Dataset"), out / name, config)
        except PocketuneError as error:
            answers[name] = error
    with shown("train") as progress:
        made = train_many(
            list(members.values()), open_base(base), threads, memory_budget, progress, shipped
        )
    answers.update(zip(members, made, strict=True))
    return {name: answers[name] for name in datasets}


def _print_users(
    answers: dict[str, Artifact | PocketuneError], started: float, as_json: bool
) -> None:
    """A line or an object for each user; raises at the end if one of them has no adapter."""
    failed = {name: str(made) for name, made in answers.items() if isinstance(made, Exception)}
    made = {name: made for name, made in answers.items() if not isinstance(made, Exception)}
    if as_json:
        results = {name: _described(artifact) for name, artifact in made.items()}
        seconds = round(time.monotonic() - started, 2)
        click.echo(json.dumps({"adapters": results, "errors": failed, "seconds": seconds}))
    else:
        for name, artifact in made.items():
            click.echo(f"{name}: Adapter {artifact.id[:12]} in {artifact.path}")
    if failed:
        raise InputError(f"{len(failed)} of {len(answers)} users have no adapter: {listed(failed)}")


def import_profile(source: Path, out: Path, **given: Any) -> Artifact:
    """Import from a LaMP questions file (.json) or from JSONL, as `profile_options` say.

    Raises:
        InputError: names the file, the line and the field.
    """
    from cloud.profiles import write_profile

    read = read_source(source, **given)
    made = write_profile(read, out)
    for each in read.left_out[:_NAMED]:
        click.echo(f"Left out: {each}", err=True)
    if more := len(read.left_out[_NAMED:]):
        click.echo(f"Left out: {more} more, all of them in {out / MANIFEST}", err=True)
    return made


def read_source(source: Path, *, questions: Path | None = None, **given: Any) -> Profile:
    """Read one user's profile from a LaMP questions file or from JSONL, without writing anything.

    questions: held-out questions in JSONL, for items in JSONL.

    Raises:
        InputError: names the file, the line and the field.
    """
    from cloud.lamp import named_task, read_lamp, task_of
    from cloud.profiles import Profile
    from cloud.tasks import TASKS, custom_task

    consent = pick(Consent, given)
    name, outputs, user = given["task"], given["outputs"], given["user"]
    if source.suffix == ".json":
        if name is None and outputs is None:
            raise InputError(f"{source}: which task? Give --task or --outputs")
        if questions:
            raise InputError(f"{source}: has its own questions; --questions is for items in JSONL")
        task = named_task(name, "--task") if name else task_of(outputs)
        read = read_lamp(source, outputs, task, user)
        return Profile(
            task, read.name, given["language"], consent, read.items, read.questions, read.left_out
        )
    labels = tuple(label.strip() for label in given["labels"].split(",") if label.strip())
    task = TASKS.get(name or "")
    if task is None:
        kind = given["kind"] or "generation"
        task = custom_task(name or source.stem, kind, given["prompt"], labels)
    user = user or source.stem
    items, asked, left_out = _read_jsonl(source, questions, task, user)
    return Profile(task, user, given["language"], consent, items, asked, left_out)


def _read_jsonl(
    source: Path, questions: Path | None, task: Task, user: str
) -> tuple[list[Item], list[Question], list[str]]:
    """Items, held-out questions, and which items are no older than the first of these."""
    from cloud.jsonl import read_items, read_questions, split_at

    items = read_items(source, task)
    if questions is None:
        return items, [], []
    asked = read_questions(questions, task, user)
    dates = [date for _, date in asked if date]
    older, later = split_at(items, min(dates)) if dates else (items, [])
    left_out = [f"{source}, user {user!r}, {each}" for each in later]
    return older, [question for question, _ in asked], left_out


def pick(config: type[C], given: dict[str, Any]) -> C:
    """A stage's config from the options of a command; the rest of them is another stage's."""
    names = {field.name for field in fields(config)}  # type: ignore[arg-type]
    return config(**{name: value for name, value in given.items() if name in names})


def warn(dataset: Artifact) -> None:
    """Say on standard error what somebody should know about a Dataset that was made."""
    if warning := dataset.manifest.measured.get("warning"):
        click.echo(f"Warning: {warning}", err=True)
    for teacher, counts in dataset.manifest.measured.get("without", {}).items():
        said = ", ".join(f"{name} ({count} answers)" for name, count in counts.items())
        click.echo(f"Warning: {teacher} does not take every parameter; without {said}", err=True)


def print_result(
    artifact: Artifact, started: float, as_json: bool, more: dict[str, Any] | None = None
) -> None:
    """What a command made: for people a line, for scripts an object."""
    seconds = round(time.monotonic() - started, 2)
    if as_json:
        result = {"seconds": seconds, **_described(artifact), **(more or {})}
        click.echo(json.dumps(result, ensure_ascii=False))
    else:
        kind = artifact.manifest.kind
        click.echo(f"{kind} {artifact.id[:12]} in {artifact.path} ({seconds:.1f} s)")


def _described(artifact: Artifact) -> dict[str, Any]:
    manifest = artifact.manifest
    return {
        "kind": manifest.kind,
        "path": str(artifact.path),
        "id": manifest.id,
        "size_bytes": manifest.size_bytes,
        **manifest.measured,
    }
