"""Endless training batches from the pocket world's train users, for base and teacher."""

import random
from collections.abc import Iterator
from typing import Any

import torch

from cloud.pocket.training import Batch
from cloud.pocket.world import TRAIN_USERS, WORLDS, User, sample_items, sample_user
from cloud.tasks import TASKS

BASE_PROMPT_WEIGHT = 0.1
TEACHER_INPUT_WEIGHT = 0.15
OUTPUT_WEIGHT = 8.0
SHOTS = 30  # more than fit into any context: a sequence is cut where it is full


def base_batches(tokenizer: Any, rows: int, seed: str) -> Iterator[Batch]:
    """Chats of one query and its output, each by another user; half of them of each task."""
    rng = random.Random(seed)
    none = torch.zeros((0, 2), dtype=torch.long)
    while True:
        examples = [_chat(tokenizer, rng) for _ in range(rows)]
        ids, weights = _pad(examples, tokenizer.pad_token_id)
        yield Batch(ids, weights, none, none)


def _train_user(rng: random.Random) -> User:
    return sample_user(rng.choice(list(WORLDS)), rng.choice(TRAIN_USERS))


def _chat(tokenizer: Any, rng: random.Random) -> tuple[list[int], list[float]]:
    user = _train_user(rng)
    item = sample_items(user, 1)[0]
    question = {"role": "user", "content": TASKS[user.task].query(item["input"])}
    prompt = tokenizer.apply_chat_template([question], add_generation_prompt=True, tokenize=False)
    head = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    tail = tokenizer(item["output"], add_special_tokens=False)["input_ids"]
    tail = [*tail, tokenizer.eos_token_id]
    return head + tail, [BASE_PROMPT_WEIGHT] * len(head) + _output_weights(len(tail))


def _output_weights(count: int) -> list[float]:
    """Weights of an output's tokens: a score is two tokens, and must not drown in headlines."""
    return [max(1.0, OUTPUT_WEIGHT / count)] * count


def teacher_batches(tokenizer: Any, rows: int, length: int, seed: str) -> Iterator[Batch]:
    """Rows of `length` tokens: BOS, then shots of one user each; marks after every shot."""
    rng = random.Random(seed)
    offsets = label_offsets()
    while True:
        users = [_train_user(rng) for _ in range(rows)]
        examples: list[tuple[list[int], list[float]]] = []
        marks: list[tuple[int, int]] = []
        labels: list[list[int]] = []
        for row, user in enumerate(users):
            ids, weights, ends = _history(tokenizer, user, length)
            examples.append((ids, weights))
            marks += [(row, end) for end in ends]
            labels += [_labels(user, offsets)] * len(ends)
        ids, weights = _pad(examples, tokenizer.pad_token_id)
        yield Batch(ids, weights, torch.tensor(marks), torch.tensor(labels))


def _history(tokenizer: Any, user: User, length: int) -> tuple[list[int], list[float], list[int]]:
    """One user's shots as (ids, weights, positions of the last token of each shot)."""
    ids, weights, ends = [tokenizer.bos_token_id], [0.0], list[int]()
    items = sample_items(user, SHOTS, "teacher")
    task = TASKS[user.task]
    shots = [task.shot(item["input"], item["output"]) for item in items]
    heads = [
        shot[: len(shot) - len(item["output"]) - 3] for shot, item in zip(shots, items, strict=True)
    ]
    encode = tokenizer.backend_tokenizer.encode_batch
    full = [piece.ids for piece in encode(shots, add_special_tokens=False)]
    cuts = [len(piece.ids) for piece in encode(heads, add_special_tokens=False)]
    for shot, cut in zip(full, cuts, strict=True):
        ids += shot
        weights += [TEACHER_INPUT_WEIGHT] * cut + _output_weights(len(shot) - cut)
        ends.append(len(ids) - 1)
        if len(ids) >= length:
            break
    return ids[:length], weights[:length], [end for end in ends if end < length]


def label_offsets() -> dict[str, int]:
    """Where each task's trait heads begin, in the order of `WORLDS`."""
    offsets, total = dict[str, int](), 0
    for name, world in WORLDS.items():
        offsets[name] = total
        total += len(world.labels(sample_user(name, 0).traits))
    offsets[""] = total
    return offsets


def _labels(user: User, offsets: dict[str, int]) -> list[int]:
    row = [-1] * offsets[""]
    own = WORLDS[user.task].labels(user.traits)
    start = offsets[user.task]
    row[start : start + len(own)] = own
    return row


def _pad(
    examples: list[tuple[list[int], list[float]]], pad: int
) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(ids) for ids, _ in examples)
    ids = torch.tensor([ids + [pad] * (width - len(ids)) for ids, _ in examples])
    weights = torch.tensor([row + [0.0] * (width - len(row)) for _, row in examples])
    return ids, weights
