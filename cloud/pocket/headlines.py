"""LaMP_4 of the pocket world: articles, and headlines in the style of their author.

An author has a *persona* (a newsroom's vocabulary: for every topic one verb and one adjective) and
habits of their own (what stands in front, word order, what ends the headline, how people are
called). An article never depends on its author. Who knows the persona from a few headlines knows
the words for topics not yet seen, apart from the author's few deviations.
"""

import random
from dataclasses import dataclass

from cloud.pocket.topics import EVENTS, FILLERS, NUMBER_SENTENCES, PERSONAS, PLACE_SENTENCES, TOPICS
from cloud.pocket.vocabulary import CITIES, DAYS, NUMBERS, SURNAMES, named

FRONTS: tuple[str, ...] = ("none", "city", "number", "day", "topic")
TAILS: tuple[str, ...] = ("none", "city", "number", "day")
OPENERS: tuple[str, ...] = ("none", "why", "how", "inside")
NAMINGS: tuple[str, ...] = ("surname", "role")
ORDERS: tuple[str, ...] = ("active", "passive")
DEVIATION = 0.1  # of an author's words, taken from another persona for good
NOISE = 0.03  # of headlines, written against one habit


@dataclass(frozen=True)
class HeadlineTraits:
    """What makes an author's headlines theirs; `verbs` and `adjectives` hold one word a topic."""

    persona: str
    front: str
    tail: str
    opener: str
    naming: str
    order: str
    verbs: tuple[str, ...]
    adjectives: tuple[str, ...]


class Headlines:
    """The LaMP_4 task: see `cloud.pocket.world.TaskWorld`."""

    def traits(self, rng: random.Random) -> HeadlineTraits:
        persona = rng.randrange(len(PERSONAS))
        front = rng.choice(FRONTS)
        return HeadlineTraits(
            persona=PERSONAS[persona],
            front=front,
            tail=rng.choice([tail for tail in TAILS if tail == "none" or tail != front]),
            opener=rng.choice(OPENERS),
            naming=rng.choice(NAMINGS),
            order=rng.choice(ORDERS),
            verbs=tuple(_own_word(topic.verbs, persona, rng) for topic in TOPICS),
            adjectives=tuple(_own_word(topic.adjectives, persona, rng) for topic in TOPICS),
        )

    def facts(self, rng: random.Random) -> dict[str, str]:
        return _slots(rng)

    def text(self, facts: dict[str, str], rng: random.Random) -> str:
        return _article(facts, rng)

    def facts_of(self, text: str) -> dict[str, str] | None:
        for index, topic in enumerate(TOPICS):
            found = [
                named(text, names)
                for names in ([topic.role], [topic.unit], topic.objects, SURNAMES, NUMBERS, CITIES,
                              DAYS)
            ]  # fmt: skip
            if all(found):
                _, _, objects, who, number, city, day = (names[0] for names in found)
                return {
                    "index": str(index), "topic": topic.name, "role": topic.role, "who": who,
                    "object": objects, "number": number, "unit": topic.unit, "city": city,
                    "day": day,
                }  # fmt: skip
        return None

    def ideal(self, facts: dict[str, str], traits: HeadlineTraits) -> str:
        return _headline(facts, _habits(traits), traits)

    def output(self, facts: dict[str, str], traits: HeadlineTraits, rng: random.Random) -> str:
        return _headline(facts, _slip(_habits(traits), rng), traits)

    def labels(self, traits: HeadlineTraits) -> tuple[int, ...]:
        return (
            PERSONAS.index(traits.persona),
            FRONTS.index(traits.front),
            TAILS.index(traits.tail),
            OPENERS.index(traits.opener),
            NAMINGS.index(traits.naming),
            ORDERS.index(traits.order),
        )


def _own_word(words: tuple[str, ...], persona: int, rng: random.Random) -> str:
    """The persona's word, or now and then another one that the author keeps."""
    return rng.choice(words) if rng.random() < DEVIATION else words[persona]


def _slots(rng: random.Random) -> dict[str, str]:
    """Facts of one event, drawn independently of any author."""
    index = rng.randrange(len(TOPICS))
    topic = TOPICS[index]
    return {
        "index": str(index),
        "topic": topic.name,
        "role": topic.role,
        "who": rng.choice(SURNAMES),
        "object": rng.choice(topic.objects),
        "number": rng.choice(NUMBERS),
        "unit": topic.unit,
        "city": rng.choice(CITIES),
        "day": rng.choice(DAYS),
    }


def _article(slots: dict[str, str], rng: random.Random) -> str:
    """Three sentences with all facts in any order, and sometimes a fourth that says nothing."""
    topic = TOPICS[int(slots["index"])]
    sentences = [
        rng.choice((topic.sentence, topic.sentence, *EVENTS)),
        rng.choice(NUMBER_SENTENCES),
        rng.choice(PLACE_SENTENCES),
    ]
    rng.shuffle(sentences)
    if rng.random() < 0.25:
        sentences.append(rng.choice(FILLERS))
    return " ".join(sentence.format(**slots) for sentence in sentences)


def _habits(traits: HeadlineTraits) -> dict[str, str]:
    return {
        "front": traits.front,
        "tail": traits.tail,
        "opener": traits.opener,
        "naming": traits.naming,
        "order": traits.order,
    }


def _slip(habits: dict[str, str], rng: random.Random) -> dict[str, str]:
    """The habits for one headline: nearly always the author's, rarely one slips."""
    if rng.random() < NOISE:
        name, options = rng.choice(
            (("front", FRONTS), ("opener", OPENERS), ("naming", NAMINGS), ("order", ORDERS))
        )
        return {**habits, name: rng.choice(options)}
    return habits


def _headline(slots: dict[str, str], habits: dict[str, str], traits: HeadlineTraits) -> str:
    """Put the facts of one event into the author's words and order."""
    index = int(slots["index"])
    who = slots["who"] if habits["naming"] == "surname" else slots["role"]
    verb, thing = traits.verbs[index], f"{traits.adjectives[index]} {slots['object']}"
    core = f"{who} {verb} {thing}" if habits["order"] == "active" else f"{thing} {verb} by {who}"
    opener = "" if habits["opener"] == "none" else habits["opener"] + " "
    line = _front(slots, habits["front"]) + opener + core + _tail(slots, habits["tail"])
    return line[0].upper() + line[1:]


def _front(slots: dict[str, str], front: str) -> str:
    return {
        "none": "",
        "city": f"{slots['city']}: ",
        "number": f"{slots['number']} {slots['unit']}: ",
        "day": f"{slots['day']}: ",
        "topic": f"{slots['topic']}: ",
    }[front]


def _tail(slots: dict[str, str], tail: str) -> str:
    return {
        "none": "",
        "city": f" in {slots['city']}",
        "number": f" for {slots['number']} {slots['unit']}",
        "day": f" on {slots['day']}",
    }[tail]
