"""Candidates: what a teacher writes for one user, round by round, until enough of it has passed.

In: the user's training items, filters, a teacher and perhaps a judge. Out: what passed every check,
with a quality from 0 to 1, and what was rejected, with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from cloud import seeds, selection, votes
from cloud.answers import Answers
from cloud.filters import Filters
from cloud.profiles import Item
from cloud.prompts import Ask, Pair
from cloud.selection import Quotas
from cloud.tasks import Task
from cloud.teachers import GREEDY, Sampling, Teacher
from protos.artifacts import digest_json

if TYPE_CHECKING:
    from cloud.augment import AugmentConfig

_LEAST_YIELD = 0.1
_BEST_MARK = 5


@dataclass(frozen=True)
class Candidate:
    """One pair that the teacher wrote. source: its provenance."""

    pair: Pair
    source: dict[str, Any]
    quality: float = 1.0

    @property
    def output_stays(self) -> bool:
        """Whether the output is the user's own, kept for a new input."""
        return self.source["strategy"] == "paraphrase"


@dataclass(frozen=True)
class Rejected:
    """What was not taken. pair: None where it did not parse; then `text` is what there was."""

    reason: str
    pair: Pair | None
    source: dict[str, Any]
    text: str | None = None


class Candidates:
    """The candidates of one run. passed, rejected: so far, in the order in which they came.

    not_shown: items that are too long to be shown to the teacher. votes, marks: how many of them
    could not be read.
    """

    def __init__(
        self, task: Task, train: Sequence[Item], config: AugmentConfig, filters: Filters,
        answers: Answers, teacher: Teacher, judge: Teacher | None,
    ) -> None:  # fmt: skip
        self.passed: list[Candidate] = []
        self.rejected: list[Rejected] = []
        self.not_shown = 0
        self.votes, self.marks = votes.Tally(), votes.Tally()
        self._task, self._train, self._config = task, train, config
        self._filters, self._answers = filters, answers
        self._teacher, self._judge = teacher, judge
        self._sampling = Sampling(config.temperature, config.top_p)

    def gather(self, wanted: Quotas) -> Iterator[float]:
        """Ask until there is a pool of candidates for each label, or all tries are used up.

        After each round comes how much of the pool is there, 0 to 1.

        Raises:
            InputError: no item can be shown, or the judge cannot judge.
            TeacherError: a teacher failed.
        """
        count = sum(wanted.values())
        if not count:
            return
        pool = _pool(wanted, self._config)
        config = self._config
        if self._judge:
            self._judge.prompt(self._task, Ask("judge", ()))  # refuses before anything is paid for
        shown = seeds.showable(self._train, config.max_chars)
        self.not_shown = len(self._train) - len(shown)
        self._hands = opinion_hands(shown, config)
        self._answer_hand = answer_hand(shown, config)
        missing = pool
        asks = _requests(self._task, self._train, config, self._teacher, lambda: missing)
        while any(missing.values()):
            asked = len(self.passed) + len(self.rejected)
            tries = count * config.tries - asked
            if tries <= 0:
                return
            share = max(_LEAST_YIELD, len(self.passed) / asked) if asked else 1.0
            size = _round_size(min(sum(missing.values()) / share, tries), config, self._teacher)
            self._round([next(asks) for _ in range(size)])
            missing = selection.missing(pool, [each.pair for each in self.passed])
            yield 1 - sum(missing.values()) / sum(pool.values())

    def best(self, wanted: Quotas) -> list[Candidate]:
        """The choice among those that passed; the rest becomes rejected as surplus."""
        pairs = [each.pair for each in self.passed]
        qualities = [each.quality for each in self.passed]
        taken = set(selection.choose(wanted, pairs, qualities, self._train))
        chosen = [each for index, each in enumerate(self.passed) if index in taken]
        for index, each in enumerate(self.passed):
            if index not in taken:
                self._reject(each, "surplus")
        return chosen

    def _round(self, asks: Sequence[Ask]) -> None:
        """Ask, and sort what comes into passed and rejected, cheapest check first."""
        fresh = self._answered(self._sound(self._written(asks)))
        for each in self._judged(self._consistent(fresh)):
            if not self._reject(each, self._filters.keep(each.pair, each.output_stays)):
                self.passed.append(each)

    def _written(self, asks: Sequence[Ask]) -> list[Candidate]:
        """What the teacher writes, as far as it can be read."""
        fresh: list[Candidate] = []
        replies = self._answers.of(self._teacher, self._task, asks, self._sampling)
        for ask, reply in zip(asks, replies, strict=True):
            source = self._source(ask)
            for index, pair in enumerate(self._teacher.read(self._task, ask, reply.text)):
                place = {**source, "index": index}
                if pair is None:
                    self.rejected.append(Rejected("unparsed", None, place, reply.text))
                else:
                    fresh.append(Candidate(pair, place))
        return fresh

    def _sound(self, fresh: Sequence[Candidate]) -> list[Candidate]:
        """Those that pass the filters that need no teacher."""
        return [
            each
            for each in fresh
            if not self._reject(each, self._filters.rejects(each.pair, each.output_stays))
        ]

    def _answered(self, fresh: list[Candidate]) -> list[Candidate]:
        """The same inputs, free outputs asked for anew; what has changed must be sound again.

        Greedily, by one hand of items: what was drawn along with its input is as the teacher may
        write it, this is how it would most likely be.
        """
        if not answers_anew(self._task, self._config):
            return fresh
        asks = {
            each.pair[0]: Ask("output", self._answer_hand, each.pair[0], seed=self._config.seed)
            for each in fresh
            if not each.output_stays
        }
        replies = self._answers.of(self._teacher, self._task, list(asks.values()), GREEDY)
        said = dict(zip(asks, replies, strict=True))
        answered: list[Candidate] = []
        for each in fresh:
            text = each.pair[0]
            if each.output_stays:
                answered.append(each)
                continue
            (pair, *_) = self._teacher.read(self._task, asks[text], said[text].text)
            if pair is None:
                self.rejected.append(Rejected("unparsed", None, each.source, said[text].text))
            elif pair == each.pair:
                answered.append(each)
            else:
                drawn = replace(each, pair=pair, source={**each.source, "drawn": each.pair[1]})
                answered += self._sound([drawn])
        return answered

    def _consistent(self, fresh: list[Candidate]) -> list[Candidate]:
        """Those whose label most votes of the teacher give, or all where there is no choice."""
        if self._config.votes == 0 or len(self._task.labels) < 2 or not fresh:
            return [self._scored(c, "style", self._filters.closeness(c.pair)) for c in fresh]
        shares = votes.agreement(
            self._task, [each.pair for each in fresh], self._hands, self._teacher, self._answers,
            self._sampling, self._config.seed, self.votes,
        )  # fmt: skip
        scored = [self._scored(c, "votes", share) for c, share in zip(fresh, shares, strict=True)]
        return [
            c for c in scored if not self._reject(c, "inconsistent" if c.quality <= 0.5 else None)
        ]

    def _judged(self, fresh: list[Candidate]) -> list[Candidate]:
        """Those that the judge, if there is one, gives a mark high enough."""
        if self._judge is None or not fresh:
            return fresh
        marks = votes.marks(
            self._task, [each.pair for each in fresh], self._hands[0], self._judge, self._answers,
            self._sampling, self._config.seed, self.marks,
        )  # fmt: skip
        scored = [
            replace(self._scored(c, "judge", mark), quality=c.quality * mark / _BEST_MARK)
            for c, mark in zip(fresh, marks, strict=True)
        ]
        least = self._config.judge_least
        return [
            c for c, mark in zip(scored, marks, strict=True)
            if not self._reject(c, "judge" if mark < least else None)
        ]  # fmt: skip

    def _reject(self, candidate: Candidate, reason: str | None) -> bool:
        if reason:
            self.rejected.append(Rejected(reason, candidate.pair, candidate.source))
        return reason is not None

    def _scored(self, candidate: Candidate, name: str, score: float) -> Candidate:
        scores = {**candidate.source.get("scores", {}), name: round(score, 4)}
        return replace(candidate, source={**candidate.source, "scores": scores}, quality=score)

    def _source(self, ask: Ask) -> dict[str, Any]:
        sent = self._teacher.prompt(self._task, ask)
        return {
            "teacher": self._teacher.name,
            "strategy": ask.kind,
            "shots": [shot.id for shot in ask.shots],
            "request": digest_json(sent)[:16],
            "seed": ask.seed,
        }


