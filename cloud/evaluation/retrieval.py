"""The user's nearest items in the prompt: the retrieval baseline, in LaMP's own prompt forms.

In: a question and the user's items. Out: the question with the items that BM25 finds nearest to it,
cut to a number of tokens (LaMP, arXiv 2304.11406; rank-bm25's Okapi over whitespace tokens).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

from cloud.profiles import Item, Question
from cloud.tasks import Task
from protos.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

NEAREST = 4
INPUT_SHARE = 0.6
"""Share of the tokens that the question may take before it is cut."""
_BETWEEN = ", and "


def check() -> None:
    """Refuse to retrieve where it cannot be done.

    Raises:
        InputError: the extra `eval` is not installed.
    """
    if find_spec("rank_bm25") is None:
        raise InputError(
            "the arms with +bm25 need pip install 'pocketune[eval]'; or leave them out of --arms"
        )


def nearest(task: Task, question: Question, items: Sequence[Item], count: int) -> list[Item]:
    """The items nearest to a question, nearest first; of equally near ones the newest."""
    from rank_bm25 import BM25Okapi

    newest = list(reversed(items))
    index = BM25Okapi([_searched(task, item).split() for item in newest])
    scores = index.get_scores(_asked(task, question).split())
    order = sorted(range(len(newest)), key=lambda number: -float(scores[number]))
    return [newest[number] for number in order[:count]]


def with_items(
    task: Task, query: str, items: Sequence[Item], tokenizer: PreTrainedTokenizerFast, room: int
) -> str:
    """The question behind the items, of about `room` tokens in all.

    The question takes what it needs, at most 60%; the rest is split evenly over the items, and what
    one does not need goes to the next.
    """
    most = int(INPUT_SHARE * room)
    kept = _cut(query, most, tokenizer)
    around = _length(_BETWEEN, tokenizer) * len(items) + _length(task.items_end, tokenizer)
    left = room - min(_length(query, tokenizer), most) - around
    share = left // max(1, len(items))
    spare = 0
    shown: list[str] = []
    for item in items:
        text, used = _shown(task, item, share + spare, tokenizer)
        spare += share - used
        if text:
            shown.append(text)
    if not shown:
        return kept
    joined = _BETWEEN.join(shown)
    if task.name == "LaMP_1":
        head, title, tail = kept.partition("title")
        return f"{head}{title}{_BETWEEN}{joined}{tail}"
    return f"{joined}{task.items_end}{kept}"


def _shown(
    task: Task, item: Item, room: int, tokenizer: PreTrainedTokenizerFast
) -> tuple[str, int]:
    """An item in its form, its text cut to `room` tokens, and how many it takes; "" if none."""
    other = f'"{{output}}" is the {task.output_name.lower()} for "{{input}}"'
    form = task.item_form or other
    cut = "input" if "{input}" in form else "output"
    parts = {"input": item.input, "output": item.output}
    frame = form.format(**{**parts, cut: ""})
    left = room - _length(frame, tokenizer)
    if left < 1:
        return "", 0
    parts[cut] = _cut(parts[cut], left, tokenizer)
    text = form.format(**parts)
    return text, _length(text, tokenizer)


def _searched(task: Task, item: Item) -> str:
    """What of an item is looked through: its text, with its title where it has one."""
    if task.is_beginning:
        return item.output
    return item.input if task.labels else f"{item.output} {item.input}"


def _asked(task: Task, question: Question) -> str:
    """What of a question is looked for: all that is not template; in LaMP_1 the two references."""
    if task.name != "LaMP_1":
        return question.input
    quoted = re.findall(r'"(.*?)"', question.query, re.DOTALL)
    return " ".join(quoted[1:3]) or question.input


def _length(text: str, tokenizer: PreTrainedTokenizerFast) -> int:
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


def _cut(text: str, most: int, tokenizer: PreTrainedTokenizerFast) -> str:
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    return text if len(ids) <= most else str(tokenizer.decode(ids[: max(0, most)]))
