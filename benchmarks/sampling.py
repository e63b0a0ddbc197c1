"""How fast a local teacher writes: batches of similar length against `generate` one by one.

`python -m benchmarks.sampling [--quick]` takes the bundled teacher and a bundled user's items.
Before anything is timed, the model's next-token logits in a padded batch are held against those of
each prompt alone: both ways draw from the same distribution.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import cloud.pocket
from benchmarks.rows import Row
from benchmarks.turns import compared
from cloud.lamp import read_lamp
from cloud.prompts import continuation
from cloud.seeds import requests
from cloud.tasks import TASKS
from cloud.teachers import POCKET_TEACHER, Sampling
from cloud.teachers.local import HuggingFaceTeacher
from protos.base_model import load_model, load_tokenizer, open_base

USERS = Path(cloud.pocket.__path__[0]) / "users"
SAMPLES, REPEATS, THREADS = 64, 3, 2
TASK = TASKS["LaMP_4"]
MOST_APART = 1e-4
"""Largest difference of a logit, in a batch and alone; float32 on a CPU."""
NEW_TOKENS = 96


def rows(quick: bool, work: Path) -> list[Row]:
    """One row: samples a second."""
    import torch

    count, repeats = (8, 1) if quick else (SAMPLES, REPEATS)
    torch.set_num_threads(THREADS)
    asks = list(islice(_requests(), count))
    base = open_base(str(POCKET_TEACHER))
    tokenizer, model = load_tokenizer(base), load_model(base, torch.float32)
    prompts = [list(tokenizer(continuation(TASK, ask))["input_ids"]) for ask in asks]
    apart = logits_apart(model, prompts)
    if apart > MOST_APART:
        raise SystemExit(f"a batch is not as each alone: logits differ by {apart:.1e}")
    size = model.num_parameters() / 1e6
    teacher = HuggingFaceTeacher("pocket", base, THREADS)
    list(teacher.write(TASK, asks[:1], Sampling()))  # loads the weights
    ours, theirs = list[float](), list[float]()
    for _ in range(repeats):
        started = time.perf_counter()
        replies = dict(teacher.write(TASK, asks, Sampling()))
        ours.append(count / (time.perf_counter() - started))
        started = time.perf_counter()
        for ids in prompts:
            alone(model, tokenizer, ids)
        theirs.append(count / (time.perf_counter() - started))
        if sorted(replies) != list(range(count)):
            raise SystemExit(f"{count} asked, {len(replies)} answered")
    return [
        compared(
            f"a local teacher writes {count} items, bundled one ({size:.1f}M), {THREADS} threads",
            "items/s", "transformers generate, one by one", ours, theirs, less_is_better=False,
            aim=5.0, note=f"logits differ by {apart:.1e} at most",
        )
    ]  # fmt: skip


def logits_apart(model: Any, prompts: Sequence[Sequence[int]]) -> float:
    """Largest difference of the next token's logits between a left-padded batch and each alone."""
    import torch

    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(row)) + list(row) for row in prompts])
    mask = torch.tensor([[int(k >= longest - len(row)) for k in range(longest)] for row in prompts])
    places = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.inference_mode():
        batch = model(input_ids=ids, attention_mask=mask, position_ids=places).logits[:, -1]
        single = torch.stack([model(torch.tensor([list(p)])).logits[0, -1] for p in prompts])
    return float((batch - single).abs().max())


def alone(model: Any, tokenizer: Any, ids: Sequence[int]) -> str:
    """One sample as `generate` gives it, with the teacher's own settings."""
    import torch

    with torch.inference_mode():
        made = model.generate(
            input_ids=torch.tensor([list(ids)]), max_new_tokens=NEW_TOKENS, do_sample=True,
            temperature=1.0, top_p=0.95, top_k=0, stop_strings=["\n\n"], tokenizer=tokenizer,
        )  # fmt: skip
    return str(tokenizer.decode(made[0, len(ids) :], skip_special_tokens=True))


def _requests() -> Any:
    files = USERS / TASK.name
    first = json.loads((files / "dev_questions.json").read_text("utf-8"))[0]["user_id"]
    items = read_lamp(files / "dev_questions.json", None, TASK, first).items
    return requests(TASK, items, {"new": 1.0}, 8, 24_000, 1, seed=0)


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    for row in rows(parser.parse_args().quick, Path()):
        print(row)


if __name__ == "__main__":
    main()
