"""What a synthetic item must pass, cheapest check first; each rejection has one named reason.

In: candidates, one after the other. Out: the name of the first filter that rejects one, or None.
They compare with the user's real items, with those already kept, and with the held-out ones. What
needs a teacher's opinion is in `cloud/votes.py`, the choice among what passed in
`cloud/selection.py`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial

from cloud.likeness import (
    NEAR_DUPLICATE,
    Manner,
    Words,
    any_close,
    closest,
    is_padded,
    language,
    style,
    words,
)
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
MOST_ALIKE = 0.9
"""ROUGE-L F at which two outputs count as the same, however alike the user's own ones are."""
_NEAR_WHOLE = 0.8
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
    _own: set[str] = field(default_factory=set[str], init=False)
    _seen: set[Pair] = field(default_factory=set[Pair], init=False)
    _outputs: set[str] = field(default_factory=set[str], init=False)
    _texts: list[Words] = field(default_factory=list[Words], init=False)

    def __post_init__(self) -> None:
        for item in self.real:
            self._seen.add(_normal((item.input, item.output)))
            self._texts.append(self._text((item.input, item.output)))
        free = self._is_free = self.task.kind == "generation"
        given = Counter(_flat(item.output) for item in self.real if free)
        self._own |= set(given)
        self._outputs |= self._own
        self._habits = {output for output, count in given.items() if count > 1}
        # What the user has said before is no secret, and a beginning stands in its output.
        titles = [title for text in self.held_out_inputs for title in _quoted(self.task, text)]
        held_out = [*self.held_out_outputs, *titles]
        outputs = [text for text in held_out if free and _flat(text) not in given]
        inputs = [words(text) for text in self.held_out_inputs]
        begun = [words(text) for text in self.held_out_outputs if self.task.is_beginning]
        self._held_inputs = [w for w in inputs if not any(w == o[: len(w)] for o in begun)]
        self._held_outputs = [words(text) for text in outputs]
        self._style = Manner([item.output for item in self.real], style) if free else None
        texts = [f"{item.input} {item.output}" for item in self.real]
        self._languages = {language(text) for text in [*texts, " ".join(texts)]} - {""}

    def rejects(self, pair: Pair, output_stays: bool = False) -> str | None:
        """The name of the first filter that rejects `pair`, None if all let it through.

        output_stays: the output is the user's own, kept for a new input.
        """
        checks: tuple[tuple[str, Callable[[Pair], bool]], ...] = (
            ("label", self._wrong_label),
            ("schema", self._wrong_form),
            ("duplicate", partial(self._duplicate, output_stays=output_stays)),
            ("near-duplicate", self._near_duplicate),
            ("length", self._wrong_length),
            ("leakage", self.leaks),
            ("personal-data", self.is_private),
            ("language", self._wrong_language),
            ("style", self._wrong_style),
        )
        return next((name for name, wrong in checks if wrong(pair)), None)

    def keep(self, pair: Pair, output_stays: bool = False) -> str | None:
        """Count a pair as kept from now on, unless it repeats one that was kept since it passed."""
        if self._repeats(pair, output_stays):
            return "duplicate"
        if self._near_duplicate(pair):
            return "near-duplicate"
        self._outputs.add(_flat(pair[1]))
        self._texts.append(self._text(pair))
        return None

    def closeness(self, pair: Pair) -> float:
        """How near a pair's free text is to the user's style, 0 to 1; 1 for a label."""
        return self._style.of(pair[1]) if self._style else 1.0

    def _wrong_label(self, pair: Pair) -> bool:
        return bool(self.task.labels) and pair[1] not in self.task.labels

    def _wrong_form(self, pair: Pair) -> bool:
        start, whole = (" ".join(text.split()) for text in pair)
        return self.task.is_beginning and not (whole.startswith(start) and len(whole) > len(start))

    def _duplicate(self, pair: Pair, output_stays: bool) -> bool:
        key = _normal(pair)
        known = key in self._seen
        self._seen.add(key)
        return known or self._repeats(pair, output_stays)

    def _repeats(self, pair: Pair, output_stays: bool) -> bool:
        """Whether a free text comes again that the user does not write again and again."""
        output = _flat(pair[1])
        is_new = not self._is_free or output_stays or output in self._habits
        return not is_new and output in self._outputs

    def _near_duplicate(self, pair: Pair) -> bool:
        least = max(_NEAR_WHOLE, self._alike) if self.task.is_beginning else NEAR_DUPLICATE
        return any_close(self._text(pair), self._texts, least)

    def _text(self, pair: Pair) -> Words:
        """What tells two pairs apart: the input, or the whole text of which it is the beginning."""
        return words(pair[1] if self.task.is_beginning else pair[0])

    @cached_property
    def _alike(self) -> float:
        """How close an output has to be to another one to be more than the user's habit."""
        own = closest(words(item.output) for item in self.real)
        return min(MOST_ALIKE, own + 1e-9) if own >= NEAR_DUPLICATE else NEAR_DUPLICATE

    def _wrong_length(self, pair: Pair) -> bool:
        if _outside(pair[0], [item.input for item in self.real]):
            return True
        free_text = self.task.kind == "generation"
        return free_text and _outside(pair[1], [item.output for item in self.real])

    def leaks(self, pair: Pair) -> bool:
        """Whether either part of a pair is near a held-out text, or one holds the other.

        An output may be as near to a held-out one as two of the user's own are to each other: that
        is their habit; one that they have given before is no leak at all. Labels are no texts, and
        a beginning is a part of its output.
        """
        given = () if self.task.is_beginning else words(pair[0])
        output = words(pair[1]) if self._is_free and _flat(pair[1]) not in self._own else ()
        held_out = [*self._held_inputs, *self._held_outputs]
        return (
            any_close(given, self._held_inputs)
            or any(_near(given, held) for held in self._held_outputs)
            or any(_near(output, held) for held in self._held_inputs)
            or any(_near(output, held, self._alike) for held in self._held_outputs)
            or any(_holds(a, b) or _holds(b, a) for a in (given, output) for b in held_out)
        )

    def is_private(self, pair: Pair) -> bool:
        """Whether a pair holds personal data that is not the user's own."""
        return any(self.is_personal(text) for text in pair)

    def _wrong_language(self, pair: Pair) -> bool:
        found = language(" ".join(pair))
        return bool(self._languages and found) and found not in self._languages

    def _wrong_style(self, pair: Pair) -> bool:
        return self._style is not None and self._style.of(pair[1]) < self._style.floor


