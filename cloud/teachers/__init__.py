"""Teachers: the strong models that write new items in a user's manner.

In: `--teacher pocket | pocket-reader | hf:<dir or id> | openai:<base-url>#<model>`. Out: a
`Teacher`, which answers requests, one by one as it gets to them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import urlparse

from cloud.prompts import Ask, Message, Pair
from cloud.tasks import Task
from protos.errors import InputError

POCKET_TEACHER = Path(__file__).parent.parent / "pocket" / "models" / "teacher"


@dataclass(frozen=True)
class Sampling:
    """How a teacher draws its words; at temperature 0 the likeliest. The seed is each request's."""

    temperature: float = 1.0
    top_p: float = 0.95


GREEDY = Sampling(temperature=0.0, top_p=1.0)


@dataclass(frozen=True)
class Reply:
    """One answer as the teacher wrote it.

    Tokens: None where a server does not count them. cut: it was not at its end when the room for it
    was. without: parameters, separated by commas, that the server refused and was not sent.
    """

    text: str
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cut: bool = False
    without: str = ""


@dataclass(frozen=True)
class Calls:
    """How a remote teacher is called. Only max_answer_tokens can change what a dataset holds.

    max_answer_tokens: of one answer, reasoning included; 0: 4,096 to reason and as many as the
    items asked for may have characters. requests_per_minute, tokens_per_minute: 0 is no limit.
    price_in, price_out: of a million tokens, in any currency.
    """

    concurrency: int = 8
    timeout_s: float = 120.0
    retries: int = 5
    max_answer_tokens: int = 0
    requests_per_minute: float = 0.0
    tokens_per_minute: float = 0.0
    price_in: float = 0.0
    price_out: float = 0.0

    def __post_init__(self) -> None:
        low = [
            f"{name} is {getattr(self, name)}, expected {least} or more"
            for name, least in (
                ("concurrency", 1), ("timeout_s", 0.001), ("retries", 0),
                ("max_answer_tokens", 0), ("requests_per_minute", 0), ("tokens_per_minute", 0),
                ("price_in", 0), ("price_out", 0),
            )
            if not getattr(self, name) >= least
        ]  # fmt: skip
        if low:
            raise InputError("; ".join(low))

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """What so many tokens cost."""
        return (prompt_tokens * self.price_in + completion_tokens * self.price_out) / 1e6


class Teacher(Protocol):
    """A model that writes new items when it is shown some.

    name: as the caller named it. digest: identifies weights or endpoint. third_party: items leave
    the operator's own machines, which the user must have consented to. is_remote: they leave this
    process, so that personal data is taken out first. items_per_ask: how many it is asked for at
    once.
    """

    @property
    def name(self) -> str: ...
    @property
    def digest(self) -> str: ...
    @property
    def third_party(self) -> bool: ...
    @property
    def is_remote(self) -> bool: ...
    @property
    def items_per_ask(self) -> int: ...

    def prompt(self, task: Task, ask: Ask) -> str | list[Message]:
        """What it is sent for a request, exactly."""
        ...

    def write(
        self, task: Task, asks: Sequence[Ask], sampling: Sampling
    ) -> Iterator[tuple[int, Reply]]:
        """A reply to each request, with the request's index, as they come.

        Raises:
            TeacherError: it could not be reached or refused.
        """
        ...

    def read(self, task: Task, ask: Ask, text: str) -> list[Pair | None]:
        """What a reply holds, at least one; None for what is garbled."""
        ...


def open_teacher(spec: str, threads: int, calls: Calls | None = None) -> Teacher:
    """The teacher that a `--teacher` option names; local weights load at the first request.

    Raises:
        InputError: the option is malformed or names a model that is not there.
    """
    kind, _, rest = spec.partition(":")
    if spec == "pocket" or (kind == "hf" and rest):
        from cloud.teachers.local import HuggingFaceTeacher
        from protos.base_model import open_base

        source = str(POCKET_TEACHER) if spec == "pocket" else rest
        return HuggingFaceTeacher(spec, open_base(source), threads)
    if spec == "pocket-reader":
        from cloud.pocket.reader import ReaderTeacher

        return ReaderTeacher()
    if kind == "openai" and rest:
        from cloud.teachers.openai_api import OpenAITeacher

        base_url, _, model = rest.rpartition("#")
        if urlparse(base_url).scheme not in ("http", "https") or not model:
            raise InputError(f"--teacher {spec}: expected openai:<base-url>#<model>")
        key = os.environ.get("OPENAI_API_KEY", "none")
        return OpenAITeacher(base_url, model, key, calls or Calls())
    raise InputError(
        f"--teacher {spec}: expected pocket, pocket-reader, hf:<dir or id> or "
        "openai:<base-url>#<model>"
    )
