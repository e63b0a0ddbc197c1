"""Training batches from the pocket world's train users: one for each step, by its number alone.

The base sees one query and its output at a time. The teacher sees the items of one user as the
blocks that `cloud.prompts.continuation` sends: items as they are (from which it learns to go on, to
vote and to answer), items turned round (to write an input for a given output), and held-out
questions among items where a task asks something else than its items.
"""

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from cloud.pocket.training import Batch
from cloud.pocket.world import (
    TRAIN_USERS,
    WORLDS,
    Drawn,
    User,
    draw,
    question_text,
    sample_items,
    sample_user,
)
from cloud.tasks import TASKS, Task

HARD = ("LaMP_1", "LaMP_3")
"""Tasks in which a few items say least about their user: the teacher has to see more of them."""
ASKED = 0.5  # of the chats of a task with questions of its own hold such a question
BASE_PROMPT_WEIGHT = 0.1
TURNED = 1 / 3  # of the teacher's rows have outputs first
REWORDED = 0.25  # of turned blocks have an earlier output again, with another input
QUESTION = 0.25  # of blocks are held-out questions, where a task has questions of its own
ITEM_WEIGHT, TURNED_WEIGHT, OUTPUT_WEIGHT = 0.15, 0.5, 8.0
CHARS_A_TOKEN = 6  # more than texts of this world have


@dataclass(frozen=True)
class Block:
    """A piece of a teacher's row: what is given, then what is to be learned.

    head_weight, tail_weight: of each token; a tail of weight 0 counts as an output does.
    """

    head: str
    tail: str
    head_weight: float
    tail_weight: float = 0.0


def base_batch(tokenizer: Any, rows: int, seed: str, step: int) -> Batch:
    """`rows` chats of one query and its output, each of another user."""
    rng = random.Random(f"{seed} {step}")
    ids, weights = _pad([_chat(tokenizer, rng) for _ in range(rows)], tokenizer.pad_token_id)
    none = torch.zeros((0, 2), dtype=torch.long)
    return Batch(ids, weights, none, none)


def teacher_batch(
    tokenizer: Any, rows: int, length: int, seed: str, step: int, hard: float = 0.0
) -> Batch:
    """Rows of `length` tokens: BOS, then blocks of one user each; marks after every block.

    hard: the chance that a row is of `HARD`; the others are of all tasks alike.
    """
    rng = random.Random(f"{seed} {step}")
    offsets = label_offsets()
    examples: list[tuple[list[int], list[float]]] = []
    marks: list[tuple[int, int]] = []
    labels: list[list[int]] = []
    for row in range(rows):
        user = _train_user(rng, hard)
        ids, weights, ends = encode(tokenizer, blocks_of(user, rng), length)
        examples.append((ids, weights))
        marks += [(row, end) for end in ends]
        labels += [_labels(user, offsets)] * len(ends)
    ids, weights = _pad(examples, tokenizer.pad_token_id)
    places = torch.tensor(marks, dtype=torch.long).reshape(-1, 2)
    classes = torch.tensor(labels, dtype=torch.long).reshape(-1, offsets[""])
    return Batch(ids, weights, places, classes)


def _train_user(rng: random.Random, hard: float = 0.0) -> User:
    is_hard = hard and rng.random() < hard
    return sample_user(rng.choice(HARD if is_hard else list(WORLDS)), rng.choice(TRAIN_USERS))


def _chat(tokenizer: Any, rng: random.Random) -> tuple[list[int], list[float]]:
    user = _train_user(rng)
    task = TASKS[user.task]
    asked = bool(task.question) and rng.random() < ASKED
    item = sample_items(user, 1, "questions" if asked else "profile")[0]
    text = question_text(task, item["input"]) if asked else task.query(item["input"])
    question = {"role": "user", "content": text}
    prompt = tokenizer.apply_chat_template([question], add_generation_prompt=True, tokenize=False)
    head = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    tail = tokenizer(item["output"], add_special_tokens=False)["input_ids"]
    tail = [*tail, tokenizer.eos_token_id]
    return head + tail, [BASE_PROMPT_WEIGHT] * len(head) + [_output_weight(len(tail))] * len(tail)


def _output_weight(count: int) -> float:
    """The weight of an output's tokens: a score is two tokens, and must not drown in headlines."""
    return max(1.0, OUTPUT_WEIGHT / count)


def blocks_of(user: User, rng: random.Random) -> Iterator[Block]:
    """Endless blocks of one user, in one of the two orders."""
    task, items = TASKS[user.task], draw(user, "teacher")
    if not task.is_beginning and rng.random() < TURNED:
        yield from _turned(user, items, rng)
    questions = draw(user, "questions")
    for number in itertools.count():
        if task.question and number > 1 and rng.random() < QUESTION:
            yield _question(task, next(questions))
        yield _item(task, next(items))


def _item(task: Task, item: Drawn) -> Block:
    shot = task.shot(item.input, item.output)
    cut = len(shot) - len(item.output) - len(" \n\n")
    return Block(shot[:cut], shot[cut:], ITEM_WEIGHT)


def _question(task: Task, item: Drawn) -> Block:
    """A held-out question and its answer; the question itself is not learned to be written."""
    shot = task.shot(question_text(task, item.input), item.output)
    cut = len(shot) - len(item.output) - len(" \n\n")
    return Block(shot[:cut], shot[cut:], 0.0)


def _turned(user: User, items: Iterator[Drawn], rng: random.Random) -> Iterator[Block]:
    """Outputs, each with an input for it; now and then one that was there before."""
    task, seen = TASKS[user.task], list[Drawn]()
    while True:
        if seen and rng.random() < REWORDED:
            item = rng.choice(seen)
            text = WORLDS[user.task].text(item.facts, rng)
        else:
            item = next(items)
            seen.append(item)
            text = item.input
        shot = task.turned_shot(text, item.output)
        cut = len(shot) - len(text) - len(" \n\n")
        yield Block(shot[:cut], shot[cut:], 0.0, TURNED_WEIGHT)


def encode(
    tokenizer: Any, blocks: Iterator[Block], length: int
) -> tuple[list[int], list[float], list[int]]:
    """BOS and as many blocks as fill `length` tokens: ids, weights, last places of whole blocks.

    The text is encoded as a whole, as it is when the teacher is asked: across the line ends between
    two blocks the tokens are other ones than those of the blocks alone.
    """
    taken, size = list[Block](), 0
    while size < length * CHARS_A_TOKEN:
        taken.append(next(blocks))
        size += len(taken[-1].head) + len(taken[-1].tail)
    text = "".join(block.head + block.tail for block in taken)
    found = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
    starts = [start for start, _ in found.offsets]
    ids, weights, ends = [tokenizer.bos_token_id, *found.ids], [0.0], list[int]()
    place = 0
    for block in taken:
        heads = _count(starts, len(weights) - 1, place + len(block.head))
        weights += [block.head_weight] * heads
        place += len(block.head) + len(block.tail)
        tails = _count(starts, len(weights) - 1, place)
        weights += [block.tail_weight or _output_weight(tails)] * tails
        ends.append(len(weights) - 1)
    return ids[:length], weights[:length], [end for end in ends if end < length]


def _count(starts: Sequence[int], first: int, end: int) -> int:
    """How many tokens, counted from the one with the number `first`, start before `end`."""
    last = first
    while last < len(starts) and starts[last] < end:
        last += 1
    return last - first


def label_offsets() -> dict[str, int]:
    """Where each task's trait heads begin, in the order of `WORLDS`; at "", how many there are."""
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
