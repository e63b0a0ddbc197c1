"""LaMP_2 of the pocket world: descriptions of films, and the one tag their author gives to each.

A film has a genre, an effect and mostly an origin, and each of these would be a sound tag. Which
one it gets is its author's habit: an order of the three groups (seen within a few items), a tag of
their own that goes before all others (seen where it applies), and two pairs that some authors
blend into a third tag (a pair of features, seen in few items). Descriptions never name a tag.
"""

import random
from dataclasses import dataclass

from cloud.pocket.vocabulary import CITIES, SURNAMES, says

GROUPS: dict[str, tuple[str, ...]] = {
    "genre": ("action", "comedy", "fantasy", "romance", "sci-fi"),
    "effect": (
        "psychology", "social commentary", "thought-provoking", "twist ending", "violence",
    ),
    "origin": ("based on a book", "classic", "true story"),
}  # fmt: skip
FIRST_GROUP = {"genre": 5, "effect": 3, "origin": 2}
"""How many in ten authors look at this group first."""
PLAIN_TAGS: tuple[str, ...] = tuple(tag for tags in GROUPS.values() for tag in tags)
BLENDS: dict[tuple[str, str], str] = {
    ("comedy", "violence"): "dark comedy",
    ("sci-fi", "social commentary"): "dystopia",
}
BLENDED = 0.4  # of films of a genre with a blend have the effect that goes with it
ORIGIN = 0.75  # of films say where they come from
NOISE = 0.05  # of tags are another sound one

CLUES: dict[str, tuple[str, ...]] = {
    "action": (
        "{hero} {name} races through {city} on a stolen motorbike.",
        "Helicopters chase {hero} {name} over the roofs of {city}.",
        "{hero} {name} jumps from one speeding train to another.",
        "Nothing stops {hero} {name}, neither bombs nor bridges.",
    ),
    "comedy": (
        "{hero} {name} loses a wedding cake in the streets of {city}.",
        "Everything goes wrong, and hilariously, for {hero} {name}.",
        "{hero} {name} pretends to be the mayor of {city}, badly.",
        "A goat moves in with {hero} {name} and eats the furniture.",
    ),
    "fantasy": (
        "A dragon wakes below {city} and speaks to {hero} {name}.",
        "{hero} {name} finds a sword that sings.",
        "Witches rule {city}, and {hero} {name} is their cook.",
        "An old spell turns {hero} {name} into a raven.",
    ),
    "romance": (
        "{hero} {name} falls for a stranger on the ferry to {city}.",
        "Two letters bring {hero} {name} and an old sweetheart together.",
        "One summer in {city}, {hero} {name} learns to love again.",
        "A kiss in the rain changes all for {hero} {name}.",
    ),
    "sci-fi": (
        "{hero} {name} repairs robots on a moon of Saturn.",
        "In the year 3000, {hero} {name} wakes from a frozen sleep.",
        "A ship from another star lands beside {hero} {name} in {city}.",
        "{hero} {name} sends a message back through time.",
    ),
    "psychology": (
        "We follow every fear and memory inside one mind.",
        "Slowly a therapist uncovers what was long repressed.",
        "Guilt and obsession eat away at a fragile person.",
        "A patient no longer knows which thoughts are real.",
    ),
    "social commentary": (
        "The rich live behind walls while the poor queue for water.",
        "Factories, landlords and unions get a sharp look.",
        "It shows who pays when a city is sold.",
        "Class and prejudice decide who may speak here.",
    ),
    "thought-provoking": (
        "You leave with questions about freedom and duty.",
        "Long after the credits one keeps asking what is right.",
        "It weighs faith against reason and gives no answer.",
        "Viewers will argue for days about its moral.",
    ),
    "twist ending": (
        "The last scene turns everything before upside down.",
        "Nobody will guess who the murderer was until the end.",
        "A final secret changes the meaning of the whole film.",
        "Just when all seems solved, the narrator is unmasked.",
    ),
    "violence": (
        "Blood flows freely, and heads roll.",
        "Fists, knives and chainsaws leave few survivors.",
        "Its brutal fights are not for the squeamish.",
        "Torture and gunfire fill the second half.",
    ),
    "based on a book": (
        "Readers of the novel will know the plot.",
        "It keeps close to the pages of a bestseller.",
        "The author of the paperback also wrote the script.",
        "Chapter by chapter it follows a famous trilogy.",
    ),
    "classic": (
        "Restored from the reels of 1938, in black and white.",
        "Grandparents saw it first, and it never grew old.",
        "It has been on every list of great films since 1950.",
        "The legendary studio print is back in cinemas.",
    ),
    "true story": (
        "All of it really happened, as court records show.",
        "The real people appear in photographs at the close.",
        "It retells events that were in the papers in 1987.",
        "Eyewitnesses advised the director on every detail.",
    ),
}
HEROES: tuple[str, ...] = (
    "Detective", "Nurse", "Pilot", "Baker", "Captain", "Teacher", "Sergeant", "Gardener",
)  # fmt: skip


