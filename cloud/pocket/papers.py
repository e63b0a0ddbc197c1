"""LaMP_5 and LaMP_1 of the pocket world: abstracts, the titles of their author, and whom they cite.

An abstract names two methods and states a few facts. Its title is in the author's form and tail
(seen in one item), with their school's adjective (seen in some), names the one of the two methods
that they rank higher, and has another form if one of three facts holds, always the same one for an
author: a pair of features, seen in many items. LaMP_1 asks the same authors which of two other
papers they would cite: the one with the method that ranks higher. Titles teach that ranking.
"""

import itertools
import random
import re
from dataclasses import dataclass, replace

from cloud.pocket.vocabulary import named, says

SCHOOLS: tuple[str, ...] = ("engineer", "theorist", "visionary", "sceptic")
METHODS: dict[str, tuple[str, ...]] = {
    "neural": ("deep networks", "attention layers", "word embeddings"),
    "statistical": ("markov chains", "gaussian processes", "bayesian inference"),
    "symbolic": ("logic rules", "decision trees", "formal grammars"),
    "search": ("genetic algorithms", "tabu search", "linear programs"),
}
POPULARITY = {"neural": 6, "statistical": 3, "symbolic": 2, "search": 1}
FAMILY = {method: family for family, methods in METHODS.items() for method in methods}
WORK: dict[str, tuple[str, ...]] = {
    "parsing": ("modular", "provable", "universal", "cautious"),
    "ranking": ("scalable", "optimal", "personal", "fair"),
    "clustering": ("parallel", "consistent", "living", "plausible"),
    "segmenting": ("rapid", "convex", "seamless", "careful"),
    "forecasting": ("deployable", "calibrated", "planetary", "doubtful"),
    "compressing": ("compact", "lossless", "boundless", "wasteful"),
    "aligning": ("practical", "canonical", "human", "partial"),
    "retrieving": ("indexed", "sublinear", "instant", "noisy"),
    "detecting": ("embedded", "unbiased", "tireless", "fallible"),
    "planning": ("efficient", "minimal", "autonomous", "brittle"),
    "matching": ("batched", "stable", "effortless", "approximate"),
    "sampling": ("streaming", "exact", "creative", "biased"),
}
"""Each kind of work, with the adjective that each school has for it."""
THINGS: tuple[str, ...] = (
    "road maps", "legal contracts", "protein chains", "bird songs", "train delays", "news archives",
    "tax forms", "city budgets", "chess games", "hospital records", "satellite images",
    "street signs", "cooking recipes", "song lyrics", "court rulings", "soil samples",
    "power grids", "bank transfers", "flight paths", "sign languages", "star catalogues",
    "river levels", "museum labels", "school essays", "traffic cameras", "patent claims",
    "ocean currents", "crop yields", "job adverts", "old manuscripts", "heart beats",
    "shopping baskets", "building plans", "insect wings", "sports results", "voice mails",
)  # fmt: skip
DATA: tuple[str, ...] = (
    "Atlas", "Beacon", "Cobalt", "Delta", "Ember", "Falcon", "Garnet", "Harbor", "Iris", "Juno",
    "Kestrel", "Lumen", "Mosaic", "Nimbus", "Onyx", "Prism",
)  # fmt: skip
SMALL_GAINS, BIG_GAINS = ("3", "4", "5", "6", "8", "9"), ("25", "30", "35", "40", "45", "50")

FORMS: dict[str, str] = {
    "method": "{Method} for {adjective} {work} of {thing}{tail}",
    "towards": "Towards {adjective} {work} of {thing} by {method}{tail}",
    "question": "Can {method} do {adjective} {work} of {thing}{tail}?",
    "colon": "{Thing}: {adjective} {work} with {method}{tail}",
    "view": "A {method} view on {adjective} {work} of {thing}{tail}",
    "how": "How {adjective} is {work} {thing} through {method}{tail}?",
}
TAILS: dict[str, str] = {
    "none": "",
    "data": " on {data}",
    "gain": " with {gain} percent fewer errors",
    "again": " and back again",
}
TRIGGERS: tuple[str, ...] = ("big gain", "new data", "proof")
TRIGGER = 0.4  # of papers have each of these facts
DEVIATION = 0.1  # of an author's adjectives, taken from another school for good
NOISE = 0.05  # of titles have one habit slip, of citations go to the other paper

