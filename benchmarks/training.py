"""Training: adapters per hour for several users at once, against PEFT and transformers' Trainer.

`python benchmarks/training.py [--quick] [--layers N] [--users 8]` trains 8 users × 16 items (30 to
250 tokens, short completions) over the bundled base and over a random Llama of SmolLM-135M's shape.
The peer trains one user after the other with the settings that suit it best: bfloat16 where the
hardware has it, batches of like length, no evaluation, no checkpoints, one process and one base for
all users. Both sides run in processes of their own, by turns, with the same hyperparameters and the
same token ids, from the loading of the base to the written adapters; imports are not counted.
Before that both train once: PEFT loads every adapter of both, and the mean losses of all rows must
agree within 1%. A timed training must give the same adapters again, or their loss must agree, too.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.alone import peak_bytes
from benchmarks.rows import Row
from benchmarks.turns import compared
from cloud.train import Member, TrainConfig, train_many
from cloud.trainer.learner import schedule
from protos.artifacts import create, open_artifact
from protos.base_model import (
    completion_ids,
    compute_dtype,
    load_model,
    load_tokenizer,
    open_base,
    prompt_ids,
)

ROOT = Path(__file__).parents[1]
AIM = 4.0
ITEMS = 16
WEIGHTS = "adapter_model.safetensors"
NUMBERS = (1, 2, 4, 8, 16, 32)
"""Users trained at once, to see how the speed grows."""
TOLERANCE = 0.01
"""How far two mean losses may be from each other. Without an adapter the bundled base's is 3.7%
above PEFT's, so that an adapter which was not trained is noticed."""
SHAPE = {
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 2048,
    "tie_word_embeddings": True, "eos_token_id": 2, "bos_token_id": 1,
}  # fmt: skip
CONFIG = TrainConfig(learning_rate=5e-4, epochs=2, batch_size=8, patience=2)
PEER = "PEFT + transformers.Trainer, {dtype}, one by one"


def rows(quick: bool, work: Path) -> list[Row]:
    """The figures; `quick`: the bundled base and one repeat only."""
    work.mkdir(parents=True, exist_ok=True)
    bundled = ROOT / "cloud" / "pocket" / "models" / "base"
    if quick:
        return compare(work / "bundled", bundled, "bundled base", users=4, repeats=1)
    base = make_base(work / "135m", SHAPE["num_hidden_layers"])
    return [
        *compare(work / "bundled", bundled, "bundled base", users=8, repeats=3),
        *compare(work / "large", base, "135M shape", users=8, repeats=3),
        *growth(work / "growth", bundled, "bundled base", repeats=3),
        *on_gpu(work / "gpu", base, "135M shape, GPU"),
    ]


def on_gpu(work: Path, base: Path, name: str) -> list[Row]:
    """The same on a GPU where there is one; else rows that say so."""
    import torch

    if torch.cuda.is_available():
        return compare(work, base, name, users=8, repeats=3, gpu=True)
    peer = PEER.format(dtype="bfloat16")
    return [Row(f"{asked(8, name)}: adapters per hour", None, "1/h", peer, note="no GPU here")]


def compare(
    work: Path, base: Path, name: str, users: int, repeats: int, *, gpu: bool = False
) -> list[Row]:
    """Both sides by turns: adapters per hour and peak memory, on a GPU what tensors take there."""
    make_datasets(work / "datasets", base, users)
    sides = ("ours", "peer")
    for side in sides:
        run_side(side, base, work / "datasets", work / side, gpu=gpu)
    losses = [mean_loss(base, work / "datasets", work / side) for side in sides]
    agree(name, *losses)
    ran: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for number in range(repeats):
        for side in sides:
            out = work / f"{side}{number}"
            ran[side].append(run_side(side, base, work / "datasets", out, gpu=gpu))
            print(f"{name}, {side}: {ran[side][-1]}", file=sys.stderr, flush=True)
            if not same_adapters(out, work / side):
                agree(f"{name}, {out.name}", mean_loss(base, work / "datasets", out), losses[1])
    ours, theirs = ran.values()
    peer = PEER.format(dtype=theirs[0]["dtype"])
    what, peak = asked(users, name), "peak of the GPU's memory" if gpu else "peak memory"
    hourly = [[3600 * users / run["seconds"] for run in side] for side in (ours, theirs)]
    peaks = [[run["peak_bytes"] / 1e6 for run in side] for side in (ours, theirs)]
    return [
        compared(
            f"{what}: adapters per hour", "1/h", peer, *hourly, less_is_better=False, aim=AIM,
            note=f"mean loss {losses[0]:.4f} against {losses[1]:.4f}",
        ),
        compared(f"{what}: {peak}", "MB", peer, *peaks, less_is_better=True),
    ]  # fmt: skip


def agree(name: str, found: float, wanted: float) -> None:
    """See to it that two losses are the same.

    Raises:
        SystemExit: they are not.
    """
    if not abs(found / wanted - 1) <= TOLERANCE:
        raise SystemExit(f"{name}: losses differ by more than 1%: {found:.4f} and {wanted:.4f}")


