"""Measure what the pocket models are worth, on development or on test users.

    python -m cloud.pocket.measure [--split dev|test] [--task LaMP_4] [--users N]

For each user: the base alone, the teacher in context, a LoRA on the real items, a LoRA on real and
teacher-made items, and another user's LoRA, all on the same held-out items. Out: one line a user,
then means with 95% bootstrap intervals of the gain over the base.
"""

import argparse
import random
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from cloud.pocket.world import BUNDLED, DEV_USERS, TEST_USERS, User, sample_items, sample_user
from cloud.tasks import TASKS

Item = dict[str, str]
REAL, HELD_OUT, CANDIDATES, SHOTS = 12, 30, 60, 8
MODELS = Path(__file__).parent / "models"
ARMS = ("base", "teacher", "real", "mixed", "other")


@dataclass(frozen=True)
class Recipe:
    """How an adapter is trained here: r=8, alpha=16, all seven projections."""

    lr: float = 2e-3
    epochs: int = 12
    batch: int = 8
    synthetic: int = 36
    temperature: float = 0.8
    top_p: float = 0.95


@dataclass
class Models:
    """Both models with their tokenizers."""

    base: Any
    base_tokenizer: Any
    teacher: Any
    teacher_tokenizer: Any
    recipe: Recipe = field(default_factory=Recipe)


def load_models(directory: Path = MODELS, recipe: Recipe | None = None) -> Models:
    """Both models in float32, from their directories alone."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    parts: list[Any] = []
    for name in ("base", "teacher"):
        path = str(directory / name)
        parts.append(AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval())
        parts.append(AutoTokenizer.from_pretrained(path))
    return Models(*parts, recipe=recipe or Recipe())


def continuations(
    model: Any, tokenizer: Any, prompts: Sequence[str], new_tokens: int, **sampling: Any
) -> list[str]:
    """What the model writes after each prompt; greedy unless `sampling` says otherwise."""
    import torch

    tokenizer.padding_side = "left"
    inputs = tokenizer(list(prompts), return_tensors="pt", padding=True)
    inputs.pop("token_type_ids", None)
    options: dict[str, Any] = {"do_sample": False, **sampling}
    with torch.no_grad():
        output = model.generate(**inputs, max_new_tokens=new_tokens, **options)
    made = output[:, inputs["input_ids"].shape[1] :]
    return tokenizer.batch_decode(made, skip_special_tokens=True)


def ask_base(models: Models, model: Any, task: str, texts: Sequence[str]) -> list[str]:
    """The phone's greedy answers to each text's query, with or without an adapter in `model`."""
    prompts = [_prompt(models.base_tokenizer, task, text) for text in texts]
    return [line.strip() for line in continuations(model, models.base_tokenizer, prompts, 24)]


def _prompt(tokenizer: Any, task: str, text: str) -> str:
    question = {"role": "user", "content": TASKS[task].query(text)}
    return tokenizer.apply_chat_template([question], add_generation_prompt=True, tokenize=False)


def ask_teacher(
    models: Models, task: str, items: Sequence[Item], texts: Sequence[str]
) -> list[str]:
    """The teacher's greedy outputs for each text, with the user's items in context."""
    history = "".join(TASKS[task].shot(item["input"], item["output"]) for item in items)
    prompts = [history + TASKS[task].shot(text, "").rstrip() for text in texts]
    lines = continuations(models.teacher, models.teacher_tokenizer, prompts, 24)
    return [line.split("\n")[0].strip() for line in lines]


def sample_teacher(
    models: Models, task: str, items: Sequence[Item], count: int, seed: int
) -> list[Item]:
    """Up to `count` distinct new items in the user's style, without unparsable and copied ones."""
    import torch

    torch.manual_seed(seed)
    rng = random.Random(seed)
    start = TASKS[task].shot("", "").split(":")[0] + ":"
    prompts: list[str] = []
    for _ in range(count):
        shots = rng.sample(list(items), min(SHOTS, len(items)))
        prompts.append("".join(TASKS[task].shot(i["input"], i["output"]) for i in shots) + start)
    options = {
        "do_sample": True,
        "temperature": models.recipe.temperature,
        "top_p": models.recipe.top_p,
        "top_k": 0,
    }
    texts = continuations(models.teacher, models.teacher_tokenizer, prompts, 64, **options)
    seen = {item["input"] for item in items}
    made: list[Item] = []
    for item in (parse_shot(task, start + text) for text in texts):
        if item is not None and item["input"] not in seen:
            seen.add(item["input"])
            made.append(item)
    return made


