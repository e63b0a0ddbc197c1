"""How fast a local teacher writes: batches of similar length against `generate` one by one.

`python -m benchmarks.sampling [--quick]` takes the bundled teacher and a bundled user's items. The
peer gets the very prompts, room and settings, and weights in the same dtype. Both ways must draw
from the model's own distribution: the log-likelihood of all that was written must be what is to be
expected of tokens drawn from it, which the same model tells that reads each text alone, in float32.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloud.pocket
from benchmarks.rows import Row
from benchmarks.turns import compared
from cloud.lamp import read_lamp
from cloud.seeds import requests
from cloud.tasks import TASKS
from cloud.teachers import POCKET_TEACHER, Sampling
from cloud.teachers.local import HuggingFaceTeacher
from protos.base_model import compute_dtype, load_model, load_tokenizer, open_base

if TYPE_CHECKING:
    import torch

USERS = Path(cloud.pocket.__path__[0]) / "users"
SAMPLES, CHECKED, REPEATS, THREADS = 64, 256, 3, 2
TASK = TASKS["LaMP_4"]
CRITICAL = 3.3
"""Standard deviations: beyond them once in a thousand times."""


@dataclass(frozen=True)
class Written:
    """Token ids of one sample. room: tokens that it might have had."""

    prompt: list[int]
    ids: list[int]
    room: int


def rows(quick: bool, work: Path) -> list[Row]:
    """Samples a second, with the peer in our dtype, and in float32 where that is another one."""
    import torch

    count, checked, repeats = (4, 8, 1) if quick else (SAMPLES, CHECKED, REPEATS)
    torch.set_num_threads(THREADS)
    asks = list(islice(_requests(), checked))
    base, sampling = open_base(str(POCKET_TEACHER)), Sampling()
    teacher, dtype = HuggingFaceTeacher("pocket", base, THREADS), compute_dtype()
    with recorded() as ours:
        list(teacher.write(TASK, asks, sampling))
    dtypes = [dtype] if quick else list(dict.fromkeys((dtype, torch.float32)))
    models = {each: load_model(base, each) for each in dtypes}
    exact, tokenizer = load_model(base, torch.float32), load_tokenizer(base)
    far = {"ours": deviation(exact, ours, sampling)}
    for model in models.values():
        one(model, tokenizer, ours[0], sampling)  # what is done once only
    took, alone = list[float](), {each: list[float]() for each in dtypes}
    theirs = {each: list[Written]() for each in dtypes}
    for turn in range(repeats):
        with recorded() as prompts:
            started = time.perf_counter()
            replies = dict(teacher.write(TASK, asks[:count], sampling))
            took.append(count / (time.perf_counter() - started))
        if sorted(replies) != list(range(count)):
            raise SystemExit(f"{count} asked, {len(replies)} answered")
        for each, model in models.items():
            torch.manual_seed(turn)
            with recorded() as written:
                started = time.perf_counter()
                for prompt in prompts:
                    one(model, tokenizer, prompt, sampling)
                alone[each].append(count / (time.perf_counter() - started))
            theirs[each] += written
    far |= {name(each): deviation(exact, theirs[each], sampling) for each in dtypes}
    if wrong := [f"{who} {value:.2f}" for who, value in far.items() if not abs(value) < CRITICAL]:
        raise SystemExit(f"not drawn from the model's distribution: {', '.join(wrong)}")
    size = sum(weight.numel() for weight in exact.parameters()) / 1e6
    figure = f"a local teacher writes {count} items, bundled one ({size:.1f}M), {name(dtype)}"
    return [
        compared(
            f"{figure}, {THREADS} threads", "items/s",
            f"transformers generate, one by one, {name(each)}", took, alone[each],
            less_is_better=False, aim=5.0 if each == dtype else None,
            note=f"log-likelihood off by {far['ours']:.1f} standard deviations, the peer's by "
            f"{far[name(each)]:.1f}",
        )
        for each in dtypes
    ]  # fmt: skip


@contextmanager
def recorded() -> Generator[list[Written]]:
    """What `generate` is asked and writes within the block, row by row, padding left out."""
    from transformers import GenerationMixin

    original: Any = GenerationMixin.generate
    found: list[Written] = []

    def generate(model: Any, **given: Any) -> Any:
        made = original(model, **given)
        longest, pad = given["input_ids"].shape[1], model.config.pad_token_id
        for row, prompt in zip(made.tolist(), given["input_ids"].tolist(), strict=True):
            written = row[longest:]
            end = written.index(pad) if pad in written else len(written)
            prompt = [token for token in prompt if token != pad]
            found.append(Written(prompt, written[:end], given["max_new_tokens"]))
        return made

    GenerationMixin.generate = generate
    try:
        yield found
    finally:
        GenerationMixin.generate = original


def deviation(model: Any, samples: Sequence[Written], sampling: Sampling) -> float:
    """How far the samples' log-likelihood is from its expectation, in standard deviations.

    Both are sums over all tokens, given the tokens before each: of a model that reads each prompt
    alone, and of what `sampling` leaves of its distribution. Samples of that are within `CRITICAL`.
    """
    import torch

    off, variance = 0.0, 0.0
    for sample in samples:
        ids = torch.tensor([sample.prompt + sample.ids])
        with torch.inference_mode():
            logits = model(input_ids=ids).logits[0, len(sample.prompt) - 1 : -1]
        found = (logits.double() / sampling.temperature).log_softmax(-1)
        kept = nucleus(found.exp(), sampling.top_p)
        expected = (kept * found).sum(-1)
        off += float((found.gather(1, torch.tensor(sample.ids)[:, None])[:, 0] - expected).sum())
        variance += float(((kept * found**2).sum(-1) - expected**2).sum())
    if not variance:
        raise SystemExit("nothing was written, or nothing by chance")
    return off / variance**0.5


def nucleus(chances: torch.Tensor, top_p: float) -> torch.Tensor:
    """The fewest likeliest tokens whose mass is at least top_p, at a mass of 1 (arXiv 1904.09751).

    chances: `[tokens, vocab]`.
    """
    ordered, order = chances.sort(descending=True)
    ordered = ordered * (ordered.cumsum(-1) - ordered < top_p)
    kept = chances.new_zeros(chances.shape).scatter(1, order, ordered)
    return kept / kept.sum(-1, keepdim=True)


def one(model: Any, tokenizer: Any, asked: Written, sampling: Sampling) -> str:
    """One sample as `generate` gives it, with the teacher's own settings."""
    import torch

    with torch.inference_mode():
        made = model.generate(
            input_ids=torch.tensor([asked.prompt]), max_new_tokens=asked.room, do_sample=True,
            temperature=sampling.temperature, top_p=sampling.top_p, top_k=0,
            stop_strings=["\n\n"], tokenizer=tokenizer,
        )  # fmt: skip
    return str(tokenizer.decode(made[0, len(asked.prompt) :], skip_special_tokens=True))


def name(dtype: torch.dtype) -> str:
    """As people write it."""
    return str(dtype).removeprefix("torch.")


def _requests() -> Iterable[Any]:
    files = USERS / TASK.name
    first = json.loads((files / "dev_questions.json").read_text("utf-8"))[0]["user_id"]
    items = read_lamp(files / "dev_questions.json", None, TASK, first).items
    return requests(TASK, items, {"new": 1.0}, 8, 24_000, 1, 0, lambda _: True)


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    for row in rows(parser.parse_args().quick, Path()):
        print(row)


if __name__ == "__main__":
    main()