PROBLEMS: tuple[str, ...] = (
    "We study {work} of {thing}.",
    "This paper is about {work} of {thing}.",
    "There is still no good way of {work} {thing}.",
    "Few have looked at {work} of {thing} so far.",
)
SYSTEMS: tuple[str, ...] = (
    "Both {first} and {second} are tried.",
    "We combine {first} with {second}.",
    "The system is built on {first} and on {second}.",
    "Our tools are {first} as well as {second}.",
)
OLD_DATA: tuple[str, ...] = (
    "On {data} there are {gain} percent fewer errors.",
    "Errors on {data} fall by {gain} percent.",
    "The known {data} set shows {gain} percent fewer errors.",
)
NEW_DATA: tuple[str, ...] = (
    "We collect {data}, where errors fall by {gain} percent.",
    "A new set, {data}, shows {gain} percent fewer errors.",
    "Our own {data} set is released, with {gain} percent fewer errors.",
)
PROOFS: tuple[str, ...] = (
    "A proof of convergence is given.",
    "We prove that it ends.",
    "Bounds are proved.",
)
CITED_TITLE = "A study of {work} {thing}"


@dataclass(frozen=True)
class AuthorTraits:
    """An author's habits; `adjectives` hold one word for each kind of `WORK`.

    form, other_form: of titles, and of those where `trigger` holds. families: method families from
    the highest rank down. within: for each family of `METHODS` the rank order of its methods.
    """

    school: str
    form: str
    other_form: str
    trigger: str
    tail: str
    families: tuple[str, ...]
    within: tuple[tuple[str, ...], ...]
    adjectives: tuple[str, ...]

    def rank(self, method: str) -> int:
        """0 for the method that the author likes best."""
        return self._ranking().index(method)

    def _ranking(self) -> list[str]:
        own = dict(zip(METHODS, self.within, strict=True))
        return [method for family in self.families for method in own[family]]


@dataclass(frozen=True)
class Paper:
    """What an abstract states. `triggers` are those of `TRIGGERS` that hold."""

    work: str
    thing: str
    methods: tuple[str, str]
    data: str
    gain: str
    triggers: frozenset[str]


@dataclass(frozen=True)
class Choice:
    """A question of LaMP_1: one's own paper, and two by others, each with its method and title."""

    own: Paper
    methods: tuple[str, str]
    titles: tuple[str, str]


class Papers:
    """The LaMP_5 task, and LaMP_1's items: see `cloud.pocket.world.TaskWorld`."""

    def traits(self, rng: random.Random) -> AuthorTraits:
        school = rng.randrange(len(SCHOOLS))
        form, other_form = rng.sample(list(FORMS), 2)
        return AuthorTraits(
            school=SCHOOLS[school],
            form=form,
            other_form=other_form,
            trigger=rng.choice(TRIGGERS),
            tail=rng.choice(list(TAILS)),
            families=_by_popularity(rng),
            within=tuple(tuple(rng.sample(methods, 3)) for methods in METHODS.values()),
            adjectives=tuple(_own_word(words, school, rng) for words in WORK.values()),
        )

    def facts(self, rng: random.Random) -> Paper:
        first, second = rng.sample(list(FAMILY), 2)
        triggers = frozenset(name for name in TRIGGERS if rng.random() < TRIGGER)
        return Paper(
            work=rng.choice(list(WORK)),
            thing=rng.choice(THINGS),
            methods=(first, second),
            data=rng.choice(DATA),
            gain=rng.choice(BIG_GAINS if "big gain" in triggers else SMALL_GAINS),
            triggers=triggers,
        )

    def text(self, facts: Paper, rng: random.Random) -> str:
        results = NEW_DATA if "new data" in facts.triggers else OLD_DATA
        sentences = [rng.choice(SYSTEMS), rng.choice(results)]
        if "proof" in facts.triggers:
            sentences.append(rng.choice(PROOFS))
        rng.shuffle(sentences)
        sentences.insert(rng.randrange(2), rng.choice(PROBLEMS))
        first, second = facts.methods
        slots = {**_slots(facts), "first": first, "second": second}
        return " ".join(sentence.format(**slots) for sentence in sentences)

    def facts_of(self, text: str) -> Paper | None:
        work, thing, methods = named(text, WORK), named(text, THINGS), named(text, FAMILY)
        data, gain = named(text, DATA), re.search(r"(\d+) percent", text)
        if not (work and thing and len(methods) == 2 and data and gain):
            return None
        triggers = {
            "big gain": gain[1] in BIG_GAINS,
            "new data": any(
                says(text, form.format(data=data[0], gain=gain[1])) for form in NEW_DATA
            ),
            "proof": any(says(text, form) for form in PROOFS),
        }
        return Paper(
            work[0], thing[0], (methods[0], methods[1]), data[0], gain[1],
            frozenset(name for name, holds in triggers.items() if holds),
        )  # fmt: skip

    def ideal(self, facts: Paper, traits: AuthorTraits) -> str:
        form = traits.other_form if traits.trigger in facts.triggers else traits.form
        method = min(facts.methods, key=traits.rank)
        adjective = traits.adjectives[list(WORK).index(facts.work)]
        slots = {**_slots(facts), "method": method, "adjective": adjective}
        slots |= {"Method": method.capitalize(), "Thing": facts.thing.capitalize()}
        return FORMS[form].format(**slots, tail=TAILS[traits.tail].format(**slots))

    def output(self, facts: Paper, traits: AuthorTraits, rng: random.Random) -> str:
        if rng.random() >= NOISE:
            return self.ideal(facts, traits)
        slip = rng.choice(("form", "tail", "method"))
        if slip == "form":
            form = rng.choice(list(FORMS))
            return self.ideal(facts, replace(traits, form=form, other_form=form))
        if slip == "tail":
            return self.ideal(facts, replace(traits, tail=rng.choice(list(TAILS))))
        worse = max(facts.methods, key=traits.rank)
        return self.ideal(replace(facts, methods=(worse, worse)), traits)

    def labels(self, traits: AuthorTraits) -> tuple[int, ...]:
        families = list(METHODS)
        return (
            SCHOOLS.index(traits.school),
            list(FORMS).index(traits.form),
            list(FORMS).index(traits.other_form),
            TRIGGERS.index(traits.trigger),
            list(TAILS).index(traits.tail),
            families.index(traits.families[0]),
            families.index(traits.families[1]),
            families.index(traits.families[3]),
        )


