"""The composition root: the command `pocketune`, and the pipeline that joins the stages.

Everything else shares artifacts, not code; only here do cloud, export and mobile_runtime meet. The
function `personalize` is the main job from top to bottom.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
import tempfile
import time
import tomllib
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click
from safetensors import SafetensorError

from cloud import cli as cloud_cli
from cloud import pocket, service_cli, task_cli
from cloud.evaluation import cli as evaluation_cli
from export import cli as export_cli
from mobile_runtime import cli as runtime_cli
from protos.artifacts import Artifact, read_json
from protos.errors import GateError, InputError, PocketuneError
from protos.progress import Progress, shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cloud.evaluation.inputs import Device
    from cloud.service.stages.site import Tools
    from mobile_runtime.report import ParityResult

# A waiting OpenMP thread spins. Measured on 2 cores: for long, a busy machine slows down tenfold;
# not at all, an idle one by a third; this is the middle. The library reads it when torch loads.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
# gRPC's C core writes lines of its own to standard error for what any stranger may send.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

POCKET = Path(cloud_cli.__file__).parent / "pocket"
DIRECTORY = click.Path(path_type=Path, file_okay=False)
DEFAULT_RECIPE = "executorch-xnnpack-8da4w"
POCKET_ARGUMENTS = (
    *(f"--{name.replace('_', '-')}={value}" for name, value in pocket.OPTIONS.items()),
    "--context-length=512",
)


class Cli(click.Group):
    """The boundary where an error becomes one line on standard error and an exit code.

    POCKETUNE_DEBUG=1 shows the traceback of whatever went wrong.
    """

    def main(self, *args: Any, **kwargs: Any) -> Any:
        if os.environ.get("POCKETUNE_DEBUG"):
            return super().main(*args, **kwargs)
        _silence_libraries()
        try:
            return super().main(*args, **{**kwargs, "standalone_mode": False})
        except click.exceptions.Exit as ended:
            code = ended.exit_code
        except click.ClickException as error:
            error.show()
            code = error.exit_code
        except (Exception, KeyboardInterrupt) as error:
            message, code = _explain(error)
            click.echo(f"Error: {message}", err=True)
        return sys.exit(code)


def _silence_libraries() -> None:
    """Keep torch's and its neighbours' advice to developers out of our users' terminals."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)


def _explain(error: BaseException) -> tuple[str, int]:
    """The one line and the exit code for whatever ended a command."""
    match error:
        case PocketuneError():
            return str(error), error.exit_code
        case click.Abort() | KeyboardInterrupt():
            return "interrupted; nothing is half-written, run it again to go on", 130
        case OSError():
            return _os_error(error), 1
        case SafetensorError():  # it wraps the errors of the operating system
            return f"{error}; check the disk and run it again", 1
        case MemoryError():
            return "out of memory", 1
        case ModuleNotFoundError(name=str(name)):
            return (
                f"{name} is not installed, which this command needs: "
                "pip install '.[cloud,export]' in Pocketune's folder"
            ), 1
        case _:  # a defect of ours: still one line, and how to see more
            what = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            return f"unexpected {what} (POCKETUNE_DEBUG=1 shows where)", 1


def _os_error(error: OSError) -> str:
    place = f"{error.filename}: " if error.filename else ""
    if error.errno == errno.ENOSPC:
        return f"{place}no space left on the disk; free some and run it again"
    return f"{place}{error.strerror or error}"


def _read_config(context: click.Context, _: click.Parameter, path: Path | None) -> None:
    """Make a TOML file's tables the defaults of the commands they are named after."""
    if path is None:
        return
    try:
        settings = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {error}") from None
    group = cast("click.Group", context.command)
    problems = _unknown_settings(group, settings, "")
    if problems:
        raise InputError(f"{path}: {'; '.join(problems)}")
    context.default_map = settings


def _unknown_settings(group: click.Group, table: dict[str, Any], prefix: str) -> list[str]:
    problems: list[str] = []
    for name, value in table.items():
        command = group.commands.get(name)
        if command is None or not isinstance(value, dict):
            problems.append(f"[{prefix}{name}] is no command")
        elif isinstance(command, click.Group):
            problems += _unknown_settings(command, value, f"{prefix}{name}.")
        else:
            known = {parameter.name for parameter in command.params}
            problems += [f"{prefix}{name}.{key} is no option" for key in value if key not in known]
    return problems


