"""LaMP_7 of the pocket world: tweets in the voice of their author.

A tweet says where one was, with whom, what one saw, and how it was. An aside, verb, hashtag, and
how company, day and sight are named are the author's (seen in one item); so are the words for how
it was, which follow from one of five moods of speech (seen in some, as each word shows in an eighth
of the tweets); and the author closes with a phrase of theirs if two of four facts hold, always the
same two (a pair of features, seen in many). Questions ask for a neutral text to be said in that
voice. A tweet begins with its facts, so that beginnings differ.
"""

import itertools
import random
from dataclasses import dataclass, replace

from cloud.pocket.vocabulary import CITIES, DAYS, named

MOODS: tuple[str, ...] = ("posh", "teen", "sailor", "poet", "clerk")
FEELINGS: dict[str, tuple[str, ...]] = {
    "awful": ("ghastly", "trash", "rotten", "dismal", "unacceptable"),
    "horrible": ("frightful", "cursed", "scurvy", "mournful", "intolerable"),
    "poor": ("tiresome", "meh", "soggy", "grey", "substandard"),
    "boring": ("tedious", "mid", "becalmed", "listless", "uneventful"),
    "good": ("agreeable", "lit", "shipshape", "golden", "satisfactory"),
    "nice": ("delightful", "cool", "yare", "gentle", "adequate"),
    "great": ("splendid", "epic", "mighty", "heavenly", "outstanding"),
    "wonderful": ("exquisite", "goated", "glorious", "radiant", "exemplary"),
}
"""How it was in neutral words, and each mood's word for it."""
STRONG = ("awful", "horrible", "great", "wonderful")
BAD = ("awful", "horrible", "poor", "boring")
ASIDES: tuple[str, ...] = ("", ", honestly,", ", guys,", ", dear diary,", ", as usual,", ", oh my,")
VERBS: tuple[str, ...] = ("was", "turned out", "felt", "looked")
BOOSTS: tuple[str, ...] = ("very", "totally", "quite", "mad", "so")
COMPANY: tuple[tuple[str, str], ...] = (
    ("with {friend}", "alone"),
    ("thanks to {friend}", "without anyone"),
    ("me and {friend}", "just me"),
    ("{friend} came along", "nobody came along"),
)
DAY_FORMS: tuple[str, ...] = ("on {day}", "this {day}", "{day} night", "last {day}")
SIGHTS: tuple[str, ...] = ("saw {sight}", "plus {sight}", "even {sight}", "and {sight}")
HASHTAGS: dict[str, str] = {
    "none": "",
    "city": " #{city}",
    "subject": " #{subject}",
    "day": " #{day}",
    "feeling": " #{word}",
}
CLOSINGS: tuple[str, ...] = (
    "never again", "miss you", "just saying", "what luck", "more tomorrow",
)  # fmt: skip
TRIGGERS: tuple[str, ...] = ("weekend", "bad", "indoors", "alone")
PAIRS: tuple[tuple[str, str], ...] = tuple(itertools.combinations(TRIGGERS, 2))
SUBJECTS: dict[str, bool] = {
    "concert": True, "museum": True, "cinema": True, "library": True, "opera": True, "gym": True,
    "casino": True, "theatre": True, "bakery": True, "aquarium": True, "workshop": True,
    "lecture": True, "sauna": True, "auction": True, "quiz": True, "parade": False, "market": False,
    "beach": False, "marathon": False, "picnic": False, "zoo": False, "harbour": False,
    "festival": False, "garden": False, "circus": False, "regatta": False, "fireworks": False,
    "rally": False, "barbecue": False, "playground": False,
}  # fmt: skip
"""What people go to, and whether it is indoors."""
FRIENDS: tuple[str, ...] = (
    "Anna", "Ben", "Clara", "David", "Emma", "Felix", "Greta", "Hugo", "Ida", "Jonas", "Karla",
    "Leo", "Mia", "Noah", "Olga", "Paul",
)  # fmt: skip
COLOURS: tuple[str, ...] = (
    "purple", "orange", "yellow", "silver", "scarlet", "turquoise", "brown", "pink", "green",
    "crimson", "violet", "ivory",
)  # fmt: skip
THINGS: tuple[str, ...] = (
    "balloons", "bicycles", "curtains", "parrots", "umbrellas", "lanterns", "sofas", "tractors",
    "scarves", "pianos", "tulips", "kites", "mittens", "canoes", "pumpkins", "trumpets", "ladders",
    "carpets", "ponies", "biscuits", "mirrors", "helmets", "candles", "puppets",
)  # fmt: skip
ALONE = 0.4
DEVIATION = 0.1  # of an author's words, taken from another mood for good
NOISE = 0.05  # of tweets have one habit slip

VISITS: tuple[str, ...] = (
    "I went to the {subject} in {city}.",
    "In {city} I visited the {subject}.",
    "The {subject} in {city} was my destination.",
)
WORDS: tuple[str, ...] = (
    "It was {feeling}.",
    "I found it {feeling}.",
    "My impression is that it was {feeling}.",
)
SEEN: tuple[str, ...] = (
    "There were {sight}.",
    "I noticed {sight} there.",
    "One could see {sight}.",
)
TOGETHER: tuple[str, ...] = (
    "{friend} joined me on {day}.",
    "On {day} I had {friend} beside me.",
    "That happened on {day}, in the company of {friend}.",
)
ON_ONES_OWN: tuple[str, ...] = (
    "I had no company on {day}.",
    "On {day} I had nobody beside me.",
    "That happened on {day}, in no company.",
)