def parse_shot(task: str, text: str) -> Item | None:
    """The first whole shot in `text`, or None where its form or its label is wrong."""
    pattern = re.escape(TASKS[task].shot("\0", "\1"))
    pattern = pattern.replace("\0", "([^\n]+)").replace("\1", "([^\n]+)")
    match = re.match(pattern, text)
    if match is None:
        return None
    made = {"input": match[1].strip(), "output": match[2].strip()}
    labels = TASKS[task].labels
    return made if made["input"] and (not labels or made["output"] in labels) else None


def train_lora(models: Models, task: str, items: Sequence[Item], seed: int = 0) -> Any:
    """A PEFT model: the base with a fresh LoRA trained on the items, loss on completions only."""
    import copy

    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    recipe = models.recipe
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    model: Any = get_peft_model(copy.deepcopy(models.base), config)
    rows = [_row(models.base_tokenizer, task, item) for item in items]
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=recipe.lr, weight_decay=0.0
    )
    rng = random.Random(seed)
    steps = [
        [rows[i] for i in order[at : at + recipe.batch]]
        for order in (rng.sample(range(len(rows)), len(rows)) for _ in range(recipe.epochs))
        for at in range(0, len(order), recipe.batch)
    ]
    for step, batch in enumerate(steps):
        optimizer.param_groups[0]["lr"] = recipe.lr * (1 - step / len(steps))
        model(**_collate(batch)).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return model.eval()


def _row(tokenizer: Any, task: str, item: Item) -> tuple[list[int], list[int]]:
    """Token ids of one conversation, and its labels (-100 on the prompt)."""
    prompt = _prompt(tokenizer, task, item["input"])
    head = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    tail = tokenizer(item["output"], add_special_tokens=False)["input_ids"]
    tail = [*tail, tokenizer.eos_token_id]
    return head + tail, [-100] * len(head) + tail


def _collate(rows: Sequence[tuple[list[int], list[int]]]) -> dict[str, Any]:
    import torch

    width = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in rows])
    labels = torch.tensor([labels + [-100] * (width - len(labels)) for _, labels in rows])
    mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in rows])
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


def item_scores(task: str, answers: Sequence[str], golds: Sequence[str]) -> list[dict[str, float]]:
    """Per item: `main` (higher is better) and the task's metrics; as LaMP scores them."""
    if task == "LaMP_3":
        errors = [_error(a, float(g)) for a, g in zip(answers, golds, strict=True)]
        return [{"main": -error, "mae": error} for error in errors]
    from rouge_score import rouge_scorer

    scorer = rouge_scorer.RougeScorer(["rouge1", "rougeL"], use_stemmer=False)
    scored = [scorer.score(gold, answer) for answer, gold in zip(answers, golds, strict=True)]
    plain = [{name: score.fmeasure for name, score in scores.items()} for scores in scored]
    return [{"main": scores["rougeL"], **scores} for scores in plain]


def _error(answer: str, gold: float) -> float:
    try:
        return abs(float(answer) - gold)
    except ValueError:
        return max(gold - 1, 5 - gold)