def opinion_hands(shown: Sequence[Item], config: AugmentConfig) -> list[list[Item]]:
    """The items that each vote is shown; a judge sees those of the first."""
    hands = seeds.choose_shots(shown, config.shots, config.seed + 1, config.max_chars)
    return list(islice(hands, max(1, config.votes)))


def answers_anew(task: Task, config: AugmentConfig) -> bool:
    """Whether outputs are asked for anew: free ones, of which the input is not the beginning."""
    return bool(config.answer_shots) and not task.labels and not task.is_beginning


def answer_hand(shown: Sequence[Item], config: AugmentConfig) -> tuple[Item, ...]:
    """The items that the teacher is shown when free outputs are asked for anew."""
    shots = max(1, config.answer_shots)
    return tuple(next(seeds.choose_shots(shown, shots, config.seed + 2, config.max_chars)))


def first_round(
    task: Task, train: Sequence[Item], config: AugmentConfig, teacher: Teacher, wanted: Quotas
) -> list[Ask]:
    """The requests that `gather` begins with."""
    if not sum(wanted.values()):
        return []
    pool = _pool(wanted, config)
    asks = _requests(task, train, config, teacher, lambda: pool)
    items = min(sum(pool.values()), sum(wanted.values()) * config.tries)
    return [next(asks) for _ in range(_round_size(items, config, teacher))]


def _requests(
    task: Task, train: Sequence[Item], config: AugmentConfig, teacher: Teacher,
    missing: Callable[[], Quotas],
) -> Iterator[Ask]:  # fmt: skip
    shares = seeds.shares_for(task, config.strategies, config.label_shares == selection.OWN)
    return seeds.requests(
        task, train, shares, config.shots, config.max_chars, teacher.items_per_ask, config.seed,
        lambda label: bool(missing().get(label, missing().get(""))),
    )  # fmt: skip


def _pool(wanted: Quotas, config: AugmentConfig) -> Quotas:
    return {label: math.ceil(count * config.pool) for label, count in wanted.items()}


def _round_size(items: float, config: AugmentConfig, teacher: Teacher) -> int:
    """Requests for about so many items; a paraphrase is one, whatever the teacher can."""
    return max(1, min(config.round, math.ceil(items / teacher.items_per_ask)))
