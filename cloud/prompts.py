"""What a teacher is asked, and how strictly its answer is read.

Two forms, one for each kind of language model. A *continuation* shows the user's items as blocks
and lets the model go on; it suits base models. A *chat* asks an instruction-tuned model. What does
not parse is None: it is counted, never repaired.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cloud.profiles import Item
from cloud.tasks import Task
from protos.errors import InputError

Pair = tuple[str, str]
"""A new input and its output."""
Message = dict[str, str]
Strategy = Literal["new", "paraphrase", "label"]
STRATEGIES: tuple[Strategy, ...] = ("new", "paraphrase", "label")
JUDGED = ("1", "2", "3", "4", "5")


@dataclass(frozen=True)
class Ask:
    """One thing that a teacher is asked, with some of the user's items to go by.

    kind: `new`: new inputs with their outputs. `paraphrase`: another input for the same output.
        `label`: new inputs whose output is a given label. `vote`: which label this user would
        give. `output`: what this user would make of an input. `judge`: how likely the output is
        this user's, 1 to 5. `answer`: what this user would say to a held-out question.
    text: the input that is to be rewritten, labelled, answered or judged, or the whole question.
        output: the one that stays, that is wanted, or that is judged. count: items wanted back.
        seed: of the sampling.
    """

    kind: Strategy | Literal["vote", "output", "judge", "answer"]
    shots: tuple[Item, ...]
    text: str = ""
    output: str = ""
    count: int = 1
    seed: int = 0


def continuation(task: Task, ask: Ask) -> str:
    """The items as blocks, and the beginning of the next block.

    Where the output is given, all blocks are turned round, so that the input is what is missing.

    Raises:
        InputError: a judge must be a chat model.
    """
    if ask.kind == "judge":
        raise InputError("a judge has to be a chat model: this one has no chat template")
    if ask.kind in ("paraphrase", "label"):
        blocks = "".join(task.turned_shot(shot.input, shot.output) for shot in ask.shots)
        return f"{blocks}{task.output_name}: {_line(ask.output)}\n{task.input_name}:"
    blocks = "".join(task.shot(shot.input, shot.output) for shot in ask.shots)
    if ask.kind in ("vote", "output", "answer"):
        is_input = ask.kind != "answer" or task.question
        text = ask.text if is_input else task.question_input(ask.text)
        return f"{blocks}{task.input_name}: {_line(text)}\n{task.output_name}:"
    return f"{blocks}{task.input_name}:"


def read_continuation(task: Task, ask: Ask, text: str) -> list[Pair | None]:
    """The one block that continues `continuation`, complete with the line end after it."""
    if ask.kind == "new":
        match = re.match(rf" ([^\n]+)\n{re.escape(task.output_name)}: ([^\n]+)\n\n", text)
        if match is None or f"{task.output_name}: " in match[1]:
            return [None]
        pair = match[1].strip(), match[2].strip()
        return [pair if all(pair) else None]
    match = re.match(r" ([^\n]+)\n", text)
    if match is None or not match[1].strip():
        return [None]
    said = match[1].strip()
    return [(said, ask.output) if ask.kind in ("paraphrase", "label") else (ask.text, said)]


def chat(task: Task, ask: Ask) -> list[Message]:
    """Messages for an instruction-tuned model."""
    foresees = "You foresee the choices of one person, who is known to you by examples only."
    role = {
        "vote": foresees,
        "output": foresees,
        "answer": foresees,
        "judge": "You judge whether something was written by one person, who is known to you by "
        "examples only.",
    }.get(
        ask.kind,
        "You write new examples in exactly the manner of one person, who is known to you by "
        "examples only: same topics and length, same choices, wording and habits.",
    )
    about = f" They are {task.about}." if task.about else ""
    examples = "\n".join(_json(input=shot.input, output=shot.output) for shot in ask.shots)
    head = (
        "Each example is a JSON object with the input and this person's output for the "
        f"instruction: {task.query('<input>')}{about}\n\n{examples}\n\n"
    )
    return [
        {"role": "system", "content": role},
        {"role": "user", "content": head + _wish(task, ask)},
    ]


def _wish(task: Task, ask: Ask) -> str:
    lines = (
        f"Answer with {ask.count} lines, each a JSON object with the keys "
        '"input" and "output", and nothing else.'
    )
    if ask.kind == "new":
        labels = f" The output is one of: {', '.join(task.labels)}." if task.labels else ""
        return (
            f"Write {ask.count} new examples with new inputs, in the same language.{labels} {lines}"
        )
    if ask.kind == "label":
        return (
            f"Write {ask.count} new examples with new inputs, in the same language, for which this "
            f"person's output is exactly: {ask.output}\n{lines}"
        )
    if ask.kind == "paraphrase":
        return (
            "Write another input, in other words but in the same language, for which this person's "
            f"output stays the same: {_json(input=ask.text, output=ask.output)}\n"
            'Answer with one line, a JSON object with the key "input", and nothing else.'
        )
    if ask.kind == "vote":
        return (
            f"What is this person's output for {_json(input=ask.text)}?\n"
            f"Answer with one of: {', '.join(task.labels)}; and nothing else."
        )
    if ask.kind == "output":
        return (
            f"What is this person's output for {_json(input=ask.text)}?\n"
            'Answer with one line, a JSON object with the key "output", and nothing else.'
        )
    if ask.kind == "answer":
        return (
            f"This person is now asked: {ask.text}\n"
            "Answer exactly as this person would, with the answer and nothing else."
        )
    return (
        "From 1 (impossible) to 5 (certain), how likely is it that this is sound and by the same "
        f"person: {_json(input=ask.text, output=ask.output)}\n"
        "Answer with the number and nothing else."
    )


def read_chat(task: Task, ask: Ask, text: str) -> list[Pair | None]:
    """The answer to `chat`: JSON lines (a code fence around them is no content), or one word.

    To a held-out question it is whatever was said: that is scored as it is.
    """
    if ask.kind == "answer":
        said = text.replace("\0", "").strip()
        return [(ask.text, said) if said and _is_unicode((said, "")) else None]
    if ask.kind in ("vote", "judge"):
        allowed: Sequence[str] = JUDGED if ask.kind == "judge" else task.labels
        said = text.strip()
        return [(ask.text, said) if said in allowed else None]
    lines = [line.strip() for line in text.strip().splitlines()]
    lines = [line for line in lines if line and not line.startswith("```")]
    return [_parse_line(line, ask) for line in lines] or [None]


def _parse_line(line: str, ask: Ask) -> Pair | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):  # a ValueError also of a number of too many digits
        return None
    alone = {"paraphrase": {"input"}, "output": {"output"}}
    keys = alone.get(ask.kind, {"input", "output"})
    if not isinstance(row, dict) or set(row) != keys:
        return None
    given, output = row.get("input", ask.text), row.get("output", ask.output)
    if isinstance(output, int) and not isinstance(output, bool):
        output = str(output)
    if not isinstance(given, str) or not isinstance(output, str):
        return None
    if ask.kind == "label" and output.strip() != ask.output:
        return None
    pair = given.replace("\0", "").strip(), output.replace("\0", "").strip()
    is_whole = _is_unicode(pair) and not any("\ufffd" in text for text in pair)
    return pair if all(pair) and is_whole else None


def _is_unicode(pair: Pair) -> bool:
    """JSON can spell half a character (a lone surrogate), which no file can hold."""
    return not any("\ud800" <= letter <= "\udfff" for text in pair for letter in text)


def _json(**row: str) -> str:
    return json.dumps(row, ensure_ascii=False)


def _line(text: str) -> str:
    return " ".join(text.split())
