"""Which prompts a golden set holds: the task's own, neutral ones to fill up, and edge cases.

In: contents (what a user says). Out: named prompts with token ids, all of which leave room for the
continuation in the context.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protos.artifacts import MANIFEST, open_artifact
from protos.base_model import prompt_ids, render
from protos.errors import InputError
from protos.golden import GoldenPrompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CONTINUATION = 32
"""Token ids that the reference goes on with after each prompt."""
TASK_PROMPTS = 12
SET_SIZE = 16
"""Prompts of a golden at least; parity does not judge by fewer."""
_DATASET_FILES = ("valid.jsonl", "train.jsonl")
_NEUTRAL = (
    "What should I cook tonight with rice, two eggs and a tomato?",
    "Write a short headline: the city opens a new park by the river.",
    "Rate this from 1 to 5: the battery lasts all day, but the screen scratches easily.",
    "Summarize in one sentence: the meeting moved to Thursday because the room was taken.",
    "Which book would you take to an island, and why?",
    "Thank you for the flowers!",
    "The train was late again, so I missed the first half of the concert.",
    "List three things to check before a long bicycle tour.",
    "My sister's new job starts on Monday, 8:30.",
    "Translate into plain words: the party of the first part shall indemnify the second.",
    "Is 17 a prime number?",
    "It rained, then it snowed, and in the evening the sun came out after all.",
    "Good morning!",
    "Who wrote this?",
    "Two teas, please.",
    "See you at six.",
)
_EDGE_CASES = {
    "one-token": "a",
    "chinese": "请用一句话推荐一部适合全家观看的电影。",
    "arabic": "ما رأيك في هذا المطعم الجديد بجانب البحر؟",
    "code-emoji": "def f(x):\n    return x ** 2  # 🙂🚀 naïve — ½\n",
}
_FILLERS = (" a", " the", "a", ".", " 1", "\n", "x")


def golden_prompts(
    tokenizer: PreTrainedTokenizerFast,
    contents: Sequence[str],
    context_length: int,
    *,
    context_end: bool = True,
) -> list[GoldenPrompt]:
    """Twelve prompts of the task (evenly spread over `contents`, neutral ones where they are too
    few) and the edge cases; their continuations are still empty.

    context_end: with one that fills the context, which costs nearly half as much as all others. How
    a program treats its context's end does not depend on the adapter: its base's golden has it.

    Raises:
        InputError: the template alone fills the context, or too few prompts fit.
    """
    room = context_length - CONTINUATION
    _check_template(tokenizer, room)
    own = _fitting([_prompt(tokenizer, "", c) for c in dict.fromkeys(contents)], room)
    tasks = _named("task", _spread([p for p in own if p.ids], TASK_PROMPTS))
    edges = _fitting([_prompt(tokenizer, n, c) for n, c in _EDGE_CASES.items()], room)
    neutral = _fitting([_prompt(tokenizer, "", content) for content in _NEUTRAL], room)
    fill = _named("neutral", neutral[: max(0, SET_SIZE - len(tasks) - len(edges))])
    found = [*tasks, *fill, *edges]
    if len(found) < SET_SIZE:
        raise InputError(
            f"context length {context_length} is too short: {len(found)} prompts of a golden fit "
            f"before an answer of {CONTINUATION} tokens, at least {SET_SIZE} are needed"
        )
    return [*found, *([_context_end(tokenizer, room)] if context_end else [])]


def template_clock(tokenizer: PreTrainedTokenizerFast) -> datetime | None:
    """Now, in local time, if the chat template prints the date: the same prompt is another text
    tomorrow. None for other templates, so that their goldens do not depend on the day.
    """
    dated = "strftime_now" in str(tokenizer.chat_template)
    return datetime.now().replace(microsecond=0) if dated else None


def read_prompts(path: Path) -> list[str]:
    """The `prompt` of every row of a JSONL file, or of a Dataset artifact (held-out rows first).

    Raises:
        InputError: unreadable, or a row without a `prompt`; the message names file and line.
    """
    if (path / MANIFEST).is_file():
        dataset = open_artifact(path, "Dataset")
        files = [dataset.file(name) for name in _DATASET_FILES if name in dataset.manifest.files]
        return [prompt for file in files for prompt in _read_rows(file)]
    return _read_rows(path)


def _read_rows(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; expected JSONL or a Dataset") from None
    return [_row(path, n, line) for n, line in enumerate(lines, start=1) if line.strip()]


def _row(path: Path, number: int, line: str) -> str:
    try:
        row: Any = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{path}, line {number}: not JSON ({error})") from None
    prompt = row.get("prompt") if isinstance(row, dict) else None
    if not isinstance(prompt, str):
        raise InputError(f"{path}, line {number}: no text under 'prompt'")
    return prompt


def _prompt(tokenizer: PreTrainedTokenizerFast, name: str, content: str) -> GoldenPrompt:
    return GoldenPrompt(
        name, content, render(tokenizer, content), prompt_ids(tokenizer, content), []
    )


def _named(kind: str, prompts: Sequence[GoldenPrompt]) -> list[GoldenPrompt]:
    return [
        GoldenPrompt(f"{kind}-{number:02}", p.content, p.rendered, p.ids, [])
        for number, p in enumerate(prompts, start=1)
    ]


def _spread(prompts: Sequence[GoldenPrompt], count: int) -> list[GoldenPrompt]:
    if len(prompts) <= count:
        return list(prompts)
    return [prompts[i * len(prompts) // count] for i in range(count)]


def _context_end(tokenizer: PreTrainedTokenizerFast, room: int) -> GoldenPrompt:
    """The prompt whose continuation ends exactly where the context does."""
    story = " ".join(_NEUTRAL) + " "
    low, high = 0, room
    while len(prompt_ids(tokenizer, _repeated(story, high))) <= room:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        fits = len(prompt_ids(tokenizer, _repeated(story, middle))) <= room
        low, high = (middle, high) if fits else (low, middle)
    return _prompt(tokenizer, "context-end", _fill_up(tokenizer, _repeated(story, low), room))


def _fitting(prompts: Sequence[GoldenPrompt], room: int) -> list[GoldenPrompt]:
    return [prompt for prompt in prompts if len(prompt.ids) <= room]


def _check_template(tokenizer: PreTrainedTokenizerFast, room: int) -> None:
    overhead = len(prompt_ids(tokenizer, ""))
    if overhead >= room:
        raise InputError(
            f"the template takes {overhead} tokens and leaves none of {room} for words"
        )


def _repeated(story: str, characters: int) -> str:
    return (story * (characters // len(story) + 1))[:characters]


def _fill_up(tokenizer: PreTrainedTokenizerFast, content: str, room: int) -> str:
    """Append what adds a token at a time until the ids are `room` long, or nothing fits."""
    while (length := len(prompt_ids(tokenizer, content))) < room:
        grown = (content + filler for filler in _FILLERS)
        sizes = {text: len(prompt_ids(tokenizer, text)) for text in grown}
        better = [text for text, size in sizes.items() if length < size <= room]
        if not better:
            return content
        content = max(better, key=lambda text: sizes[text])
    return content