def _near(text: Words, held: Words, least: float = NEAR_DUPLICATE) -> bool:
    """Whether a text is close to a held-out one of a few words or more.

    In a short one a word that differs may be all that it says: there, words may only be added,
    left out or moved.
    """
    if len(held) >= _MIN_NEAR_WORDS:
        return any_close(text, [held], least)
    is_same = is_padded(text, held) or sorted(text) == sorted(held)
    return len(held) >= _MIN_LEAK_WORDS and is_same and any_close(text, [held])


def _quoted(task: Task, question: str) -> list[str]:
    """The titles that a held-out question of LaMP_1 quotes: the author's own, the references."""
    if not task.question_labels:
        return []
    ends = "|".join(re.escape(f"{label}:") for label in task.question_labels)
    found = [re.search(r'"(.*)"', part, re.DOTALL) for part in re.split(ends, question)]
    return [match[1] for match in found if match]


def _holds(whole: Words, part: Words) -> bool:
    """Whether a text of a few words or more stands word for word within another."""
    return len(part) >= _MIN_LEAK_WORDS and f" {' '.join(part)} " in f" {' '.join(whole)} "


def _flat(text: str) -> str:
    return " ".join(text.lower().split())


def _normal(pair: Pair) -> Pair:
    return _flat(pair[0]), _flat(pair[1])


def _outside(text: str, real: list[str]) -> bool:
    lengths = [len(other) for other in real]
    return not min(lengths) / LENGTH_SLACK <= len(text) <= max(lengths) * LENGTH_SLACK
