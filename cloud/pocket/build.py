"""Build everything the pocket world ships: tokenizer, base, teacher, bundled users.

    python -m cloud.pocket.build --out build/pocket [--minutes 55] [--resume] [STAGE]...

Seeded, offline. In: nothing but this package. Out: in the folder given, never over the bundled ones
by itself, `models/base` and `models/teacher` in Hugging Face's format and bfloat16, and `users/`.
Training stops after `--minutes` and goes on with `--resume`, any number of times; the models are
the same. docs/pocket.md says how long it takes. Floating point sums depend on the machine: expect
equal quality elsewhere, not equal bytes.
"""

import functools
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from cloud.pocket.world import TEST_USERS, WORLDS, lamp_files, sample_user
from protos.errors import InputError

STAGES = ("tokenizer", "base", "teacher", "users")
SEED = 1
TRAIT_WEIGHT = 0.5
HARD_SHARE = 0.5  # of the teacher's later rows
PROFILE_COUNT, QUESTION_COUNT = 12, 30
USERS = (TEST_USERS[0], TEST_USERS[1])  # the bundled user is the first of all test users
USER_TASKS = ("LaMP_3", "LaMP_4")  # a rating and a generation task; `eval` writes any others
USERS_COMMAND = "python -m cloud.pocket.build users --out cloud/pocket"


@dataclass(frozen=True)
class Model:
    """A Llama's shape and its training. Heads are 64 wide; two queries share a key.

    long_rows, long_length: of the last tenth of the steps. hard_from: the step from which half of
    the rows are of the hard tasks. weight_decay: of the matrices; with less of it the base's inner
    values grow fivefold, and float32's and 4 bits' rounding with them. smoothing: of the labels;
    without it, sure tokens drive the logits up, and ties between equally good ones turn with the
    last bit of an activation in 8 bits. attention: transformers'
    name of the kernel to train with; in bfloat16 PyTorch's own goes back over rows of 100 tokens
    six times as slowly as plain products do.
    """

    layers: int
    context: int
    steps: int
    rows: int
    length: int = 0
    long_rows: int = 0
    long_length: int = 0
    hard_from: int = 0
    muon_lr: float = 6e-3
    adam_lr: float = 3e-3
    weight_decay: float = 0.05
    smoothing: float = 0.0
    attention: str = "sdpa"


@dataclass(frozen=True)
class Plan:
    """What is built. vocabulary: tokens, of a corpus of `corpus` users."""

    vocabulary: int
    corpus: int
    hidden: int
    base: Model
    teacher: Model


PLAN = Plan(
    vocabulary=3072,
    corpus=4000,
    hidden=256,
    base=Model(
        layers=5, context=512, steps=2400, rows=64, muon_lr=4e-3, weight_decay=0.15, smoothing=0.02,
        attention="eager",
    ),
    teacher=Model(
        layers=10, context=2048, steps=2100, rows=16, length=512, long_rows=4, long_length=2048,
        hard_from=1400, muon_lr=4e-3, adam_lr=2e-3,
    ),
)  # fmt: skip
Pause = Callable[[int], bool]


def build_tokenizer(plan: Plan, out: Path) -> None:
    """Write the shared tokenizer in the form of the base and of the teacher."""
    from cloud.pocket.tokenizer import save_tokenizer, train_tokenizer

    tokenizer = train_tokenizer(plan.vocabulary, plan.corpus)
    save_tokenizer(tokenizer, out / "models" / "base", chat=True)
    save_tokenizer(tokenizer, out / "models" / "teacher", chat=False)


def build_base(plan: Plan, out: Path, pause: Pause) -> bool:
    """Train the phone's model: the average user, one query at a time. Returns whether it ended."""
    from cloud.pocket.batches import base_batch
    from cloud.pocket.training import Schedule, train

    directory, own = out / "models" / "base", plan.base
    tokenizer = _tokenizer(directory)
    model = new_model(plan, own, len(tokenizer))
    batch_of = functools.partial(base_batch, tokenizer, own.rows, f"pocket base {SEED}")
    schedule = Schedule(own.steps, own.muon_lr, own.adam_lr, own.weight_decay, own.smoothing)
    run = train(model, batch_of, schedule, _checkpoint(out, "base"), pause=pause)
    click.echo(f"base: {run.step} of {own.steps} steps, {run.speed:.0f} tokens/s")
    return _finish(model, directory, _checkpoint(out, "base"), run.step == own.steps)