@click.group(cls=Cli, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="pocketune")
@click.option(
    "--config", type=click.Path(path_type=Path), callback=_read_config, is_eager=True,
    expose_value=False, help="TOML file with a table of defaults for each command.",
)  # fmt: skip
def main() -> None:
    """Personal language models on the user's phone: augment, train, export, prove.

    \b
    The whole way at once:
      pocketune demo --out build/demo
      pocketune personalize items.jsonl --base path/to/model --out work
    """


@main.command("personalize")
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--base", required=True, help="Base model: a Hugging Face directory or hub id.")
@click.option("--out", required=True, type=DIRECTORY, help="Folder for all artifacts.")
@click.option(
    "--recipe", default=DEFAULT_RECIPE, show_default=True, help="See `pocketune recipes`."
)
@click.option("--context-length", type=click.IntRange(min=1), help="Positions of the KV cache.")
@click.option("--base-bundle", type=DIRECTORY, help="Where the BaseBundle is, or goes.")
@click.option("--merged", is_flag=True, help="Export a merged program too, to compare with.")
@click.option(
    "--shipped/--float",
    default=False,
    show_default=True,
    help="Train over the weights that the phone holds, or over the base's own.",
)
@click.option("--cache/--no-cache", default=True, show_default=True, help="See export base.")
@cloud_cli.profile_options
@cloud_cli.augment_options
@cloud_cli.train_options
@cloud_cli.seed_option
@cloud_cli.threads_option
@cloud_cli.json_option
def personalize_command(source: Path, as_json: bool, **given: Any) -> None:
    """From one user's items to a verified package for their phone.

    SOURCE is a LaMP questions file or JSONL. Interrupted, it goes on where it was; a stage whose
    inputs have not changed is skipped.

    \b
    Example:
      pocketune personalize items.jsonl --prompt "Write a subject for this mail: {input}" \\
          --base path/to/model --teacher "openai:http://localhost:8000/v1#my-model" --out work
    """
    result = personalize(source, **given)
    click.echo(json.dumps(result.to_json()) if as_json else summary(result))
    result.require_parity()


@main.command("demo")
@click.option("--out", default=Path("build/demo"), type=DIRECTORY, help="Folder for all artifacts.")
@cloud_cli.threads_option
@cloud_cli.json_option
def demo_command(out: Path, threads: int, as_json: bool) -> None:
    """The main job on the bundled models, for one bundled user; needs no network.

    It is `personalize` with these arguments, and it must help the user measurably.

    \b
    Example:
      pocketune demo --out build/demo
    """
    users = POCKET / "users" / "LaMP_4"
    first = read_json(users / "dev_questions.json")[0]["user_id"]
    arguments = [
        str(users / "dev_questions.json"), "--outputs", str(users / "dev_outputs.json"),
        "--user", first, "--base", str(POCKET / "models" / "base"), "--teacher", "pocket",
        "--out", str(out), "--threads", str(threads), "--merged", *POCKET_ARGUMENTS,
    ]  # fmt: skip
    given = personalize_command.make_context("demo", arguments).params
    result = personalize(**{name: value for name, value in given.items() if name != "as_json"})
    click.echo(json.dumps(result.to_json()) if as_json else summary(result))
    result.require_parity()
    result.require_gain()


@dataclass
class Result:
    """What `personalize` made and saw; everything that the summary says.

    held_out: scores of the answers that the runtime gave to questions the adapter never saw; None
    without such questions.
    """

    out: Path
    profile: Artifact
    dataset: Artifact
    adapter: Artifact
    base_bundle: Artifact
    adapter_bundle: Artifact
    merged_bundle: Artifact | None
    parity: ParityResult
    held_out: HeldOut | None

    def to_json(self) -> dict[str, Any]:
        """For scripts: ids, sizes, measurements and verdicts."""
        artifacts = {
            name: {"path": str(a.path), "id": a.id, "measured": a.manifest.measured}
            for name in ("profile", "dataset", "adapter", "base_bundle", "adapter_bundle")
            for a in [getattr(self, name)]
        }
        gates = [asdict(gate) for gate in self.parity.gates]
        parity = {"passed": self.parity.passed, "gates": gates}
        held_out = asdict(self.held_out) if self.held_out else None
        return {"artifacts": artifacts, "parity": parity, "held_out": held_out}

    def require_parity(self) -> None:
        """Raise GateError unless the phone would answer as trained."""
        from mobile_runtime.parity import require

        require(self.parity)

    def require_gain(self) -> None:
        """Raise GateError unless personalization helped on the held-out questions."""
        asked = self.held_out.questions if self.held_out else 0
        if self.held_out is None or self.held_out.gain_low is None:
            raise GateError(f"{asked} held-out questions are too few to tell whether it helped")
        if self.held_out.gain_low <= 0:
            raise GateError(
                "personalization did not measurably help: the 95% interval of the gain on held-out "
                f"questions begins at {self.held_out.gain_low:+.3f}, expected above 0"
            )


