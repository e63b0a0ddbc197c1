"""Augment: a user's few items become a training set, with new ones that a teacher writes like them.

In: a Profile and a Teacher. Out: a Dataset: `train.jsonl` (all real items but the newest, repeated
where they would be too small a part, plus the synthetic ones), `valid.jsonl` (the newest real
items), `rejected.jsonl` (what was not taken, and why). Every row says whether it is real, and where
it came from. The teacher sees training items only, and a remote one no personal data.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloud import seeds, selection, votes
from cloud.answers import Answers
from cloud.candidates import (
    Candidate,
    Candidates,
    answer_hand,
    answers_anew,
    first_round,
    opinion_hands,
)
from cloud.filters import FILTERS, Filters, nothing_personal
from cloud.profiles import Consent, Item, Profile, read_profile, read_rows, write_rows
from cloud.prompts import Ask, Message
from cloud.randomness import seed_problems
from cloud.tasks import Task
from cloud.teachers import Calls, Teacher
from protos.artifacts import Artifact, create, finished, kept_dir, open_artifact
from protos.errors import InputError, TeacherError
from protos.progress import Progress, silent

if TYPE_CHECKING:
    from cloud.privacy import Scrubber

VALID_SHARE = 0.2
TRAIN_FILE, VALID_FILE, REJECTED_FILE = "train.jsonl", "valid.jsonl", "rejected.jsonl"
SCRUBBING = ("auto", "on", "off")
LABEL_SHARES = (selection.OWN, "teacher")


class UnreadableError(TeacherError):
    """A teacher answered, but not one of its replies for this user could be read."""


@dataclass(frozen=True)
class AugmentConfig:
    """How synthetic items are made.

    per_real: synthetic items wanted for each real training item. fill_to: items to train on, real
    ones included, above which no synthetic ones are wanted; 0 is no bound. real_share: least share
    of real rows in the mix: where real items are fewer, they are repeated. label_shares: how often
    a label comes among the synthetic items: as among the user's own, or as the teacher gives it.
    strategies: what the teacher is asked for, in which shares; `auto`: `label` where labels come as
    among the user's own, else `new`. shots, max_chars: items and characters shown in a request.
    answer_shots: items shown when a free output is asked for anew, greedily, once its input is
    there; 0 leaves it as it was written with it.
    votes: how often the teacher is asked, for a task with labels, which one the user would give; 0
    leaves it out. judge_least: least mark of a judge, 1 to 5. pool: candidates gathered for each
    one wanted, before the best are chosen. tries: candidates asked for at most, for each one
    wanted. round: requests sent at a time. scrub: whether personal data is taken out of what the
    teacher sees; `auto`: of what a remote one sees.
    """

    per_real: float = 1.0
    fill_to: int = 0
    real_share: float = 0.25
    label_shares: str = selection.OWN
    strategies: str = seeds.AUTO
    shots: int = 8
    answer_shots: int = 0
    max_chars: int = 24_000
    temperature: float = 1.0
    top_p: float = 0.95
    votes: int = 3
    judge_least: int = 3
    pool: float = 1.5
    tries: int = 6
    round: int = 32
    scrub: str = "auto"
    seed: int = 0

    def wanted(self, real: int) -> int:
        """How many synthetic items are wanted beside so many real ones."""
        most = max(0, self.fill_to - real) if self.fill_to else math.inf
        return round(min(self.per_real * real, most))

    def quotas(self, task: Task, train: Sequence[Item]) -> selection.Quotas:
        """How many are wanted of each label beside these real items, or of all together."""
        shares = train if self.label_shares == selection.OWN else ()
        return selection.quotas(task, shares, self.wanted(len(train)))

    def repeats(self, real: int, synthetic: int) -> int:
        """How many times the real items stand in the mix, so that they have their share of it."""
        least = self.real_share * synthetic / ((1 - self.real_share) * real)
        return max(1, math.ceil(round(least, 9)))

    def __post_init__(self) -> None:
        checks = {
            f"per_real is {self.per_real}, expected 0 to 100": 0 <= self.per_real <= 100,
            f"fill_to is {self.fill_to}, expected 0 or more": self.fill_to >= 0,
            f"real_share is {self.real_share}, expected 0 or more, below 1": (
                0 <= self.real_share < 1
            ),
            f"label_shares is {self.label_shares}, expected {', '.join(LABEL_SHARES)}": (
                self.label_shares in LABEL_SHARES
            ),
            f"shots is {self.shots}, expected 1 or more": self.shots >= 1,
            f"answer_shots is {self.answer_shots}, expected 0 or more": self.answer_shots >= 0,
            f"max_chars is {self.max_chars}, expected 1 or more": self.max_chars >= 1,
            f"temperature is {self.temperature}, expected above 0": self.temperature > 0,
            f"top_p is {self.top_p}, expected above 0, at most 1": 0 < self.top_p <= 1,
            f"votes is {self.votes}, expected 0 to 99": 0 <= self.votes <= 99,
            f"judge_least is {self.judge_least}, expected 1 to 5": 1 <= self.judge_least <= 5,
            f"pool is {self.pool}, expected 1 or more": self.pool >= 1,
            f"tries is {self.tries}, expected 1 or more": self.tries >= 1,
            f"round is {self.round}, expected 1 or more": self.round >= 1,
            f"scrub is {self.scrub}, expected {', '.join(SCRUBBING)}": self.scrub in SCRUBBING,
        }
        wrong = [message for message, sound in checks.items() if not sound]
        wrong += seed_problems(self.seed)
        if wrong:
            raise InputError("; ".join(wrong))
        seeds.parse_strategies(self.strategies)


def augment(
    profile: Artifact,
    teacher: Teacher,
    out: Path,
    config: AugmentConfig,
    progress: Progress = silent,
    judge: Teacher | None = None,
    calls: Calls | None = None,
    beside: Path | None = None,
) -> Artifact:
    """Make the Dataset of one profile; an unchanged one is left as it is.

    What the teachers answer is kept beside `out`, in a hidden folder, until the profile changes:
    no other run for it pays for the same again, and none that names the same place in `beside`.

    Where nothing that the teacher wrote passes, the Dataset holds the real items alone, and a
    `warning` is among its figures.

    Args:
        judge: another teacher, whose mark every candidate must reach. calls: prices, for accounts.
        beside: where else answers are kept, for Datasets of one profile that share them.

    Raises:
        InputError: the user did not consent to a third-party teacher, or no item can be shown.
        TeacherError: a teacher failed.
        UnreadableError: one answered, but not one of its items, votes or marks could be read.
    """
    parents = {"profile": profile.id, "teacher": teacher.digest}
    resolved = {**asdict(config), "teacher": teacher.name, "task": profile.config["task"]}
    if judge:
        parents["judge"], resolved["judge"] = judge.digest, judge.name
    if current := finished(out, "Dataset", parents, resolved):
        return current
    for asked in filter(None, (teacher, judge)):
        check_consent(profile, asked)
    user = read_profile(profile)
    train, valid = split(user.items)
    wanted = config.quotas(user.task, train)
    scrubber = scrubber_for(user.task, train, config, teacher, judge) if config.per_real else None
    with kept_dir(beside or out, {"profile": profile.id}) as folder:
        answers = Answers(folder)
        filters = filters_for(user, train, valid, scrubber)
        writer = behind(scrubber, config, teacher)
        critic = behind(scrubber, config, judge) if judge else None
        found = Candidates(user.task, train, config, filters, answers, writer, critic)
        for done in found.gather(wanted):
            progress(f"{len(found.passed)} passed, {len(found.rejected)} rejected", done)
        kept = found.best(wanted)
        counts = Counter(each.reason for each in found.rejected)
        in_vain = not kept and sum(wanted.values())
        warning = _in_vain(profile, teacher, judge, found, counts) if in_vain else ""
        progress(warning or f"{len(kept)} taken", 1.0)
        with create(out, "Dataset", parents, resolved) as draft:
            repeats = config.repeats(len(train), len(kept))
            real = [real_row(user.task, item) for item in train] * repeats
            synthetic = [synthetic_row(user.task, each) for each in kept]
            write_rows(draft.path / TRAIN_FILE, real + synthetic)
            write_rows(draft.path / VALID_FILE, [real_row(user.task, item) for item in valid])
            write_rows(draft.path / REJECTED_FILE, [asdict(each) for each in found.rejected])
            draft.measured.update(
                real=len(train), repeats=repeats, valid=len(valid), wanted=sum(wanted.values()),
                synthetic=len(kept), asked=len(kept) + len(found.rejected),
                rejected={name: counts[name] for name in FILTERS},
                votes=_counted(found.votes), marks=_counted(found.marks),
                not_shown=found.not_shown, scrubbed=scrubber.count if scrubber else None,
                spent=_accounts(answers, [teacher, judge], calls or Calls()), warning=warning,
                without={name: dict(each) for name, each in answers.without.items() if each},
            )  # fmt: skip
    return open_artifact(out, "Dataset")


def _in_vain(
    profile: Artifact, teacher: Teacher, judge: Teacher | None, found: Candidates,
    counts: Counter[str],
) -> str:  # fmt: skip
    """What is to be said of a teacher of whose items none was taken, and of who rejected them.

    Raises:
        UnreadableError: not one item, vote or mark could even be read: a teacher's fault.
    """
    if set(counts) == {"unparsed"}:
        raise UnreadableError(
            f"{profile.path}: {teacher.name} answered, but not one of {counts['unparsed']} answers "
            "was of the form that it was asked for; choose another teacher, or --per-real 0 for "
            "the real items alone"
        )
    unread = [
        _unread(profile, asked, kind, tally)
        for asked, kind, tally in (
            (teacher, "vote", found.votes), (judge or teacher, "mark", found.marks)
        )
        if tally.unread
    ]  # fmt: skip
    reasons = ", ".join(
        f"{name} {counts[name]}" + (f" by {judge.name}" if judge and name == "judge" else "")
        for name in FILTERS
        if counts[name]
    )
    return (
        f"nothing that {teacher.name} wrote passed the filters ({'; '.join([reasons, *unread])}): "
        "the Dataset holds the real items alone"
    )


def _unread(profile: Artifact, asked: Teacher, kind: str, tally: votes.Tally) -> str:
    """How many votes or marks could not be read.

    Raises:
        UnreadableError: none could.
    """
    if tally.is_in_vain:
        option = {"vote": "--votes 0", "mark": "no --judge"}[kind]
        raise UnreadableError(
            f"{profile.path}: {asked.name} was asked for {tally.asked} {kind}s, but not one could "
            f"be read (such as {tally.example[:60]!r}): expected nothing but the {kind}; choose "
            f"another teacher for it, or {option}"
        )
    return f"{tally.unread} of {tally.asked} {kind}s of {asked.name} could not be read"


def _counted(tally: votes.Tally) -> dict[str, int]:
    return {"asked": tally.asked, "unread": tally.unread}


def split(items: Sequence[Item]) -> tuple[list[Item], list[Item]]:
    """Items in time order, cut in two: older ones to train on, the newest to validate on."""
    newest = max(1, round(len(items) * VALID_SHARE))
    return list(items[:-newest]), list(items[-newest:])


def dry_run(
    profile: Artifact, teacher: Teacher, config: AugmentConfig, judge: Teacher | None = None
) -> Iterator[str | list[Message] | dict[str, Any]]:
    """Exactly what the teacher would be sent first; what comes after depends on its answers.

    Of an output asked for anew, a vote and a mark there is one example, as an object: `sent` is
    what would be sent if the teacher had written the user's own newest item that can be shown.
    """
    user = read_profile(profile)
    train, _ = split(user.items)
    wanted = config.quotas(user.task, train)
    if not sum(wanted.values()):
        return
    scrubber = scrubber_for(user.task, train, config, teacher, judge)
    writer = behind(scrubber, config, teacher)
    for ask in first_round(user.task, train, config, writer, wanted):
        yield writer.prompt(user.task, ask)
    shown = seeds.showable(train, config.max_chars)
    hand, item = opinion_hands(shown, config)[0], shown[-1]
    if answers_anew(user.task, config):
        ask = Ask("output", answer_hand(shown, config), item.input, seed=config.seed)
        yield _example("output", teacher, item, writer.prompt(user.task, ask))
    if config.votes and len(user.task.labels) > 1:
        ask = votes.vote(item.input, hand, config.seed)
        yield _example("vote", teacher, item, writer.prompt(user.task, ask))
    if judge:
        ask = votes.mark((item.input, item.output), hand, config.seed)
        yield _example("judge", judge, item, behind(scrubber, config, judge).prompt(user.task, ask))


def _example(kind: str, teacher: Teacher, item: Item, sent: str | list[Message]) -> dict[str, Any]:
    return {"example": kind, "to": teacher.name, "as_if_written": item.id, "sent": sent}


def examples(dataset: Artifact, each: int = 3) -> dict[str, list[dict[str, Any]]]:
    """For each filter that removed something, the first few rows that it removed."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in read_rows(dataset.file(REJECTED_FILE)):
        found.setdefault(row["reason"], []).append(row)
    return {name: found[name][:each] for name in FILTERS if name in found}