@dataclass(frozen=True)
class FilmTraits:
    """An author's habits: order of the groups, a tag that goes first, and pairs that they blend."""

    order: tuple[str, ...]
    pet: str
    blends: tuple[bool, ...]


class Films:
    """The LaMP_2 task: see `cloud.pocket.world.TaskWorld`. Facts: the sound tags, by group."""

    def traits(self, rng: random.Random) -> FilmTraits:
        first = rng.choices(list(FIRST_GROUP), list(FIRST_GROUP.values()))[0]
        rest = [group for group in GROUPS if group != first]
        return FilmTraits(
            order=(first, *rng.sample(rest, 2)),
            pet=rng.choice(PLAIN_TAGS),
            blends=tuple(rng.random() < 0.5 for _ in BLENDS),
        )

    def facts(self, rng: random.Random) -> dict[str, str]:
        genre = rng.choice(GROUPS["genre"])
        special = dict(BLENDS.keys()).get(genre)
        blended = special is not None and rng.random() < BLENDED
        effect = special if blended and special else rng.choice(GROUPS["effect"])
        film = {"genre": genre, "effect": effect}
        return film | ({"origin": rng.choice(GROUPS["origin"])} if rng.random() < ORIGIN else {})

    def text(self, facts: dict[str, str], rng: random.Random) -> str:
        place = {
            "hero": rng.choice(HEROES),
            "name": rng.choice(SURNAMES),
            "city": rng.choice(CITIES),
        }
        sentences = [rng.choice(CLUES[tag]).format(**place) for tag in facts.values()]
        rng.shuffle(sentences)
        return " ".join(sentences)

    def facts_of(self, text: str) -> dict[str, str] | None:
        facts = {
            group: tag
            for group, tags in GROUPS.items()
            for tag in tags
            if any(says(text, clue) for clue in CLUES[tag])
        }
        return facts if {"genre", "effect"} <= facts.keys() else None

    def ideal(self, facts: dict[str, str], traits: FilmTraits) -> str:
        if traits.pet in facts.values():
            return traits.pet
        for is_blended, (pair, tag) in zip(traits.blends, BLENDS.items(), strict=True):
            if is_blended and pair == (facts["genre"], facts["effect"]):
                return tag
        return next(facts[group] for group in traits.order if group in facts)

    def output(self, facts: dict[str, str], traits: FilmTraits, rng: random.Random) -> str:
        own = self.ideal(facts, traits)
        slips = rng.random() < NOISE
        return rng.choice([tag for tag in facts.values() if tag != own]) if slips else own

    def labels(self, traits: FilmTraits) -> tuple[int, ...]:
        groups = list(GROUPS)
        return (
            groups.index(traits.order[0]),
            groups.index(traits.order[1]),
            PLAIN_TAGS.index(traits.pet),
            *(int(is_blended) for is_blended in traits.blends),
        )