@dataclass(frozen=True)
class HeldOut:
    """Answers of the runtime to held-out questions, base alone against base and adapter.

    score: what is measured, higher is better. gain_low, gain_high: 95% interval of the mean gain a
    question, None of fewer than six. example: one question with both answers and the user's own.
    """

    questions: int
    score: str
    before: float
    after: float
    gain_low: float | None
    gain_high: float | None
    example: dict[str, str]


def personalize(
    source: Path,
    *,
    out: Path,
    base: str,
    recipe: str,
    threads: int,
    context_length: int | None,
    base_bundle: Path | None,
    merged: bool,
    shipped: bool,
    cache: bool,
    **given: Any,
) -> Result:
    """The main job, stage by stage; each stage is skipped if its result is there already."""
    from cloud.augment import AugmentConfig, augment
    from cloud.train import TrainConfig, train
    from export.adapter import export_adapter
    from export.base import check_export, export_base
    from export.lowerings import default_cache
    from export.merged import export_merged
    from export.prompts import read_prompts
    from mobile_runtime.parity import parity
    from protos.base_model import open_base

    model, training = open_base(base), cloud_cli.pick(TrainConfig, given)
    check_export(model, recipe, training.rank, context_length)  # before a teacher is paid
    teachers = cloud_cli.open_teachers(threads, **given)
    lowerings = default_cache() if cache else None
    augmenting = cloud_cli.pick(AugmentConfig, given)
    profile = cloud_cli.import_profile(source, out / "profile", **given)
    with shown("augment") as progress:
        dataset = augment(
            profile, teachers.writer, out / "dataset", augmenting, progress, teachers.judge,
            teachers.calls,
        )  # fmt: skip
    cloud_cli.warn(dataset)
    with shown("export base") as progress:
        lowered = export_base(
            base, base_bundle or out / "base-bundle", recipe, rank=training.rank,
            context_length=context_length, threads=threads, cache=lowerings, progress=progress,
        )  # fmt: skip
    over = lowered if shipped else None
    with shown("train") as progress:
        adapter = train(dataset, model, out / "adapter", training, threads, progress, shipped=over)
    prompts = read_prompts(dataset.path)
    with shown("export adapter") as progress:
        bundle = export_adapter(
            adapter.path, lowered.path, out / "adapter-bundle", base=base, prompts=prompts,
            threads=threads, progress=progress,
        )  # fmt: skip
    whole = None
    if merged:
        with shown("export merged") as progress:
            whole = export_merged(
                adapter.path, out / "merged-bundle", recipe, base=base, prompts=prompts,
                context_length=context_length, threads=threads, cache=lowerings,
                progress=progress,
            )  # fmt: skip
    with shown("parity") as progress:
        _, verdict = parity(lowered.path, bundle.path, out / "parity", threads, progress)
    with shown("held out") as progress:
        held_out = answer_held_out(profile, lowered.path, bundle.path, threads, progress)
    return Result(out, profile, dataset, adapter, lowered, bundle, whole, verdict, held_out)


def answer_held_out(
    profile: Artifact, base: Path, adapter: Path, threads: int, progress: Progress
) -> HeldOut | None:
    """Let the runtime answer the profile's held-out questions without and with the adapter."""
    from cloud.evaluation.statistics import gain
    from cloud.metrics import item_scores, score_name
    from cloud.profiles import read_profile
    from mobile_runtime.engine import open_engine
    from mobile_runtime.generate import Sampling, complete
    from mobile_runtime.prompt import open_prompt

    user = read_profile(profile)
    asked = [(q.query, q.output) for q in user.questions if q.output is not None]
    if not asked:
        return None
    engine, prompt = open_engine(base, None, threads), open_prompt(base)
    sampling = Sampling()
    if labels := user.task.answer_labels:  # however long they are
        sampling = Sampling(choices=labels, max_new_tokens=engine.context_length)
    answers: list[list[str]] = []
    for round_, bundle in enumerate((None, adapter)):
        engine.set_adapter(bundle)
        answers.append([])
        for number, (query, _) in enumerate(asked, 1):
            ids = prompt.encode(query)
            answers[-1].append(complete(engine, prompt, ids, sampling)[0])
            progress(f"{number} of {len(asked)} answers", (round_ + number / len(asked)) / 2)
    golds = [gold for _, gold in asked]
    before, after = (item_scores(user.task, said, golds) for said in answers)
    gained = gain(after, before)
    example = {"asked": asked[0][0], "before": answers[0][0], "after": answers[1][0]}
    return HeldOut(
        len(asked), score_name(user.task), sum(before) / len(asked), sum(after) / len(asked),
        gained.low, gained.high, {**example, "user": golds[0]},
    )  # fmt: skip