def check_consent(profile: Artifact, teacher: Teacher) -> None:
    """Refuse a third-party teacher without the user's consent, or after its days are over."""
    if not teacher.third_party:
        return
    consent = Consent(**profile.config["consent"])
    if not consent.third_party:
        raise InputError(
            f"{profile.path}: the user's consent does not allow a third-party teacher "
            f"({teacher.name}); import the profile with --third-party once they agree"
        )
    if consent_ended(profile):
        raise InputError(
            f"{profile.path}: the user's consent, for {consent.retention_days} days from "
            f"{profile.manifest.created[:10]}, is over; import the profile again once they agree"
        )


def consent_ended(profile: Artifact) -> bool:
    """Whether the days for which the user consented are over; 0 days never are."""
    days = Consent(**profile.config["consent"]).retention_days
    ends = date.fromisoformat(profile.manifest.created[:10]) + timedelta(days=days)
    return bool(days) and ends < datetime.now(UTC).date()


def scrubber_for(
    task: Task, train: Sequence[Item], config: AugmentConfig, teacher: Teacher,
    judge: Teacher | None = None,
) -> Scrubber | None:  # fmt: skip
    """What takes personal data out of the items, None where they are shown as they are."""
    asked = [each for each in (teacher, judge) if each]
    if not any(_is_scrubbed(config, each) for each in asked):
        return None
    from cloud.privacy import Scrubber

    texts = [task.prompt, *task.labels]
    return Scrubber([*texts, *(text for item in train for text in (item.input, item.output))])


