"""Personal data is taken out of what leaves for a teacher, and put back into what returns.

In: a teacher and one user's items. Out: the same teacher behind placeholders such as
`<EMAIL_ADDRESS_1>`, each standing for the same value all through the run. What is found stands in
docs/augmentation.md: it is what Presidio's pattern recognizers know, and long numbers; names of
people and places are not, for they need a model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from cloud.profiles import Item
from cloud.prompts import Ask, Message, Pair
from cloud.tasks import Task
from cloud.teachers import Reply, Sampling, Teacher
from protos.errors import InputError

_PLACEHOLDER = re.compile(r"<[A-Z]+(?:_[A-Z]+)*_\d+>")
_LONG_NUMBER = r"(?<![0-9A-Za-z.])\+?\d(?:[ ().\-/]{0,2}\d){8,}(?![0-9A-Za-z])"
_LED = r"[^\w\n]{0,3}(?:(?:me|us|at|on|is|no|nr|number|nummer|n[uú]mero)\b[^\w\n]{0,3}){0,3}"
_CALL = r"\b(?:call|phone|telephone|tel|ring|dial|fax|mobile|cell|telefon|tel[eé]fono)\b|电话|手机"
_SHORT_NUMBER = rf"(?<=(?:{_CALL}){_LED})\d{{3}}[ .\-]?\d\d[ .\-]?\d\d(?![\w\-/]|\.\d)"
_PASS = r"\b(?:passports?|pasaporte|passaporto|passeport|reisepass|passnummer)\b|护照"
_PASSPORT = rf"(?<=(?:{_PASS}){_LED})(?=\w*\d\w*\d\w*\d)[A-Z0-9]{{6,10}}(?![A-Z0-9])"
"""Too ordinary to be found but right behind the word that says what they are."""
_YEAR = r"(?:1[5-9]|20)\d\d"
_DAY = r"(?:0?[1-9]|[12]\d|3[01])"
_DATE = rf"(?:{_YEAR}[-/.]{_DAY}[-/.]{_DAY}|{_DAY}[-/.]{_DAY}[-/.]{_YEAR})"
_DATES = rf"(?:[0-5]?\d )?{_DATE}(?:[-/]{_DATE})?(?: (?:[01]?\d|2[0-3]))?"
_ISBN, _DOI = r"97[89](?:[- ]?\d){10}", r"10\.\d{4,9}/[\d./\-]+"
_PHRASES = re.compile(rf"(?<![\d./\-])(?:{_DATES}|{_ISBN}|{_DOI})(?![./\-]?\d)")
"""Dates, with the ends of the times that stand beside them, and what publications go by."""
_WORDS = re.compile(
    rf"{_YEAR}(?:[-/](?:{_YEAR}|\d\d))?|(?:0|[1-9]\d?)\.\d+|[1-9]\d{{2,5}}\.\d{{1,5}}"
    r"|(?=(?:-?\d){10}$)\d{1,5}-\d{1,7}-\d{1,7}-\d"
)
"""Years, decimals (prices and arXiv's numbers among them), old ISBNs."""
_HARMLESS = ("URL",)
"""Taken out all the same, but no reason to reject what a teacher has invented."""
_MIN_REPEATED = 6
Found = list[tuple[int, int, str]]


class Scrubber:
    """Values and their placeholders, for one user. texts: all that may be sent, oldest first."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._find = _finder()
        self._own_names = {name for text in texts for name in _names(text)}
        self._placeholders: dict[str, str] = {}
        self._values: dict[str, str] = {}
        found = {text: self._found_replaced(text) for text in texts}
        # What a later text gave away is taken out of the earlier ones, too.
        self._scrubbed = {text: self._known_replaced(made) for text, made in found.items()}

    def scrub(self, text: str) -> str:
        """The text with placeholders."""
        if text not in self._scrubbed:
            self._scrubbed[text] = self._known_replaced(self._found_replaced(text))
        return self._scrubbed[text]

    def restore(self, text: str) -> str:
        """The text with the values that the placeholders stand for; unknown ones stay."""
        return _PLACEHOLDER.sub(lambda found: self._values.get(found[0], found[0]), text)

    def is_foreign(self, text: str) -> bool:
        """Whether a restored text holds personal data, or a placeholder, that is not the user's.

        Also one that was mangled, such as `[EMAIL_ADDRESS_1]` or `<EMAIL_ADDRESS>`.
        """
        if _names(text) - self._own_names:
            return True
        found = ((text[start:stop], kind) for start, stop, kind in self._find(text))
        return any(
            value not in self._placeholders
            for value, kind in found
            if kind not in _HARMLESS and not (kind == "PHONE_NUMBER" and _is_nobodys(value))
        )

    @property
    def count(self) -> int:
        """How many values were taken out."""
        return len(self._values)

    def _placeholder(self, value: str, kind: str) -> str:
        if value not in self._placeholders:
            self._placeholders[value] = name = f"<{kind}_{len(self._values) + 1}>"
            self._values[name] = value
        return self._placeholders[value]

    def _found_replaced(self, text: str) -> str:
        made, end = list[str](), 0
        for start, stop, kind in self._find(text):
            made += [text[end:start], self._placeholder(text[start:stop], kind)]
            end = stop
        return "".join([*made, text[end:]])

    def _known_replaced(self, text: str) -> str:
        for value in sorted(self._placeholders, key=len, reverse=True):
            if len(value) >= _MIN_REPEATED and not _PLACEHOLDER.fullmatch(value):
                text = text.replace(value, self._placeholders[value])
        return text


@dataclass(frozen=True)
class Scrubbed:
    """A teacher that sees placeholders only."""

    teacher: Teacher
    scrubber: Scrubber

    @property
    def name(self) -> str:
        return self.teacher.name

    @property
    def digest(self) -> str:
        return self.teacher.digest

    @property
    def third_party(self) -> bool:
        return self.teacher.third_party

    @property
    def is_remote(self) -> bool:
        return self.teacher.is_remote

    @property
    def items_per_ask(self) -> int:
        return self.teacher.items_per_ask

    def prompt(self, task: Task, ask: Ask) -> str | list[Message]:
        return self.teacher.prompt(*self._scrubbed(task, ask))

    def write(
        self, task: Task, asks: Sequence[Ask], sampling: Sampling
    ) -> Iterator[tuple[int, Reply]]:
        scrubbed = [self._scrubbed(task, ask)[1] for ask in asks]
        return self.teacher.write(self._task(task), scrubbed, sampling)

    def read(self, task: Task, ask: Ask, text: str) -> list[Pair | None]:
        restore = self.scrubber.restore
        read = self.teacher.read(*self._scrubbed(task, ask), text)
        return [(restore(pair[0]), restore(pair[1])) if pair else None for pair in read]

    def _scrubbed(self, task: Task, ask: Ask) -> tuple[Task, Ask]:
        scrub = self.scrubber.scrub
        shots = tuple(
            Item(shot.id, scrub(shot.input), scrub(shot.output), shot.date) for shot in ask.shots
        )
        made = replace(ask, shots=shots, text=scrub(ask.text), output=scrub(ask.output))
        return self._task(task), made

    def _task(self, task: Task) -> Task:
        scrub = self.scrubber.scrub
        return replace(task, prompt=scrub(task.prompt), labels=tuple(map(scrub, task.labels)))


def _is_nobodys(number: str) -> bool:
    """Whether a long number is dates, years, decimals or a publication's, and nothing besides."""
    words = (word.strip(".-/") for word in re.split(r"[ ()]+", _PHRASES.sub(" ", number)))
    return all(_WORDS.fullmatch(word) for word in words if word)


def _names(text: str) -> set[str]:
    """What looks like the name of a placeholder, with whatever brackets and escapes."""
    return {found[0].replace("\\", "") for found in _mangled().finditer(text)}


@cache
def _mangled() -> re.Pattern[str]:
    """Names of placeholders. A kind that is a word, such as URL, needs a number or brackets."""
    kinds = sorted({kind for each in _recognizers() for kind in each.supported_entities})
    names = "|".join(kind.replace("_", r"\\?_") for kind in kinds)
    compound = "|".join(kind.replace("_", r"\\?_") for kind in kinds if "_" in kind)
    return re.compile(
        rf"(?<![A-Za-z0-9])(?:{names})\\?_\d+(?![A-Za-z0-9])"
        rf"|(?<![A-Za-z0-9_])(?:{compound})(?!\\?_|[A-Za-z0-9])"
        rf"|(?<=<)(?:{names})(?=\\?>)|(?<=\[)(?:{names})(?=\\?\])|(?<=&lt;)(?:{names})(?=&gt;)"
    )


@cache
def _recognizers() -> list[Any]:
    """Those of Presidio's pattern recognizers that are precise without a model, and our own.

    Those that need words around a number to be sure find these by a model's lemmas.

    Raises:
        InputError: the extra `privacy` is not installed.
    """
    try:
        from presidio_analyzer import Pattern, PatternRecognizer
        from presidio_analyzer import predefined_recognizers as known
    except ImportError:
        raise _not_installed() from None
    return [
        known.EmailRecognizer(), known.PhoneRecognizer(), known.CreditCardRecognizer(),
        known.IbanRecognizer(), known.IpRecognizer(), known.UrlRecognizer(),
        known.UsSsnRecognizer(), known.CryptoRecognizer(), known.MacAddressRecognizer(),
        # its weaker patterns take a time that grows with the square of the text
        known.InPanRecognizer(patterns=known.InPanRecognizer.PATTERNS[:1]),
        *(each(supported_language="en") for each in (
            known.UkNinoRecognizer, known.UkDrivingLicenceRecognizer,
            known.ItFiscalCodeRecognizer, known.EsNifRecognizer, known.EsNieRecognizer,
            known.FiPersonalIdentityCodeRecognizer, known.SgFinRecognizer,
            known.DeSocialSecurityRecognizer, known.UsMbiRecognizer,
        )),
        PatternRecognizer("PHONE_NUMBER", patterns=[
            Pattern("long number", _LONG_NUMBER, 0.4), Pattern("short number", _SHORT_NUMBER, 0.4),
        ]),
        PatternRecognizer("PASSPORT", patterns=[Pattern("passport", _PASSPORT, 0.5)]),
        PatternRecognizer("PLACEHOLDER", patterns=[Pattern("ours", _PLACEHOLDER.pattern, 1.0)]),
    ]  # fmt: skip


def _not_installed() -> InputError:
    return InputError(
        "personal data is taken out of what a remote teacher is sent, which needs "
        "pip install 'pocketune[privacy]'; --scrub off sends the items as they are"
    )


@cache
def _finder() -> Callable[[str], Found]:
    """Presidio's pattern recognizers on a blank spaCy pipeline: no model, no network.

    Raises:
        InputError: the extra `privacy` is not installed.
    """
    try:
        import spacy
        import tldextract
        import tldextract.tldextract as domains
        from presidio_analyzer import AnalyzerEngine, RecognizerRegistry
        from presidio_analyzer.nlp_engine import SpacyNlpEngine
    except ImportError:
        raise _not_installed() from None
    # It would fetch the list of top-level domains; the package has one.
    domains.TLD_EXTRACTOR = tldextract.TLDExtract(suffix_list_urls=())
    engine = SpacyNlpEngine(models=[{"lang_code": "en", "model_name": "blank"}])
    engine.nlp = {"en": spacy.blank("en")}
    registry = RecognizerRegistry(recognizers=_recognizers(), supported_languages=["en"])
    analyzer = AnalyzerEngine(
        registry=registry, nlp_engine=engine, supported_languages=["en"],
        default_score_threshold=0.4,
    )  # fmt: skip

    def find(text: str) -> Found:
        found = analyzer.analyze(text, "en")
        taken: Found = []
        for each in sorted(found, key=lambda r: (r.start, -r.end)):
            if not taken or each.start >= taken[-1][1]:
                taken.append((each.start, each.end, each.entity_type))
        return taken

    return find