@dataclass(frozen=True)
class VoiceTraits:
    """An author's voice; `words` hold one word for each of `FEELINGS`."""

    mood: str
    words: tuple[str, ...]
    aside: str
    verb: str
    boost: str
    company: tuple[str, str]
    day_form: str
    sight: str
    hashtag: str
    closing: str
    triggers: frozenset[str]


@dataclass(frozen=True)
class Outing:
    """What a tweet is about; an empty `friend` says that one was alone."""

    subject: str
    city: str
    day: str
    friend: str
    feeling: str
    sight: str


class Tweets:
    """The LaMP_7 task: see `cloud.pocket.world.TaskWorld`."""

    def traits(self, rng: random.Random) -> VoiceTraits:
        mood = rng.randrange(len(MOODS))
        return VoiceTraits(
            mood=MOODS[mood],
            words=tuple(_own_word(words, mood, rng) for words in FEELINGS.values()),
            aside=rng.choice(ASIDES),
            verb=rng.choice(VERBS),
            boost=rng.choice(BOOSTS),
            company=rng.choice(COMPANY),
            day_form=rng.choice(DAY_FORMS),
            sight=rng.choice(SIGHTS),
            hashtag=rng.choice(list(HASHTAGS)),
            closing=rng.choice(CLOSINGS),
            triggers=frozenset(rng.choice(PAIRS)),
        )

    def facts(self, rng: random.Random) -> Outing:
        return Outing(
            subject=rng.choice(list(SUBJECTS)),
            city=rng.choice(CITIES),
            day=rng.choice(DAYS),
            friend="" if rng.random() < ALONE else rng.choice(FRIENDS),
            feeling=rng.choice(list(FEELINGS)),
            sight=f"{rng.choice(COLOURS)} {rng.choice(THINGS)}",
        )

    def text(self, facts: Outing, rng: random.Random) -> str:
        company = rng.choice(TOGETHER if facts.friend else ON_ONES_OWN)
        sentences = [rng.choice(part) for part in (VISITS, WORDS, SEEN)]
        sentences.insert(rng.randint(1, 3), company)
        return " ".join(sentence.format(**vars(facts)) for sentence in sentences)

    def facts_of(self, text: str) -> Outing | None:
        neutral = {feeling: feeling for feeling in FEELINGS}
        voiced = {word: feeling for feeling, words in FEELINGS.items() for word in words}
        feelings = [neutral[word] for word in named(text, neutral)] or [
            voiced[word] for word in named(text, voiced)
        ]
        sights = named(text, [f"{colour} {thing}" for colour in COLOURS for thing in THINGS])
        found = [named(text, SUBJECTS), named(text, CITIES), named(text, DAYS), feelings, sights]
        if not all(found):
            return None
        subject, city, day, feeling, sight = (names[0] for names in found)
        friend = "".join(named(text, FRIENDS)[:1])
        return Outing(subject, city, day, friend, feeling, sight)

    def ideal(self, facts: Outing, traits: VoiceTraits) -> str:
        word = traits.words[list(FEELINGS).index(facts.feeling)]
        boosted = f"{traits.boost} {word}" if facts.feeling in STRONG else word
        company = traits.company[0] if facts.friend else traits.company[1]
        closing = f", {traits.closing}" if traits.triggers <= _triggers(facts) else ""
        line = (
            f"{{city}} {{subject}}{traits.aside} {traits.verb} {boosted} {traits.day_form}, "
            f"{company}, {traits.sight}{closing}{HASHTAGS[traits.hashtag]}"
        )
        return line.format(**vars(facts), word=word)

    def output(self, facts: Outing, traits: VoiceTraits, rng: random.Random) -> str:
        if rng.random() >= NOISE:
            return self.ideal(facts, traits)
        name, options = rng.choice(
            (("aside", ASIDES), ("verb", VERBS), ("hashtag", tuple(HASHTAGS)),
             ("day_form", DAY_FORMS), ("closing", CLOSINGS))
        )  # fmt: skip
        return self.ideal(facts, replace(traits, **{name: rng.choice(options)}))

    def labels(self, traits: VoiceTraits) -> tuple[int, ...]:
        return (
            MOODS.index(traits.mood),
            ASIDES.index(traits.aside),
            VERBS.index(traits.verb),
            BOOSTS.index(traits.boost),
            COMPANY.index(traits.company),
            DAY_FORMS.index(traits.day_form),
            SIGHTS.index(traits.sight),
            list(HASHTAGS).index(traits.hashtag),
            CLOSINGS.index(traits.closing),
            [frozenset(pair) for pair in PAIRS].index(traits.triggers),
        )


def _triggers(facts: Outing) -> set[str]:
    """Which of `TRIGGERS` hold."""
    holds = {
        "weekend": facts.day in ("Friday", "Saturday", "Sunday"),
        "bad": facts.feeling in BAD,
        "indoors": SUBJECTS[facts.subject],
        "alone": not facts.friend,
    }
    return {name for name in TRIGGERS if holds[name]}


def _own_word(words: tuple[str, ...], mood: int, rng: random.Random) -> str:
    """The mood's word, or now and then another one that the author keeps."""
    return rng.choice(words) if rng.random() < DEVIATION else words[mood]
