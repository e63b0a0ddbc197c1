"""LaMP_3 of the pocket world: restaurant reviews, and scores by what their author cares about.

A review states how good four of five aspects were. All authors look at the whole a little, each
looks above all at one aspect and somewhat at a second, may like what others dislike, and is strict
or generous. None of that shows in the text: the same review gets other scores from other authors.
"""

import math
import random
from dataclasses import dataclass

from cloud.pocket.vocabulary import CITIES, DAYS, says

ASPECTS: tuple[str, ...] = ("food", "service", "price", "noise", "decor")
NOUNS: dict[str, tuple[str, ...]] = {
    "food": ("food", "meal", "soup"),
    "service": ("service", "waiter", "staff"),
    "price": ("price", "bill", "cost"),
    "noise": ("music", "crowd", "terrace"),
    "decor": ("decor", "furniture", "lighting"),
}
WORDS: dict[str, dict[int, tuple[str, str]]] = {
    "food": {
        -2: ("awful", "disgusting"),
        -1: ("bland", "dull"),
        1: ("tasty", "decent"),
        2: ("delicious", "superb"),
    },
    "service": {
        -2: ("rude", "hopeless"),
        -1: ("slow", "distracted"),
        1: ("friendly", "polite"),
        2: ("wonderful", "flawless"),
    },
    "price": {
        -2: ("outrageous", "shocking"),
        -1: ("high", "steep"),
        1: ("fair", "modest"),
        2: ("tiny", "unbeatable"),
    },
    "noise": {
        -2: ("deafening", "unbearable"),
        -1: ("loud", "noisy"),
        1: ("calm", "quiet"),
        2: ("peaceful", "silent"),
    },
    "decor": {
        -2: ("hideous", "filthy"),
        -1: ("shabby", "dated"),
        1: ("neat", "pretty"),
        2: ("gorgeous", "stunning"),
    },
}
SENTENCES: tuple[str, ...] = (
    "The {noun} was {word}.",
    "I found the {noun} {word}.",
    "We thought the {noun} was {word}.",
)
FILLERS: tuple[str, ...] = (
    "We came on {day}.",
    "It was our first visit in {city}.",
    "A friend from {city} had told us about it.",
)
STRICTNESS: tuple[int, ...] = (-1, 0, 1)
LEANINGS: tuple[float, ...] = (0.25, 0.5, 0.75)  # chance of praise: bad, mixed and good places
WHOLE_WEIGHT, STRICTNESS_WEIGHT = 0.15, 0.7
INVERTED = 0.1  # of authors like what others dislike about their first, as many their second aspect
NOISE = 0.03  # of scores are one off


@dataclass(frozen=True)
class ReviewTraits:
    """What an author looks at: weights of two aspects (negative: inverted), and strictness."""

    first: str
    second: str
    first_weight: float
    second_weight: float
    strictness: int


class Reviews:
    """The LaMP_3 task: see `cloud.pocket.world.TaskWorld`."""

    def traits(self, rng: random.Random) -> ReviewTraits:
        first, second = rng.sample(ASPECTS, 2)
        return ReviewTraits(
            first=first,
            second=second,
            first_weight=-1.0 if rng.random() < INVERTED else 1.0,
            second_weight=-0.5 if rng.random() < INVERTED else 0.5,
            strictness=rng.choice(STRICTNESS),
        )

    def facts(self, rng: random.Random) -> dict[str, int]:
        praise = rng.choice(LEANINGS)
        return {aspect: _value(praise, rng) for aspect in rng.sample(ASPECTS, 4)}

    def text(self, facts: dict[str, int], rng: random.Random) -> str:
        sentences = [_sentence(aspect, value, rng) for aspect, value in facts.items()]
        if rng.random() < 0.5:
            filler = rng.choice(FILLERS)
            place = {"day": rng.choice(DAYS), "city": rng.choice(CITIES)}
            sentences.insert(0, filler.format(**place))
        return " ".join(sentences)

    def facts_of(self, text: str) -> dict[str, int] | None:
        facts = {
            aspect: value
            for aspect, words in WORDS.items()
            for value, each in words.items()
            if any(
                says(text, sentence.format(noun=noun, word=word))
                for sentence in SENTENCES for noun in NOUNS[aspect] for word in each
            )
        }  # fmt: skip
        return facts or None

    def ideal(self, facts: dict[str, int], traits: ReviewTraits) -> str:
        return _clipped(_score(traits, facts))

    def output(self, facts: dict[str, int], traits: ReviewTraits, rng: random.Random) -> str:
        slip = rng.choice((-1, 1)) if rng.random() < NOISE else 0
        return _clipped(_score(traits, facts) + slip)

    def labels(self, traits: ReviewTraits) -> tuple[int, ...]:
        return (
            ASPECTS.index(traits.first),
            ASPECTS.index(traits.second),
            int(traits.first_weight < 0),
            int(traits.second_weight < 0),
            STRICTNESS.index(traits.strictness),
        )


def _value(praise: float, rng: random.Random) -> int:
    """How good one aspect was, from -2 to 2 without 0."""
    return rng.choice((1, 2) if rng.random() < praise else (-1, -2))


def _sentence(aspect: str, value: int, rng: random.Random) -> str:
    noun, word = rng.choice(NOUNS[aspect]), rng.choice(WORDS[aspect][value])
    return rng.choice(SENTENCES).format(noun=noun, word=word)


def _score(traits: ReviewTraits, values: dict[str, int]) -> int:
    """Weighted aspects (absent: 0) around the middle, halves rounded up; not yet within 1..5."""
    taste = WHOLE_WEIGHT * sum(values.values())
    taste += traits.first_weight * values.get(traits.first, 0)
    taste += traits.second_weight * values.get(traits.second, 0)
    return math.floor(3 + STRICTNESS_WEIGHT * traits.strictness + taste + 0.5)


def _clipped(score: int) -> str:
    return str(min(5, max(1, score)))