def build_teacher(plan: Plan, out: Path, pause: Pause) -> bool:
    """Train the cloud's model: many items of one user at a time. Returns whether it ended.

    It starts as the base with fresh layers in between, which leave its first outputs unchanged:
    the words of the world are then known, and the steps go into reading the user from the context.
    """
    from cloud.pocket.batches import teacher_batch
    from cloud.pocket.training import Batch, Schedule, TraitHeads, train

    directory, own = out / "models" / "teacher", plan.teacher
    tokenizer = _tokenizer(directory)
    model = new_model(plan, own, len(tokenizer))
    _copy_base(out / "models" / "base", model)
    heads = TraitHeads(plan.hidden, _trait_classes())

    def batch_of(step: int) -> Batch:
        is_long = step >= own.steps * 0.9
        rows, length = (own.long_rows, own.long_length) if is_long else (own.rows, own.length)
        hard = HARD_SHARE if step >= own.hard_from else 0.0
        return teacher_batch(tokenizer, rows, length, f"pocket teacher {SEED}", step, hard)

    schedule = Schedule(
        own.steps, own.muon_lr, own.adam_lr, own.weight_decay, own.smoothing, TRAIT_WEIGHT
    )
    run = train(model, batch_of, schedule, _checkpoint(out, "teacher"), heads, pause)
    click.echo(f"teacher: {run.step} of {own.steps} steps, {run.speed:.0f} tokens/s")
    return _finish(model, directory, _checkpoint(out, "teacher"), run.step == own.steps)


def _copy_base(directory: Path, model: Any) -> None:
    """Put the base's weights into `model`; layers the base does not have start as identities."""
    import torch
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(str(directory), dtype=torch.float32)
    model.model.embed_tokens.load_state_dict(base.model.embed_tokens.state_dict())
    model.model.norm.load_state_dict(base.model.norm.state_dict())
    layers, known = model.model.layers, base.model.layers
    for layer in layers:
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    for number, old in enumerate(known):
        layers[number * len(layers) // len(known)].load_state_dict(old.state_dict())


def _checkpoint(out: Path, name: str) -> Path:
    return out / f"{name}.checkpoint"


def _finish(model: Any, directory: Path, checkpoint: Path, has_ended: bool) -> bool:
    """Write what was trained in bfloat16, with its config; then the checkpoint can go."""
    import torch

    if has_ended:
        model.cpu().to(torch.bfloat16).save_pretrained(str(directory))
        checkpoint.unlink()
    return has_ended


def build_users(out: Path) -> None:
    """Write the bundled users in LaMP's shape: two for each of two tasks, in one pair of files."""
    for name in USER_TASKS:
        questions: list[dict[str, Any]] = []
        golds: list[dict[str, str]] = []
        for number in USERS:
            files = lamp_files(sample_user(name, number), PROFILE_COUNT, QUESTION_COUNT)
            questions += files[0]
            golds += files[1]["golds"]
        directory = out / "users" / name
        directory.mkdir(parents=True, exist_ok=True)
        _write_json(directory / "dev_questions.json", questions)
        _write_json(directory / "dev_outputs.json", {"task": name, "golds": golds})


def _tokenizer(directory: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(directory))


def new_model(plan: Plan, own: Model, vocabulary: int) -> Any:
    """A fresh Llama with tied embeddings."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(SEED)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=plan.hidden,
            num_hidden_layers=own.layers,
            intermediate_size=2 * plan.hidden,
            num_attention_heads=plan.hidden // 64,
            num_key_value_heads=plan.hidden // 128,
            head_dim=64,
            max_position_embeddings=own.context,
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )
    model.set_attn_implementation(own.attention)
    return model


def _trait_classes() -> list[int]:
    """Classes of each trait head, counted over many train users."""
    classes: list[int] = []
    for name, world in WORLDS.items():
        rows = [world.labels(sample_user(name, number).traits) for number in range(1000)]
        classes += [max(column) + 1 for column in zip(*rows, strict=True)]
    return classes


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def build(plan: Plan, out: Path, stages: tuple[str, ...], resume: bool, pause: Pause) -> bool:
    """Run stages in order; with `resume`, those that are done are left as they are.

    Returns whether all are done. An unfinished one ends the run.

    Raises:
        InputError: a model is there, done or half done, and `resume` is false.
    """
    for stage in stages:
        if stage == "users":
            build_users(out)
        elif _is_to_do(out, stage, resume):
            if stage == "tokenizer":
                build_tokenizer(plan, out)
            elif not (build_base if stage == "base" else build_teacher)(plan, out, pause):
                return False
    return True


def _is_to_do(out: Path, stage: str, resume: bool) -> bool:
    name = "base" if stage == "tokenizer" else stage
    result = "tokenizer.json" if stage == "tokenizer" else "model.safetensors"
    finished, begun = out / "models" / name / result, _checkpoint(out, stage)
    for path in (finished, begun):
        if path.exists() and not resume:
            raise InputError(f"{path}: already there; give --resume to go on, or another --out")
    return begun.exists() or not finished.exists()


@click.command()
@click.argument("stages", nargs=-1, type=click.Choice(STAGES))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write to.")
@click.option("--minutes", type=float, default=math.inf, help="Stop training after so many.")
@click.option("--resume", is_flag=True, help="Go on with what is in the folder.")
def main(stages: tuple[str, ...], out: Path, minutes: float, resume: bool) -> None:
    """Build the pocket models and users: all STAGES, or those named."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # no spinning where others work too
    end = time.monotonic() + 60 * minutes
    try:
        done = build(PLAN, out, stages or STAGES, resume, lambda _: time.monotonic() > end)
    except InputError as error:
        raise click.ClickException(str(error)) from None
    click.echo("all done" if done else "not done yet: the same command with --resume goes on")


if __name__ == "__main__":
    main()