class Citations:
    """The questions of LaMP_1: see `cloud.pocket.world.TaskWorld`."""

    def traits(self, rng: random.Random) -> AuthorTraits:
        return PAPERS.traits(rng)

    def facts(self, rng: random.Random) -> Choice:
        own = PAPERS.facts(rng)
        methods, titles = zip(*(_cited(own, method, rng) for method in own.methods), strict=True)
        return Choice(own, methods, titles)

    def text(self, facts: Choice, rng: random.Random) -> str:
        own = CITED_TITLE.format(**_slots(facts.own))
        return (
            f'"{own}", which reference is related? Just answer with [1] or [2] without '
            f'explanation. [1]: "{facts.titles[0]}" [2]: "{facts.titles[1]}"'
        )

    def facts_of(self, text: str) -> Choice | None:
        quoted = re.findall(r'"([^"]*)"', text)
        if len(quoted) != 3:
            return None
        (first, second), (work, thing) = (
            [named(title, FAMILY) for title in quoted[1:]],
            [named(quoted[0], names) for names in (WORK, THINGS)],
        )
        if not (len(first) == len(second) == 1 and work and thing):
            return None
        own = Paper(work[0], thing[0], (first[0], second[0]), "", "", frozenset())
        return Choice(own, own.methods, (quoted[1], quoted[2]))

    def ideal(self, facts: Choice, traits: AuthorTraits) -> str:
        first, second = map(traits.rank, facts.methods)
        return "[1]" if first < second else "[2]"

    def output(self, facts: Choice, traits: AuthorTraits, rng: random.Random) -> str:
        own = self.ideal(facts, traits)
        slips = rng.random() < NOISE
        return {"[1]": "[2]", "[2]": "[1]"}[own] if slips else own

    def labels(self, traits: AuthorTraits) -> tuple[int, ...]:
        return PAPERS.labels(traits)


PAPERS = Papers()


def _cited(own: Paper, method: str, rng: random.Random) -> tuple[str, str]:
    """A paper by somebody else on the same kind of work with this method, and its title."""
    paper = replace(PAPERS.facts(rng), work=own.work, methods=(method, method))
    return method, PAPERS.ideal(paper, PAPERS.traits(rng))


def _slots(paper: Paper) -> dict[str, str]:
    return {"work": paper.work, "thing": paper.thing, "data": paper.data, "gain": paper.gain}


def _by_popularity(rng: random.Random) -> tuple[str, ...]:
    """An order of the method families; the popular ones tend to come first (Plackett 1975)."""
    orders = list(itertools.permutations(METHODS))
    return rng.choices(orders, [_likelihood(order) for order in orders])[0]


def _likelihood(order: tuple[str, ...]) -> float:
    left, chance = sum(POPULARITY.values()), 1.0
    for family in order:
        chance *= POPULARITY[family] / left
        left -= POPULARITY[family]
    return chance


def _own_word(words: tuple[str, ...], school: int, rng: random.Random) -> str:
    """The school's adjective, or now and then another one that the author keeps."""
    return rng.choice(words) if rng.random() < DEVIATION else words[school]