def on_device(base: str, out: Path, rank: int, context: int, threads: int) -> Device:
    """What times answers by the phone's runtime, for `eval`; the base is lowered once, into `out`.

    Questions that do not fit are left out, and one answer is not timed, to warm up.
    """
    from export.adapter import export_adapter
    from export.base import export_base
    from export.lowerings import default_cache
    from mobile_runtime.engine import open_engine
    from mobile_runtime.generate import Sampling, complete
    from mobile_runtime.prompt import open_prompt

    def milliseconds(adapter: Artifact | None, queries: Sequence[str], room: int) -> float:
        lowered = export_base(
            base, out / "base-bundle", DEFAULT_RECIPE, rank=rank, context_length=context,
            threads=threads, cache=default_cache(),
        )  # fmt: skip
        bundle = None
        if adapter:
            bundle = export_adapter(
                adapter.path, lowered.path, out / adapter.id[:16], base=base, goldens=False,
                threads=threads,
            )  # fmt: skip
        engine = open_engine(lowered.path, bundle.path if bundle else None, threads)
        prompt = open_prompt(lowered.path)
        whole = [prompt.encode(query) for query in queries]
        fitting = [ids for ids in whole if len(ids) + room <= context]
        if not fitting:
            raise InputError(f"no question fits a context of {context} tokens; leave out --device")
        for ids in fitting[:1]:
            complete(engine, prompt, ids, Sampling(max_new_tokens=room))
        started = time.perf_counter()
        for ids in fitting:
            complete(engine, prompt, ids, Sampling(max_new_tokens=room))
        return 1000 * (time.perf_counter() - started) / len(fitting)

    return milliseconds


def summary(result: Result) -> str:
    """What happened, for people."""
    data, trained = result.dataset.manifest.measured, result.adapter.manifest.measured
    rejected = ", ".join(f"{name} {count}" for name, count in data["rejected"].items() if count)
    lines = [
        *([("Warning", data["warning"])] if data.get("warning") else []),
        ("Augmented", f"{data['real']} real items and {data['synthetic']} synthetic ones"),
        ("", f"{data['wanted']} wanted, {data['asked']} asked; rejected: {rejected or 'none'}"),
        ("Trained", f"validation loss {trained['valid_loss_before']:.3f} before, "
                    f"{trained['valid_loss_after']:.3f} after (epoch {trained['best_epoch']} of "
                    f"{trained['epochs']}, {trained['seconds']:.0f} s)"),
        *_held_out_lines(result.held_out),
        *_phone_lines(result),
        *_parity_lines(result.parity),
        ("Artifacts", str(result.out)),
    ]  # fmt: skip
    head = f"{result.profile.config['task']['name']} for user {result.profile.config['user']}"
    return "\n".join(["", head, ""] + [f"{name:<10} {text}" for name, text in lines])


def _held_out_lines(held_out: HeldOut | None) -> list[tuple[str, str]]:
    if held_out is None:
        return []
    rows = [("Answer" if name == "asked" else "", f"{name:<7} {_short(text)}")
            for name, text in held_out.example.items()]  # fmt: skip
    interval = "too few questions for an interval"
    if held_out.gain_low is not None:
        interval = f"95% interval {held_out.gain_low:+.3f} to {held_out.gain_high:+.3f}"
    numbers = (
        f"{held_out.score} {held_out.before:.3f} before, {held_out.after:.3f} after: "
        f"{held_out.after - held_out.before:+.3f} ({interval})"
    )
    return [*rows, ("Held out", f"{held_out.questions} questions, answered by the runtime"),
            ("", numbers)]  # fmt: skip


