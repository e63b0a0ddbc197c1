"""POCKET_0 of the pocket world: weather reports, and the notice that anyone would make of them.

There are no traits: a notice depends on the report, and on chance. Whoever knows one user's items
knows nothing more about the next, so nothing can be gained here by personalization, and a method
that finds a gain is wrong.
"""

import random
import re
from dataclasses import dataclass

from cloud.pocket.vocabulary import CITIES, DAYS, SURNAMES, named

SKIES: dict[str, tuple[str, ...]] = {
    "Rain": ("umbrellas will be needed", "wet streets are likely", "drops fall from dark clouds"),
    "Snow": (
        "flakes will cover the roofs",
        "children can build snowmen",
        "white streets lie ahead",
    ),
    "Fog": ("nobody will see far", "ships sound their horns", "the hills vanish in grey"),
    "Storm": ("roofs may lose their tiles", "trees will bend and break", "ferries stay in port"),
    "Hail": ("lumps of ice hit the cars", "gardeners fear for their lettuce", "ice drums on tin"),
    "Sunshine": ("there will be no cloud", "hats and cream are advised", "shadows will be sharp"),
}
"""What the notice says, and how a report may say it."""
WINDS: tuple[str, ...] = ("north", "east", "south", "west")
DEGREES = range(2, 31)
FIRST: tuple[str, ...] = (
    "In {city} {clue} on {day}.",
    "On {day} {clue} in {city}.",
    "For {city} on {day} we foresee that {clue}.",
)
SECOND: tuple[str, ...] = (
    "Thermometers reach {degrees} degrees.",
    "It will have {degrees} degrees at noon.",
    "We measure {degrees} degrees, with some wind from the {wind}.",
    "The wind comes from the {wind}, at {degrees} degrees.",
)
LAST: tuple[str, ...] = (
    "{name} signed this report.",
    "Ask {name} for more.",
    "So says {name}, who is on duty all week.",
    "The next one is by {name}.",
    "It was {name} who read the instruments.",
)
NOISE = 0.05  # of notices leave the degrees out, whoever writes them


@dataclass(frozen=True)
class NoTraits:
    """All users are the same."""


@dataclass(frozen=True)
class Report:
    """What a report states."""

    city: str
    day: str
    sky: str
    degrees: int
    wind: str


class Notices:
    """The POCKET_0 task: see `cloud.pocket.world.TaskWorld`."""

    def traits(self, rng: random.Random) -> NoTraits:
        return NoTraits()

    def facts(self, rng: random.Random) -> Report:
        return Report(
            city=rng.choice(CITIES),
            day=rng.choice(DAYS),
            sky=rng.choice(list(SKIES)),
            degrees=rng.choice(DEGREES),
            wind=rng.choice(WINDS),
        )

    def text(self, facts: Report, rng: random.Random) -> str:
        clue, name = rng.choice(SKIES[facts.sky]), rng.choice(SURNAMES)
        sentences = [rng.choice(part) for part in (FIRST, SECOND, LAST)]
        rng.shuffle(sentences)
        return " ".join(sentences).format(**vars(facts), clue=clue, name=name)

    def facts_of(self, text: str) -> Report | None:
        city, day, degrees = (
            named(text, CITIES),
            named(text, DAYS),
            re.search(r"(\d+) degrees", text),
        )
        skies = [sky for sky, clues in SKIES.items() if any(clue in text for clue in clues)]
        if not (city and day and degrees and skies):
            return None
        wind = "".join(named(text, WINDS)[:1])
        return Report(city[0], day[0], skies[0], int(degrees[1]), wind)

    def ideal(self, facts: Report, traits: NoTraits) -> str:
        return f"{facts.sky} in {facts.city} on {facts.day}, {facts.degrees} degrees"

    def output(self, facts: Report, traits: NoTraits, rng: random.Random) -> str:
        own = self.ideal(facts, traits)
        return own.rpartition(",")[0] if rng.random() < NOISE else own

    def labels(self, traits: NoTraits) -> tuple[int, ...]:
        return ()
