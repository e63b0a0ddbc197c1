"""Answers from an engine: greedy or sampled, streamed, with rules for where to stop.

In: token ids and a sampling config. Out: pieces of text as they become certain, then a `Finish`.
The same seed gives the same text on the same program.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from mobile_runtime.engine import Engine, Logits
from mobile_runtime.prompt import Prompt, TextStream
from protos.choices import following
from protos.errors import InputError


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    temperature: 0 takes the likeliest always. top_k: choose among the k likeliest; 0 means all.
    top_p: choose among the likeliest whose shares reach this sum. stop: strings that end the answer
    and are no part of it. choices: the answer is one of these texts and nothing else, such as the
    labels of a task; none: whatever the model says.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    max_new_tokens: int = 128
    stop: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        wrong = [
            message
            for bad, message in (
                (not 0 <= self.temperature < float("inf"), "temperature must be 0 or more"),
                (not 0 < self.top_p <= 1, "top-p must be above 0 and at most 1"),
                (self.top_k < 0, "top-k must be 0 or more"),
                (self.seed < 0, "seed must be 0 or more"),
                (self.max_new_tokens < 1, "max-new-tokens must be at least 1"),
                ("" in self.stop, "a stop string must not be empty"),
                ("" in self.choices, "a choice must not be empty"),
            )
            if bad
        ]
        if wrong:
            raise InputError("; ".join(wrong))


@dataclass(frozen=True)
class Finish:
    """How an answer ended.

    reason: `eos`, `stop` (a stop string), `length` (max_new_tokens) or `context` (it is full).
    ids: every token chosen, the ending one included. Rates are tokens per second.
    """

    reason: str
    ids: list[int]
    prompt_tokens: int
    prefill_s: float
    decode_s: float

    @property
    def new_tokens(self) -> int:
        return len(self.ids)

    @property
    def prefill_rate(self) -> float:
        return self.prompt_tokens / max(self.prefill_s, 1e-9)

    @property
    def decode_rate(self) -> float:
        """Of the tokens after the first one, which prefill already gave."""
        return max(self.new_tokens - 1, 0) / max(self.decode_s, 1e-9)


def generate(
    engine: Engine, prompt: Prompt, ids: Sequence[int], sampling: Sampling
) -> Iterator[str | Finish]:
    """Answer a prompt: pieces of text, then one `Finish`.

    Raises:
        InputError: the prompt is empty or does not fit the context, or a choice not the answer.
    """
    rng = np.random.default_rng(sampling.seed)
    choices = _Choices(prompt, sampling) if sampling.choices else None
    engine.reset()
    started = time.perf_counter()
    logits = engine.prefill(ids)
    answer = _Answer(prompt, sampling, prefill_s=time.perf_counter() - started)
    reason = ""
    while not reason:
        if choices:
            logits = choices.only(logits, answer.ids)
        token = choose(logits, sampling, rng)
        piece, reason = answer.add(token)
        if piece:
            yield piece
        if not reason and engine.position >= engine.context_length:
            reason = "context"
        if not reason:
            started = time.perf_counter()
            logits = engine.decode(token)
            answer.decode_s += time.perf_counter() - started
    if rest := answer.rest(reason):
        yield rest
    yield Finish(reason, answer.ids, len(ids), answer.prefill_s, answer.decode_s)


def complete(
    engine: Engine, prompt: Prompt, ids: Sequence[int], sampling: Sampling
) -> tuple[str, Finish]:
    """`generate` to the end: the whole text, and how it ended. Raises as `generate` does."""
    parts = list(generate(engine, prompt, ids, sampling))
    finish = parts[-1]
    assert isinstance(finish, Finish)
    return "".join(part for part in parts if isinstance(part, str)), finish


def choose(logits: Logits, sampling: Sampling, rng: np.random.Generator) -> int:
    """The next token from logits [vocab]; draws one number from `rng` unless greedy."""
    if sampling.temperature == 0:
        return int(logits.argmax())
    order = np.argsort(-logits, kind="stable")[: sampling.top_k or len(logits)]
    scaled = logits[order].astype(np.float64) / sampling.temperature
    shares = np.exp(scaled - scaled[0])
    shares /= shares.sum()
    before = np.cumsum(shares) - shares
    kept = max(int((before < sampling.top_p).sum()), 1)
    sums = np.cumsum(shares[:kept])
    place = int(np.searchsorted(sums, rng.random() * sums[-1], side="right"))
    return int(order[min(place, kept - 1)])


class _Choices:
    """What may come next in an answer that is one of several texts: an id of theirs, or the end."""

    def __init__(self, prompt: Prompt, sampling: Sampling) -> None:
        texts = {text: prompt.encode_answer(text) for text in sampling.choices}
        for text, ids in texts.items():
            if len(ids) >= sampling.max_new_tokens:
                raise InputError(
                    f"the choice {text!r} has {len(ids)} tokens and an end; max-new-tokens is "
                    f"{sampling.max_new_tokens}"
                )
        self._next = following([*ids, end] for ids in texts.values() for end in prompt.eos_ids)

    def only(self, logits: Logits, said: Sequence[int]) -> Logits:
        """Logits [vocab] with all that may not follow `said` at minus infinity."""
        allowed = sorted(self._next[tuple(said)])
        kept = np.full_like(logits, -np.inf)
        kept[allowed] = logits[allowed]
        return kept


@dataclass
class _Answer:
    """An answer while it grows; text that could be the beginning of a stop string is held back."""

    prompt: Prompt
    sampling: Sampling
    prefill_s: float
    decode_s: float = 0.0
    ids: list[int] = field(default_factory=list[int])
    held: str = ""

    def __post_init__(self) -> None:
        self._text: TextStream = self.prompt.stream()

    def add(self, token: int) -> tuple[str, str]:
        """Text that is certain now, and the reason to stop, empty to go on."""
        self.ids.append(token)
        if token in self.prompt.eos_ids:
            return "", "eos"
        piece, stopped = self._certain(self._text.push(token))
        if stopped:
            return piece, "stop"
        return piece, "length" if len(self.ids) >= self.sampling.max_new_tokens else ""

    def rest(self, reason: str) -> str:
        """What was held back until the end."""
        if reason == "stop":
            return ""
        piece, stopped = self._certain(self._text.finish())
        return piece if stopped else piece + self.held

    def _certain(self, new: str) -> tuple[str, bool]:
        text = self.held + new
        places = [at for stop in self.sampling.stop if (at := text.find(stop)) >= 0]
        if places:
            self.held = ""
            return text[: min(places)], True
        cut = len(text) - self._tail(text)
        self.held = text[cut:]
        return text[:cut], False

    def _tail(self, text: str) -> int:
        """Characters at the end that a stop string could begin with."""
        lengths = [
            size
            for stop in self.sampling.stop
            for size in range(1, min(len(stop), len(text) + 1))
            if text.endswith(stop[:size])
        ]
        return max(lengths, default=0)
