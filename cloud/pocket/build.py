"""Build everything the pocket world ships: tokenizer, base, teacher, bundled users.

    python -m cloud.pocket.build [tokenizer|base|teacher|users]... [--out cloud/pocket]

Seeded, offline, on a CPU. In: nothing but this package. Out: `models/base` (2.9M parameters),
`models/teacher` (4.1M), both in Hugging Face's format and bfloat16, and `users/`.

What was seen on two cores of a Xeon with AMX, with other jobs on them at the same time: the base
took 700 steps and 13 min at 2,374 tokens/s, the teacher 380 steps and 17 min at 2,621 tokens/s (512
tokens a row) and 1,034 (1,024 a row). With little else running, the base went at 5,460 tokens/s.
Floating point sums depend on the machine: expect equal quality elsewhere, not equal bytes.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

import click

from cloud.pocket.world import BUNDLED, TEST_USERS, WORLDS, lamp_files, sample_user

HERE = Path(__file__).parent
STAGES = ("tokenizer", "base", "teacher", "users")
SEED = 1
BASE_STEPS, BASE_ROWS = 700, 48
BASE_LAYERS, TEACHER_LAYERS = 4, 6
BASE_IN_TEACHER = (0, 1, 3, 5)  # which of the teacher's layers begin as the base's
# (steps, rows, tokens a row, learning rate of matrices, of the rest)
TEACHER_PHASES = ((340, 12, 512, 4e-3, 2e-3), (40, 6, 1024, 8e-4, 4e-4))
TRAIT_WEIGHT = 0.5
BASE_CONTEXT, TEACHER_CONTEXT = 512, 1024
PROFILE_COUNT, QUESTION_COUNT = 12, 30
USERS = (TEST_USERS[0], TEST_USERS[1])  # the bundled user is the first of all test users
USERS_COMMAND = "python -m cloud.pocket.build users"


def build_tokenizer(out: Path) -> None:
    """Write the shared tokenizer in the form of the base and of the teacher."""
    from cloud.pocket.tokenizer import save_tokenizer, train_tokenizer

    tokenizer = train_tokenizer()
    save_tokenizer(tokenizer, out / "models" / "base", chat=True)
    save_tokenizer(tokenizer, out / "models" / "teacher", chat=False)


def build_base(out: Path) -> None:
    """Train the phone's model: the average user, one query at a time."""
    from cloud.pocket.batches import base_batches
    from cloud.pocket.training import Schedule, train

    directory = out / "models" / "base"
    tokenizer = _tokenizer(directory)
    model = _new_model(len(tokenizer), BASE_LAYERS, BASE_CONTEXT)
    batches = base_batches(tokenizer, BASE_ROWS, f"pocket base {SEED}")
    speed = train(model, batches, Schedule(BASE_STEPS), save=lambda m: _save(m, directory))
    click.echo(f"base: {model.num_parameters()} parameters, {speed:.0f} tokens/s")
    _save(model, directory)


def build_teacher(out: Path) -> None:
    """Train the cloud's model: many items of one user at a time, in few-shot form.

    It starts as the base with fresh layers in between, which leave its first outputs unchanged:
    the words of the world are then known, and the steps go into reading the user from the context.
    """
    from cloud.pocket.batches import teacher_batches
    from cloud.pocket.training import Schedule, TraitHeads, train

    directory = out / "models" / "teacher"
    tokenizer = _tokenizer(directory)
    model = _new_model(len(tokenizer), TEACHER_LAYERS, TEACHER_CONTEXT)
    _copy_base(out / "models" / "base", model)
    heads = TraitHeads(model.config.hidden_size, _trait_classes())
    for phase, (steps, rows, length, muon_lr, adam_lr) in enumerate(TEACHER_PHASES):
        seed = f"pocket teacher {SEED} {phase}"
        batches = teacher_batches(tokenizer, rows, length, seed)
        schedule = Schedule(steps, muon_lr, adam_lr, TRAIT_WEIGHT)
        speed = train(model, batches, schedule, heads, save=lambda m: _save(m, directory))
        click.echo(f"teacher: {model.num_parameters()} parameters, {speed:.0f} tokens/s")
        _save(model, directory)


def _copy_base(directory: Path, model: Any) -> None:
    """Put the base's weights into `model`; layers the base does not have start as identities."""
    import torch
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(str(directory), dtype=torch.float32)
    model.model.embed_tokens.load_state_dict(base.model.embed_tokens.state_dict())
    model.model.norm.load_state_dict(base.model.norm.state_dict())
    for layer in model.model.layers:
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    for old, place in zip(base.model.layers, BASE_IN_TEACHER, strict=True):
        model.model.layers[place].load_state_dict(old.state_dict())


def build_users(out: Path) -> None:
    """Write the bundled users in LaMP's shape: two users for each task, in one pair of files."""
    for name in BUNDLED:
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


def _new_model(vocabulary: int, layers: int, context: int) -> Any:
    """A fresh Llama, 256 wide, with tied embeddings, grouped queries and heads of 32."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(SEED)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=256,
            num_hidden_layers=layers,
            intermediate_size=512,
            num_attention_heads=8,
            num_key_value_heads=4,
            head_dim=32,
            max_position_embeddings=context,
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )


def _trait_classes() -> list[int]:
    """Classes of each trait head, counted over many train users."""
    classes: list[int] = []
    for name, world in WORLDS.items():
        rows = [world.labels(sample_user(name, number).traits) for number in range(1000)]
        classes += [max(column) + 1 for column in zip(*rows, strict=True)]
    return classes


def _save(model: Any, directory: Path) -> None:
    """Write bfloat16 weights, config and a greedy generation config."""
    import copy

    import torch

    halved = copy.deepcopy(model).to(torch.bfloat16)
    halved.save_pretrained(str(directory))


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    """Run the stages named on the command line, or all."""
    parser = argparse.ArgumentParser(description="Build the pocket models and users.")
    parser.add_argument("stages", nargs="*", choices=[*STAGES, []], default=list(STAGES))
    parser.add_argument("--out", type=Path, default=HERE)
    options = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # no spinning where others work too
    for stage in options.stages or STAGES:
        globals()[f"build_{stage}"](options.out)


if __name__ == "__main__":
    main()
