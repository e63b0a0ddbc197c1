"""What the pocket world's articles are about, and each persona's words for it.

A topic has one verb and one adjective for every persona, in the order of `PERSONAS`.
"""

from dataclasses import dataclass

PERSONAS: tuple[str, ...] = ("formal", "tabloid", "business", "poetic", "blog")


@dataclass(frozen=True)
class Topic:
    """One kind of event: what happens in articles, and each persona's words for it."""

    name: str
    role: str
    unit: str
    objects: tuple[str, ...]
    sentence: str
    verbs: tuple[str, ...]
    adjectives: tuple[str, ...]


def _topic(heading: str, objects: str, sentence: str, verbs: str, adjectives: str) -> Topic:
    """Read the compact table below; `heading` is name, role and unit."""
    name, role, unit = heading.split()
    return Topic(
        name,
        role,
        unit,
        tuple(objects.split()),
        sentence,
        tuple(verbs.split()),
        tuple(adjectives.split()),
    )


# Verbs are past tense and participle alike, so they serve both word orders. Verbs and adjectives
# stand in the order of PERSONAS.
TOPICS: tuple[Topic, ...] = (
    _topic(
        "transport engineer passengers",
        "bridge tunnel station tramway",
        "Work on the {object} has ended under {role} {who}.",
        "inaugurated rushed delivered unveiled dropped",
        "major monster efficient gleaming epic",
    ),
    _topic(
        "sport coach fans",
        "final derby tournament race",
        "The {object} went to the team of {role} {who}.",
        "concluded smashed secured savoured crushed",
        "decisive brutal lucrative golden insane",
    ),
    _topic(
        "food chef guests",
        "menu market bakery vineyard",
        "A {object} is what {role} {who} now offers.",
        "presented fired marketed conjured plated",
        "seasonal saucy premium fragrant yummy",
    ),
    _topic(
        "weather forecaster homes",
        "storm flood heatwave blizzard",
        "A {object} is coming, says {role} {who}.",
        "predicted screamed priced dreaded called",
        "severe killer costly howling wild",
    ),
    _topic(
        "health doctor patients",
        "vaccine clinic therapy scanner",
        "A {object} is ready for use, says {role} {who}.",
        "approved hyped funded welcomed shared",
        "promising miracle profitable healing handy",
    ),
    _topic(
        "school teacher pupils",
        "library exam campus course",
        "The {object} will change, says {role} {who}.",
        "reformed blasted sponsored nurtured hacked",
        "rigorous nightmare competitive wondrous nerdy",
    ),
    _topic(
        "crime detective suspects",
        "robbery fraud kidnapping forgery",
        "The case of the {object} is closed, says {role} {who}.",
        "investigated busted audited unmasked exposed",
        "alleged vile expensive shadowy shady",
    ),
    _topic(
        "science professor experiments",
        "telescope robot fossil satellite",
        "A {object} was shown by {role} {who}.",
        "documented revealed patented imagined decoded",
        "novel freaky scalable starry geeky",
    ),
    _topic(
        "culture painter visitors",
        "exhibition mural statue festival",
        "The {object} of {role} {who} is open to all.",
        "curated flaunted auctioned adorned posted",
        "notable naked valuable luminous trendy",
    ),
    _topic(
        "politics minister votes",
        "budget treaty reform law",
        "The {object} of {role} {who} has passed.",
        "ratified rammed negotiated championed pushed",
        "contested toxic fiscal hopeful spicy",
    ),
    _topic(
        "economy director jobs",
        "factory merger brand shop",
        "A {object} was announced by {role} {who}.",
        "established grabbed acquired founded scored",
        "sizeable greedy leveraged humble massive",
    ),
    _topic(
        "travel captain tickets",
        "cruise airline resort ferry",
        "The {object} is running again, says {role} {who}.",
        "reopened flogged booked charted tested",
        "distant cheap discounted endless dreamy",
    ),
    _topic(
        "housing architect flats",
        "tower villa park stadium",
        "The {object} by {role} {who} is complete.",
        "designed slapped financed raised built",
        "spacious ugly prime towering cosy",
    ),
    _topic(
        "music singer listeners",
        "album concert opera anthem",
        "The {object} of {role} {who} is out.",
        "composed belted licensed whispered streamed",
        "acclaimed raunchy bestselling tender catchy",
    ),
    _topic(
        "nature ranger animals",
        "forest river lake reef",
        "The {object} is in the care of {role} {who}.",
        "protected saved valued cherished hugged",
        "endangered doomed sustainable ancient lush",
    ),
    _topic(
        "technology programmer users",
        "app chip console website",
        "The {object} made by {role} {who} is on sale.",
        "released leaked shipped woven coded",
        "secure creepy disruptive graceful slick",
    ),
)
EVENTS: tuple[str, ...] = (
    "There is news of a {object} and of {role} {who}.",
    "Everyone is talking about the {object} of {role} {who}.",
)
NUMBER_SENTENCES: tuple[str, ...] = (
    "About {number} {unit} were counted.",
    "Officials speak of {number} {unit}.",
    "It concerns {number} {unit}.",
)
PLACE_SENTENCES: tuple[str, ...] = (
    "It took place in {city} on {day}.",
    "The news came from {city} on {day}.",
    "On {day} it was known in all of {city}.",
)
FILLERS: tuple[str, ...] = (
    "Neighbours were not surprised.",
    "More details will follow.",
    "Nobody had expected it.",
)
