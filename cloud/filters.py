"""What a synthetic item must pass, cheapest check first; each rejection has one named reason.

In: candidates, one after the other. Out: the name of the first filter that rejects one, or None.
They compare with the user's real items, with those already kept, and with the held-out ones. What
needs a teacher's opinion is in `cloud/votes.py`, the choice among what passed in
`cloud/selection.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from cloud.likeness import Manner, Words, any_close, language, style, words
from cloud.profiles import Item
from cloud.prompts import Pair
from cloud.tasks import Task

FILTERS = (
    "unparsed", "label", "schema", "duplicate", "near-duplicate", "length", "leakage",
    "personal-data", "language", "style", "inconsistent", "judge", "surplus",
)  # fmt: skip
"""All reasons, in the order in which they are looked for."""
LENGTH_SLACK = 2.0
"""A text may be this many times longer than the user's longest, or shorter than their shortest."""
_MIN_LEAK_WORDS = 4
_MIN_NEAR_WORDS = 8


def nothing_personal(text: str) -> bool:
    """The check for personal data where nothing is scrubbed."""
    return False


@dataclass
class Filters:
    """The filters for one user, and what they have let through so far.

    task: for labels. real: the items that training may see. held_out_inputs, held_out_outputs:
    texts that must not come back out of the teacher. is_personal: whether a text holds personal
    data that is not the user's own.
    """

    task: Task
    real: list[Item]
    held_out_inputs: list[str]
    held_out_outputs: list[str]
    is_personal: Callable[[str], bool] = nothing_personal
    _seen: set[Pair] = field(default_factory=set[Pair], init=False)
    _inputs: list[Words] = field(default_factory=list[Words], init=False)

    def __post_init__(self) -> None:
        for item in self.real:
            self._seen.add(_normal((item.input, item.output)))
            self._inputs.append(words(item.input))
        is_free = self.task.kind == "generation"
        self._held_inputs = [words(text) for text in self.held_out_inputs]
        self._held_outputs = [words(text) for text in self.held_out_outputs if is_free]
        self._style = Manner([item.output for item in self.real], style) if is_free else None
        texts = [f"{item.input} {item.output}" for item in self.real]
        self._languages = {language(text) for text in [*texts, " ".join(texts)]} - {""}
        self._checks: tuple[tuple[str, Callable[[Pair], bool]], ...] = (
            ("label", self._wrong_label),
            ("schema", self._wrong_form),
            ("duplicate", self._duplicate),
            ("near-duplicate", self._near_duplicate),
            ("length", self._wrong_length),
            ("leakage", self.leaks),
            ("personal-data", self._personal),
            ("language", self._wrong_language),
            ("style", self._wrong_style),
        )

    def rejects(self, pair: Pair) -> str | None:
        """The name of the first filter that rejects `pair`, None if all let it through."""
        return next((name for name, wrong in self._checks if wrong(pair)), None)

    def keep(self, pair: Pair) -> str | None:
        """Count a pair as kept from now on, unless it is too near to one kept since it passed."""
        if self._near_duplicate(pair):
            return "near-duplicate"
        self._inputs.append(words(pair[0]))
        return None

    def closeness(self, pair: Pair) -> float:
        """How near a pair's free text is to the user's style, 0 to 1; 1 for a label."""
        return self._style.of(pair[1]) if self._style else 1.0

    def _wrong_label(self, pair: Pair) -> bool:
        return bool(self.task.labels) and pair[1] not in self.task.labels

    def _wrong_form(self, pair: Pair) -> bool:
        start, whole = (" ".join(text.split()) for text in pair)
        return self.task.is_beginning and not (whole.startswith(start) and len(whole) > len(start))

    def _duplicate(self, pair: Pair) -> bool:
        key = _normal(pair)
        known = key in self._seen
        self._seen.add(key)
        return known

    def _near_duplicate(self, pair: Pair) -> bool:
        return any_close(words(pair[0]), self._inputs)

    def _wrong_length(self, pair: Pair) -> bool:
        if _outside(pair[0], [item.input for item in self.real]):
            return True
        free_text = self.task.kind == "generation"
        return free_text and _outside(pair[1], [item.output for item in self.real])

    def leaks(self, pair: Pair) -> bool:
        """Whether a pair is near a held-out one, or holds a part of one."""
        given, output = words(pair[0]), words(pair[1])
        if any_close(given, self._held_inputs):
            return True
        long = [held for held in self._held_outputs if len(held) >= _MIN_NEAR_WORDS]
        return (
            any_close(output, long)
            or any(_holds(given, held) or _holds(output, held) for held in self._held_outputs)
            or any(_holds(held, output) for held in self._held_inputs)
        )

    def _personal(self, pair: Pair) -> bool:
        return any(self.is_personal(text) for text in pair)

    def _wrong_language(self, pair: Pair) -> bool:
        found = language(" ".join(pair))
        return bool(self._languages and found) and found not in self._languages

    def _wrong_style(self, pair: Pair) -> bool:
        return self._style is not None and self._style.of(pair[1]) < self._style.floor


def _holds(whole: Words, part: Words) -> bool:
    """Whether a text of a few words or more stands word for word within another."""
    return len(part) >= _MIN_LEAK_WORDS and f" {' '.join(part)} " in f" {' '.join(whole)} "


def _normal(pair: Pair) -> Pair:
    return " ".join(pair[0].lower().split()), " ".join(pair[1].lower().split())


def _outside(text: str, real: list[str]) -> bool:
    lengths = [len(other) for other in real]
    return not min(lengths) / LENGTH_SLACK <= len(text) <= max(lengths) * LENGTH_SLACK
