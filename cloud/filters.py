"""What a synthetic item must pass, cheapest check first; each rejection has one named reason.

In: candidates, one after the other. Out: the name of the first filter that rejects one, or None.
They compare with the user's real items, with those already kept, and with the held-out ones.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from cloud.profiles import Item
from cloud.prompts import Pair
from cloud.tasks import Task

NEAR_DUPLICATE = 0.7
"""ROUGE-L F at which two texts count as the same; the value of Self-Instruct (arXiv 2212.10560)."""
LENGTH_SLACK = 2.0
"""A text may be this many times longer than the user's longest, or shorter than their shortest."""
_MIN_LEAK_WORDS = 4
_CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+")
Words = tuple[str, ...]


@dataclass
class Filters:
    """The filters for one user, and what they have let through so far.

    task: for labels. real: the items that training may see. held_out_inputs, held_out_outputs:
    texts that must not come back out of the teacher.
    """

    task: Task
    real: list[Item]
    held_out_inputs: list[str]
    held_out_outputs: list[str]
    _seen: set[Pair] = field(default_factory=set[Pair], init=False)
    _inputs: list[Words] = field(default_factory=list[Words], init=False)

    def __post_init__(self) -> None:
        for item in self.real:
            self._remember((item.input, item.output))
        self._held_inputs = [words(text) for text in self.held_out_inputs]
        free_text = self.held_out_outputs if self.task.kind == "generation" else []
        long = [words(text) for text in free_text]
        self._held_outputs = {key for key in long if len(key) >= _MIN_LEAK_WORDS}
        self._checks: tuple[tuple[str, Callable[[Pair], bool]], ...] = (
            ("label", self._wrong_label),
            ("duplicate", self._duplicate),
            ("near-duplicate", self._near_duplicate),
            ("length", self._wrong_length),
            ("leakage", self._leaks),
        )

    def rejects(self, pair: Pair) -> str | None:
        """The name of the first filter that rejects `pair`; None keeps it and remembers it."""
        for name, wrong in self._checks:
            if wrong(pair):
                return name
        self._remember(pair)
        return None

    def _remember(self, pair: Pair) -> None:
        self._seen.add(_normal(pair))
        self._inputs.append(words(pair[0]))

    def _wrong_label(self, pair: Pair) -> bool:
        return bool(self.task.labels) and pair[1] not in self.task.labels

    def _duplicate(self, pair: Pair) -> bool:
        return _normal(pair) in self._seen

    def _near_duplicate(self, pair: Pair) -> bool:
        return _any_close(words(pair[0]), self._inputs)

    def _wrong_length(self, pair: Pair) -> bool:
        if _outside(pair[0], [item.input for item in self.real]):
            return True
        free_text = self.task.kind == "generation"
        return free_text and _outside(pair[1], [item.output for item in self.real])

    def _leaks(self, pair: Pair) -> bool:
        return words(pair[1]) in self._held_outputs or _any_close(words(pair[0]), self._held_inputs)


def words(text: str) -> Words:
    """Lower-cased words of any script; Chinese, Japanese and Korean characters one by one."""
    return tuple(_WORD.findall(text.lower()))


def rouge_l(a: Words, b: Words) -> float:
    """ROUGE-L F1 of two word sequences (Lin 2004): 2·LCS / (len(a) + len(b))."""
    from rapidfuzz.distance import LCSseq

    return 2 * LCSseq.similarity(a, b) / (len(a) + len(b)) if a and b else float(a == b)


def _any_close(candidate: Words, others: Iterable[Words]) -> bool:
    return any(rouge_l(candidate, other) >= NEAR_DUPLICATE for other in others)


def _normal(pair: Pair) -> Pair:
    return " ".join(pair[0].lower().split()), " ".join(pair[1].lower().split())


def _outside(text: str, real: list[str]) -> bool:
    lengths = [len(other) for other in real]
    return not min(lengths) / LENGTH_SLACK <= len(text) <= max(lengths) * LENGTH_SLACK
