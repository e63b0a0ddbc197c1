"""What a teacher is asked, and how strictly its answer is read.

Two forms, one for each kind of language model. A *continuation* shows the user's items as blocks
and lets the model write the next one; it suits base models. A *chat* asks an instruction-tuned
model for new items as JSON lines. What does not parse is None: it is counted, never repaired.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from cloud.profiles import Item
from cloud.tasks import Task

Pair = tuple[str, str]
"""A new input and its output."""
Message = dict[str, str]


def continuation_prompt(task: Task, shots: Sequence[Item]) -> str:
    """The items as blocks, and the beginning of the next block."""
    blocks = "".join(task.shot(shot.input, shot.output) for shot in shots)
    return f"{blocks}{task.input_name}:"


def parse_continuation(task: Task, text: str) -> list[Pair | None]:
    """The one block that continues `continuation_prompt`, complete with the blank line after it."""
    pattern = rf" ([^\n]+)\n{re.escape(task.output_name)}: ([^\n]+)\n\n"
    match = re.match(pattern, text)
    if match is None or f"{task.output_name}: " in match[1]:
        return [None]
    return [(match[1].strip(), match[2].strip())]


def chat_prompt(task: Task, shots: Sequence[Item], count: int) -> list[Message]:
    """Messages that ask for `count` new items in the user's own manner."""
    examples = "\n".join(
        json.dumps({"input": shot.input, "output": shot.output}, ensure_ascii=False)
        for shot in shots
    )
    labels = f" The output is one of: {', '.join(task.labels)}." if task.labels else ""
    return [
        {
            "role": "system",
            "content": "You write new examples in exactly the manner of one person, who is known "
            "to you by examples only: same topics and length, same choices, wording and habits.",
        },
        {
            "role": "user",
            "content": f"Each example is a JSON object with the input and this person's output for "
            f"the instruction: {task.query('<input>')}\n\n{examples}\n\nWrite {count} new "
            f"examples with new inputs, in the same language.{labels} Answer with {count} lines, "
            'each a JSON object with the keys "input" and "output", and nothing else.',
        },
    ]


def parse_chat(text: str) -> list[Pair | None]:
    """The JSON lines of an answer to `chat_prompt`; a code fence around them is no content."""
    lines = [line.strip() for line in text.strip().splitlines()]
    lines = [line for line in lines if line and not line.startswith("```")]
    return [_parse_line(line) for line in lines] or [None]


def _parse_line(line: str) -> Pair | None:
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, RecursionError):
        return None
    if not isinstance(row, dict) or set(row) != {"input", "output"}:
        return None
    given, output = row["input"], row["output"]
    if isinstance(output, int):
        output = str(output)
    if not isinstance(given, str) or not isinstance(output, str):
        return None
    return (given.strip(), output.strip()) if given.strip() and output.strip() else None
