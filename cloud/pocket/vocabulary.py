"""Words that several tasks of the pocket world share. Closed lists keep the tokenizer small."""

import functools
import re
from collections.abc import Iterable

CITIES: tuple[str, ...] = (
    "Oslo", "Lisbon", "Vienna", "Dublin", "Prague", "Madrid", "Zurich", "Athens", "Cairo",
    "Lima", "Quito", "Havana", "Boston", "Denver", "Austin", "Seattle", "Tokyo", "Seoul",
    "Delhi", "Hanoi", "Manila", "Jakarta", "Nairobi", "Accra", "Dakar", "Tunis", "Riga",
    "Tallinn", "Warsaw", "Geneva",
)  # fmt: skip
DAYS: tuple[str, ...] = (
    "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday",
)  # fmt: skip
SURNAMES: tuple[str, ...] = (
    "Holt", "Berg", "Silva", "Novak", "Okafor", "Tanaka", "Meyer", "Rossi", "Duarte", "Larsen",
    "Keller", "Moreau", "Ivanov", "Santos", "Nguyen", "Patel", "Haddad", "Kowal", "Fischer",
    "Brandt", "Costa", "Lindgren", "Mensah", "Osei", "Romero", "Varga", "Weber", "Yilmaz",
    "Zhao", "Quinn", "Abbott", "Cohen", "Dumas", "Ferrer", "Gallo", "Hansen",
)  # fmt: skip
NUMBERS: tuple[str, ...] = (
    "11", "12", "14", "15", "16", "18", "20", "24", "25", "30", "32", "35", "36", "40", "45",
    "48", "50", "54", "60", "64", "70", "72", "75", "80", "90", "96", "110", "120", "140",
    "150", "160", "180", "200", "240", "250", "300", "320", "350", "400", "450", "500", "600",
    "700", "750", "800", "900",
)  # fmt: skip


def named(text: str, names: Iterable[str]) -> list[str]:
    """Which of the names stand in a text as whole words, in its order; capitals do not matter."""
    places = {name: _whole(name).search(text) for name in names}
    found = {name: place.start() for name, place in places.items() if place}
    return sorted(found, key=found.__getitem__)


def says(text: str, template: str) -> bool:
    """Whether a text has a sentence of this form, with any one word in each `{slot}`."""
    return bool(_form(template).search(text))


@functools.cache
def _whole(name: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(name)}(?!\w)", re.IGNORECASE)


@functools.cache
def _form(template: str) -> re.Pattern[str]:
    return re.compile(r"\w+".join(re.escape(part) for part in re.split(r"\{\w+\}", template)))