def asked(users: int, name: str) -> str:
    """What is trained, in words."""
    return f"train {users} users × {ITEMS} items, {CONFIG.epochs} epochs, {name}"


def growth(work: Path, base: Path, name: str, repeats: int) -> list[Row]:
    """Adapters per hour for 1 to 32 users by turns; the ratio is to one user.

    The first user's loss must be the same whatever the number of users beside it.
    """
    make_datasets(work / "datasets", base, max(NUMBERS))
    losses: dict[int, float] = {}
    for users in NUMBERS:
        run_side("ours", base, work / "datasets", work / f"of{users}", users)
        losses[users] = mean_loss(base, work / "datasets", work / f"of{users}", users=1)
        agree(f"{name}, the first of {users} users", losses[users], losses[1])
    hourly: dict[int, list[float]] = {users: [] for users in NUMBERS}
    for number in range(repeats):
        for users, found in hourly.items():
            out = work / f"of{users}-{number}"
            ran = run_side("ours", base, work / "datasets", out, users)
            found.append(3600 * users / ran["seconds"])
            if not same_adapters(out, work / f"of{users}"):
                again = mean_loss(base, work / "datasets", out, users=1)
                agree(f"{name}, the first of {users} users", again, losses[1])
    return [
        compared(
            f"{asked(users, name)}: adapters per hour", "1/h", "one user", found, hourly[1],
            less_is_better=False,
        )
        for users, found in hourly.items()
    ]  # fmt: skip


def run_side(
    side: str, base: Path, datasets: Path, out: Path, users: int = 0, *, gpu: bool = False
) -> dict[str, Any]:
    """One side in a process of its own: seconds and the peak of its memory, on a GPU the GPU's."""
    command = [sys.executable, "-m", "benchmarks.training", "--side", side, "--base", str(base),
               "--datasets", str(datasets), "--out", str(out), "--users", str(users)]  # fmt: skip
    environment = {"GOMP_SPINCOUNT": "10000", **os.environ}
    if not gpu:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


def train_ours(base: Path, datasets: list[Path], out: Path, threads: int) -> None:
    """The product's function, whole."""
    members = [Member(open_artifact(path), out / path.name, CONFIG) for path in datasets]
    for made in train_many(members, open_base(str(base)), threads):
        if isinstance(made, Exception):
            raise made


def train_theirs(base: Path, datasets: list[Path], out: Path, threads: int) -> None:
    """What a user would write with PEFT and transformers."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import Trainer, TrainingArguments

    torch.set_num_threads(threads)
    opened = open_base(str(base))
    tokenizer = load_tokenizer(opened)
    model: Any = load_model(opened, compute_dtype())
    for path in datasets:
        torch.manual_seed(CONFIG.seed)
        lora = LoraConfig(r=CONFIG.rank, lora_alpha=CONFIG.alpha, target_modules="all-linear",
                          task_type="CAUSAL_LM")  # fmt: skip
        adapted = get_peft_model(model, lora)
        arguments = TrainingArguments(
            str(out / "trainer"), per_device_train_batch_size=CONFIG.batch_size,
            num_train_epochs=CONFIG.epochs, learning_rate=CONFIG.learning_rate,
            bf16=compute_dtype() == torch.bfloat16,
            use_cpu=not torch.cuda.is_available(), train_sampling_strategy="group_by_length",
            save_strategy="no", report_to=[], logging_strategy="no", disable_tqdm=True,
            dataloader_num_workers=0, seed=CONFIG.seed,
        )  # fmt: skip
        examples = encoded(tokenizer, path)
        last = math.ceil(len(examples) / CONFIG.batch_size) * CONFIG.epochs
        optimizer = torch.optim.AdamW(
            [p for p in adapted.parameters() if p.requires_grad],
            lr=CONFIG.learning_rate, weight_decay=CONFIG.weight_decay,
        )  # fmt: skip
        same = torch.optim.lr_scheduler.LambdaLR(
            optimizer, functools.partial(schedule, last=last, warmup=CONFIG.warmup)
        )
        trainer = Trainer(
            adapted, arguments, train_dataset=examples, data_collator=padded,
            optimizers=(optimizer, same),
        )  # fmt: skip
        trainer.train()
        adapted.save_pretrained(str(out / path.name), save_embedding_layers=False)
        model = adapted.unload()


def encoded(tokenizer: Any, dataset: Path) -> list[dict[str, list[int]]]:
    """The training rows with labels on completions only, as transformers wants them."""
    found: list[dict[str, list[int]]] = []
    for line in (dataset / "train.jsonl").read_text().splitlines():
        row = json.loads(line)
        prompt = prompt_ids(tokenizer, row["prompt"])
        completion = completion_ids(tokenizer, row["completion"])
        labels = [-100] * len(prompt) + completion
        found.append({"input_ids": prompt + completion, "labels": labels})
    return found


def padded(batch: list[dict[str, list[int]]]) -> dict[str, Any]:
    """A batch as tensors, padded to its longest row."""
    import torch

    longest = max(len(row["input_ids"]) for row in batch)

    def filled(values: list[list[int]], blank: int) -> torch.Tensor:
        return torch.tensor([own + [blank] * (longest - len(own)) for own in values])

    return {
        "input_ids": filled([row["input_ids"] for row in batch], 0),
        "attention_mask": filled([[1] * len(row["input_ids"]) for row in batch], 0),
        "labels": filled([row["labels"] for row in batch], -100),
    }


def same_adapters(one: Path, other: Path) -> bool:
    """Whether two trainings of the same users gave the same bytes."""
    has, wanted = (
        {path.parent.name: path.read_bytes() for path in folder.glob(f"user*/{WEIGHTS}")}
        for folder in (one, other)
    )
    return bool(has) and has == wanted


def mean_loss(base: Path, datasets: Path, adapters: Path, users: int = 0) -> float:
    """Mean cross-entropy of all training rows' completions, PEFT in float32.

    users: of so many of the first; 0: of all.
    """
    import torch
    from peft import PeftModel

    opened = open_base(str(base))
    tokenizer, model = load_tokenizer(opened), load_model(opened, torch.float32)
    losses: list[float] = []
    for path in sorted(datasets.iterdir())[: users or None]:
        adapted: Any = PeftModel.from_pretrained(model, str(adapters / path.name))
        for row in encoded(tokenizer, path):
            ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
            with torch.no_grad():
                losses.append(float(adapted(input_ids=ids, labels=labels).loss))
        model = adapted.unload()
    return sum(losses) / len(losses)


def make_base(directory: Path, layers: int) -> Path:
    """A random model of the 135M shape with the bundled tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    if not directory.exists():
        torch.manual_seed(0)
        config = LlamaConfig(**{**SHAPE, "num_hidden_layers": layers})
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(directory)
        bundled = ROOT / "cloud" / "pocket" / "models" / "base"
        AutoTokenizer.from_pretrained(bundled).save_pretrained(directory)
    return directory