def bootstrap(values: Sequence[float], draws: int = 2000) -> tuple[float, float, float]:
    """(mean, low, high): the 95% percentile bootstrap interval of the mean."""
    rng = random.Random(0)
    means = sorted(sum(rng.choices(values, k=len(values))) / len(values) for _ in range(draws))
    return sum(values) / len(values), means[draws // 40], means[-draws // 40 - 1]


def measure_user(
    models: Models, user: User, other: Any
) -> tuple[dict[str, list[dict[str, float]]], Any]:
    """Scores of each arm on one user's held-out items, and this user's adapter."""
    real = sample_items(user, REAL)
    held_out = sample_items(user, HELD_OUT, "questions")
    texts, golds = [i["input"] for i in held_out], [i["output"] for i in held_out]
    clock = [time.monotonic()]
    made = sample_teacher(models, user.task, real, CANDIDATES, user.number)
    clock.append(time.monotonic())
    mixed = train_lora(models, user.task, real + made[: models.recipe.synthetic])
    clock.append(time.monotonic())
    answers = {
        "base": ask_base(models, models.base, user.task, texts),
        "teacher": ask_teacher(models, user.task, real, texts),
        "real": ask_base(models, train_lora(models, user.task, real), user.task, texts),
        "mixed": ask_base(models, mixed, user.task, texts),
    }
    if other is not None:
        answers["other"] = ask_base(models, other, user.task, texts)
    scores = {arm: item_scores(user.task, lines, golds) for arm, lines in answers.items()}
    click.echo(_line(user, scores, len(made), clock))
    return scores, mixed


def _line(user: User, scores: dict[str, Any], kept: int, clock: list[float]) -> str:
    means = {arm: _mean([row["main"] for row in rows]) for arm, rows in scores.items()}
    parts = " ".join(f"{arm} {value:.3f}" for arm, value in means.items())
    times = f"sample {clock[1] - clock[0]:.0f} s, train {clock[2] - clock[1]:.0f} s"
    return f"{user.id}: {parts} | kept {kept}/{CANDIDATES}, {times}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def measure_task(models: Models, task: str, numbers: Sequence[int]) -> None:
    """Print a line a user and a summary an arm; "other" is the adapter of the user before."""
    everyone: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    _, previous = measure_user(models, sample_user(task, numbers[-1] + 1), None)
    for number in numbers:
        scores, previous = measure_user(models, sample_user(task, number), previous)
        for arm in ARMS:
            everyone[arm] += scores[arm]
    base = [row["main"] for row in everyone["base"]]
    for arm, rows in everyone.items():
        metrics = " ".join(f"{n} {_mean([r[n] for r in rows]):.3f}" for n in rows[0] if n != "main")
        gains = [row["main"] - before for row, before in zip(rows, base, strict=True)]
        mean, low, high = bootstrap(gains)
        click.echo(f"{task} {arm:8} {metrics} gain {mean:+.3f} [{low:+.3f}, {high:+.3f}]")


def main() -> None:
    """Measure every task that the bundled models know."""
    import torch

    parser = argparse.ArgumentParser(description="Measure the pocket models.")
    parser.add_argument("--split", choices=("dev", "test"), default="dev")
    parser.add_argument("--task", choices=BUNDLED, action="append")
    parser.add_argument("--users", type=int, default=8)
    parser.add_argument("--models", type=Path, default=MODELS)
    parser.add_argument("--epochs", type=int, default=Recipe.epochs)
    parser.add_argument("--lr", type=float, default=Recipe.lr)
    parser.add_argument("--temperature", type=float, default=Recipe.temperature)
    options = parser.parse_args()
    torch.set_num_threads(2)
    recipe = Recipe(lr=options.lr, epochs=options.epochs, temperature=options.temperature)
    models = load_models(options.models, recipe)
    population = DEV_USERS if options.split == "dev" else TEST_USERS
    for task in options.task or BUNDLED:
        measure_task(models, task, population[: options.users])


if __name__ == "__main__":
    main()