def _is_scrubbed(config: AugmentConfig, teacher: Teacher) -> bool:
    return config.scrub == "on" or (config.scrub == "auto" and teacher.is_remote)


def behind(scrubber: Scrubber | None, config: AugmentConfig, teacher: Teacher) -> Teacher:
    """The teacher, seeing placeholders where it may not see personal data."""
    if scrubber is None or not _is_scrubbed(config, teacher):
        return teacher
    from cloud.privacy import Scrubbed

    return Scrubbed(teacher, scrubber)


def filters_for(
    user: Profile, train: list[Item], valid: list[Item], scrubber: Scrubber | None = None
) -> Filters:
    """The filters for what is written for one user, who trains on `train`."""
    inputs = [*(item.input for item in valid), *(q.input for q in user.questions)]
    outputs = [*(item.output for item in valid), *(q.output for q in user.questions if q.output)]
    is_personal = scrubber.is_foreign if scrubber else nothing_personal
    return Filters(user.task, train, inputs, outputs, is_personal)


def _accounts(
    answers: Answers, teachers: Sequence[Teacher | None], calls: Calls
) -> dict[str, dict[str, Any]]:
    """What each teacher was asked, wrote and cost, by its name; cut off runs included."""
    found = {
        teacher.name: asdict(answers.spent[teacher.name]) for teacher in filter(None, teachers)
    }
    return at_prices(found, teachers, calls)


def at_prices(
    spent: Mapping[str, Mapping[str, Any]], teachers: Sequence[Teacher | None], calls: Calls
) -> dict[str, dict[str, Any]]:
    """The accounts of a Dataset at these prices, whatever they were when it was made."""
    priced: dict[str, dict[str, Any]] = {}
    for teacher in filter(None, teachers):
        each = spent[teacher.name]
        tokens = each["prompt_tokens"], each["completion_tokens"]
        cost = calls.cost(*tokens) if teacher.is_remote else 0.0
        priced[teacher.name] = {**each, "cost": cost}
    return priced


def _row(task: Task, text: str, output: str) -> dict[str, Any]:
    return {"prompt": task.query(text), "completion": output, "input": text, "output": output}


def real_row(task: Task, item: Item) -> dict[str, Any]:
    """A row of a Dataset that holds one of the user's own items."""
    source = {"item": item.id, "date": item.date}
    return {**_row(task, item.input, item.output), "origin": "real", "source": source}


def synthetic_row(task: Task, candidate: Candidate) -> dict[str, Any]:
    """A row of a Dataset that holds what a teacher wrote."""
    return {**_row(task, *candidate.pair), "origin": "synthetic", "source": candidate.source}