def make_datasets(directory: Path, base: Path, users: int) -> list[Path]:
    """Users with items of 30 to 250 tokens, each user with a way of answering."""
    tokenizer = load_tokenizer(open_base(str(base)))
    words = sorted(
        word.removeprefix("Ġ")
        for word in tokenizer.get_vocab()
        if word[1:].isalpha() and len(word) > 4
    )
    made: list[Path] = []
    for user in range(users):
        chance = random.Random(user)
        own = chance.sample(words, 12)

        def item(chance: random.Random = chance, own: list[str] = own) -> dict[str, str]:
            tokens = chance.randint(30, 250)
            prompt = "Generate a headline for the following article:"
            while len(prompt_ids(tokenizer, prompt)) < tokens - 12:
                prompt += " " + chance.choice(words)
            return {"prompt": prompt, "completion": " ".join(chance.choices(own, k=5))}

        path = directory / f"user{user:02}"
        made.append(path)
        if path.exists():
            continue
        with create(path, "Dataset", {}, {"user": user}) as draft:
            for name, count in (("train.jsonl", ITEMS), ("valid.jsonl", 2)):
                lines = [json.dumps(item()) for _ in range(count)]
                (draft.path / name).write_text("\n".join(lines) + "\n")
    return made


def main() -> None:
    """The rows, or one side of a comparison where `--side` says so."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--quick", action="store_true")
    arguments.add_argument("--layers", type=int, help="Compare on this many layers of 135M only.")
    arguments.add_argument("--repeats", type=int, default=3)
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--users", type=int, default=0)
    arguments.add_argument("--side", choices=["ours", "peer"])
    arguments.add_argument("--base", type=Path)
    arguments.add_argument("--datasets", type=Path)
    arguments.add_argument("--out", type=Path)
    given = arguments.parse_args()
    if given.side:
        measure_side(given)
        return
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if given.layers:
            base = make_base(work / "base", given.layers)
            name = f"{given.layers} layers of 135M"
            found = compare(work / "few", base, name, given.users or 8, given.repeats)
        else:
            found = rows(given.quick, work)
    print(json.dumps([asdict(row) for row in found], indent=1))


def measure_side(given: argparse.Namespace) -> None:
    """Train with one side and print what it took."""
    import peft  # noqa: F401  # imports are no part of the time
    import torch
    import transformers.trainer

    threads = min(given.threads, torch.get_num_threads())
    del transformers
    datasets = sorted(given.datasets.iterdir())[: given.users or None]
    side = train_ours if given.side == "ours" else train_theirs
    started, used = time.perf_counter(), time.process_time()
    side(given.base, datasets, given.out, threads)
    seconds, processor = time.perf_counter() - started, time.process_time() - used
    cuda = torch.cuda
    peak = cuda.max_memory_allocated() if cuda.is_available() else peak_bytes()
    ran = {"seconds": seconds, "peak_bytes": peak, "processor_seconds": processor}
    print(json.dumps(ran | {"dtype": str(compute_dtype()).removeprefix("torch.")}))


if __name__ == "__main__":
    main()