def _phone_lines(result: Result) -> list[tuple[str, str]]:
    base, own = result.base_bundle.manifest.measured, result.adapter_bundle.manifest.measured
    rows = [
        ("Phone", f"base, once: {base['wire_bytes'] / 1e6:.2f} MB, {_lowered(base)}"),
        ("", f"adapter, per user: {own['wire_bytes'] / 1e6:.2f} MB, "
             f"written in {own['adapter_seconds']:.3f} s"),
    ]  # fmt: skip
    if result.merged_bundle:
        whole = result.merged_bundle.manifest.measured
        rows.append(("", f"(merged it would be {whole['wire_bytes'] / 1e6:.2f} MB per user, "
                         f"{_lowered(whole)})"))  # fmt: skip
    return rows


def _lowered(measured: Mapping[str, Any]) -> str:
    seconds = f"{measured['lowering_seconds']:.1f} s"
    copied = measured.get("lowering_cache") == "copied"
    return f"copied from an earlier lowering in {seconds}" if copied else f"lowered in {seconds}"


def _parity_lines(parity: ParityResult) -> list[tuple[str, str]]:
    failed = [gate for gate in parity.gates if not gate.passed]
    verdict = "sound" if parity.passed else f"FAILED at {parity.stage_at_fault}"
    rows = [("Parity", f"{verdict}: {len(parity.gates) - len(failed)} of {len(parity.gates)} gates "
                       f"over {parity.positions} positions")]  # fmt: skip
    on = parity.lowering.get("on")
    if on and parity.effect:
        rows.append(("", f"top-1 {on.top1:.2%}, KL {on.kl_mean:.1e} nats to the same weights in "
                         f"PyTorch; adapter effect cosine {parity.effect.cosine:.4f}"))  # fmt: skip
    return rows + [("", f"FAILED {gate.name}: {gate.explanation}") for gate in failed]


def _short(text: str, most: int = 150) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= most else f"{flat[: most - 1]}…"


def _service_stages() -> Tools:
    """What the service's jobs need from outside of `cloud`; these run in child processes."""
    from cloud.service.stages.site import Tools

    return Tools(service_check_export, service_export_base, service_export_adapter, service_parity)


def service_check_export(
    base: str, recipe: str, rank: int, context: int | None, threads: int, progress: Progress
) -> None:
    """Say for the service what could not be lowered."""
    from export.base import check_export
    from protos.base_model import open_base

    check_export(open_base(base), recipe, rank, context)


def service_export_base(
    base: str, recipe: str, rank: int, context: int | None, out: str, threads: int,
    progress: Progress,
) -> None:  # fmt: skip
    """Lower a base model for the service."""
    from export.base import export_base
    from export.lowerings import default_cache

    export_base(
        base, Path(out), recipe, rank=rank, context_length=context, threads=threads,
        cache=default_cache(), progress=progress,
    )  # fmt: skip


def service_export_adapter(
    adapter: str, bundle: str, base: str, dataset: str | None, out: str, threads: int,
    progress: Progress,
) -> None:  # fmt: skip
    """Package an adapter for the service."""
    from export.adapter import export_adapter
    from export.prompts import read_prompts

    prompts = read_prompts(Path(dataset)) if dataset else ()
    export_adapter(
        Path(adapter), Path(bundle), Path(out), base=base, prompts=prompts, threads=threads,
        progress=progress,
    )  # fmt: skip


def service_parity(bundle: str, adapter: str, out: str, threads: int, progress: Progress) -> None:
    """Measure parity for the service; the report says whether it passed.

    What the runtime joins of base and adapter holds the user's weights: it stays beside `out`, in
    the job's folder, and is removed with the job at the latest. TVM's libraries hold no weights and
    are kept for all jobs.
    """
    from mobile_runtime.engine import engine_name
    from mobile_runtime.parity import parity

    lowered, own = Path(bundle), Path(adapter)
    with tempfile.TemporaryDirectory(dir=Path(out).parent) as scratch:
        cache = None if engine_name(lowered, own) == "mlc-tvm" else Path(scratch)
        parity(lowered, own, Path(out), threads, progress, cache)


for _command in (
    cloud_cli.profile,
    cloud_cli.augment_command,
    cloud_cli.train_command,
    task_cli.task,
    evaluation_cli.command(on_device),
    export_cli.export,
    export_cli.recipes,
    runtime_cli.parity,
    runtime_cli.run,
    *service_cli.commands(_service_stages),
):
    main.add_command(_command)

if __name__ == "__main__":
    main()
