"""What each arm says to each user's held-out questions.

In: users, adapters, the teacher. Out: answers. Each user's answers under an arm are one file, known
by everything that decides them; those of the teacher are stored one by one as they arrive.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from cloud import seeds
from cloud.answers import Answers
from cloud.augment import behind, scrubber_for
from cloud.evaluation import retrieval
from cloud.evaluation.arms import OTHER, TEACHER, Arm
from cloud.evaluation.inputs import EvaluateConfig, Made, Means, Person, context
from cloud.evaluation.student import Answer, Student
from cloud.pieces import store
from cloud.profiles import Item
from cloud.prompts import Ask
from cloud.teachers import GREEDY, Teacher
from cloud.train import frozen_dtype
from protos.artifacts import Artifact, digest_json, read_json, tool_versions
from protos.base_model import prompt_ids
from protos.progress import Progress

_LABEL_ROOM = 8


@dataclass
class Answered:
    """What was said, by arm and user.

    truncated: prompts that lost their beginning, by arm. cut: answers that were not at their end
    when the room for them was, by arm; of the teacher's those of which it is known. spent: what the
    teacher wrote, by user. device_ms: of an answer by the phone's runtime, by arm, for the first
    user; empty where it is not measured.
    """

    said: dict[tuple[str, str], list[str]] = field(default_factory=dict[tuple[str, str], list[str]])
    truncated: Counter[str] = field(default_factory=Counter[str])
    cut: Counter[str] = field(default_factory=Counter[str])
    spent: dict[str, dict[str, int]] = field(default_factory=dict[str, dict[str, int]])
    device_ms: dict[str, float] = field(default_factory=dict[str, float])

    def add(self, key: tuple[str, str], said: Sequence[Answer]) -> None:
        """Take in what an arm said to a user's questions."""
        self.said[key] = [answer.text for answer in said]
        self.cut[key[0]] += sum(answer.cut for answer in said)


@dataclass(frozen=True)
class Prompts:
    """The questions of one user under one arm.

    ids: cut to what fits before `room` tokens. choices: the labels of the task, if it has some.
    """

    queries: list[str]
    ids: list[list[int]]
    room: int
    choices: tuple[str, ...]
    truncated: int


def answers_of(
    arms: Sequence[Arm], people: Sequence[Person], adapters: Made, partners: Mapping[str, str],
    means: Means, out: Path, config: EvaluateConfig, progress: Progress,
) -> Answered:  # fmt: skip
    """Let each arm answer each user's questions."""
    student = Student(means.base, frozen_dtype(means.training), means.threads)
    found = Answered()
    for number, arm in enumerate(arms):
        for place, person in enumerate(people):
            key = arm.name, person.name
            done = (number + place / len(people)) / len(arms)
            progress(f"{arm.name}: answers of {person.name}", done)
            if arm.name == TEACHER:
                said, found.spent[person.name] = _teacher(person, means, config)
                found.add(key, said)
                continue
            owner = partners[person.name] if arm.name == OTHER else person.name
            adapter = adapters[arm.data, owner] if arm.data else None
            prompts = _prompts(student, arm, person, means, config)
            found.truncated[arm.name] += prompts.truncated
            found.add(key, _student(student, prompts, adapter, out / "answers"))
            if means.device and not place:
                progress(f"{arm.name}: answers of {person.name} by the phone's runtime", done)
                found.device_ms[arm.name] = means.device(adapter, prompts.queries, prompts.room)
    return found


def _prompts(
    student: Student, arm: Arm, person: Person, means: Means, config: EvaluateConfig
) -> Prompts:
    tokenizer, task = student.tokenizer, person.user.task
    longest = context(means)
    room = min(_room(student, person), longest // 2)
    around = len(prompt_ids(tokenizer, ""))
    queries = [question.query for question in person.asked]
    if arm.retrieves:
        queries = [
            retrieval.with_items(
                task,
                question.query,
                retrieval.nearest(task, question, person.user.items, config.nearest),
                tokenizer,
                longest - room - around,
            )
            for question in person.asked
        ]
    whole = [prompt_ids(tokenizer, query) for query in queries]
    ids = [each[-(longest - room) :] for each in whole]
    truncated = sum(len(a) < len(b) for a, b in zip(ids, whole, strict=True))
    return Prompts(queries, ids, room, task.answer_labels, truncated)


def _student(
    student: Student, prompts: Prompts, adapter: Artifact | None, folder: Path
) -> list[Answer]:
    """Answers by the base model; those that were given before from their file."""
    key = digest_json([
        student.base.digest, str(student.dtype), adapter.id if adapter else "", prompts.ids,
        prompts.room, *prompts.choices, tool_versions(), [each.name for each in fields(Answer)],
    ])[:32]  # fmt: skip
    path = folder / f"{key}.json"
    if path.is_file():
        return [Answer(**row) for row in read_json(path)]
    said = student.answers(prompts.ids, prompts.room, adapter, prompts.choices)
    store(path, [asdict(answer) for answer in said])
    return said


def _room(student: Student, person: Person) -> int:
    """Tokens of an answer: a label's, or half as many again as the user's longest output."""
    labels = person.user.task.answer_labels
    texts = list(labels) or [item.output for item in person.user.items]
    most = max(len(ids) for ids in student.tokenizer(texts)["input_ids"])
    return most + _LABEL_ROOM if labels else most * 3 // 2 + _LABEL_ROOM


def teacher_asks(person: Person, means: Means, config: EvaluateConfig) -> tuple[Teacher, list[Ask]]:
    """The user's questions with the user's items, and the teacher, which sees no personal data."""
    task, items, augmenting = person.user.task, person.user.items, means.augmenting
    sent = [Item(question.id, question.input, question.query) for question in person.asked]
    scrubber = scrubber_for(task, [*items, *sent], augmenting, means.teacher)
    teacher = behind(scrubber, augmenting, means.teacher)
    shown = seeds.showable(items, augmenting.max_chars)
    hands = seeds.choose_shots(shown, config.teacher_shots, config.seed, augmenting.max_chars)
    asks = [
        Ask("answer", tuple(next(hands)), text=question.query, seed=config.seed + number)
        for number, question in enumerate(person.asked)
    ]
    return teacher, asks


def _teacher(
    person: Person, means: Means, config: EvaluateConfig
) -> tuple[list[Answer], dict[str, int]]:
    """What the teacher says when it is shown the user's items, and the tokens of it."""
    teacher, asks = teacher_asks(person, means, config)
    folder = person.folder / "teacher"
    folder.mkdir(parents=True, exist_ok=True)
    answers = Answers(folder)
    task = person.user.task
    replies = answers.of(teacher, task, asks, GREEDY)
    said: list[Answer] = []
    for ask, reply in zip(asks, replies, strict=True):
        pair = teacher.read(task, ask, reply.text)[0]
        said.append(Answer(pair[1] if pair else "", reply.cut))
    return said, asdict(answers.spent[teacher.name])
