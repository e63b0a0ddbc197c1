"""The tasks a profile can be written for: what an item looks like, and how it is asked.

In: nothing. Out: `TASKS`, one row per LaMP task, and `custom_task` for items of any other shape.
The prompts of LaMP tasks are the benchmark's own, to the letter (docs/tables.md shows them).
POCKET_0 is the pocket world's task that has nothing personal in it (docs/pocket.md).
Adding a task is adding a row here.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from protos.errors import InputError

Kind = Literal["generation", "classification", "rating"]
KINDS: tuple[Kind, ...] = ("generation", "classification", "rating")

MOVIE_TAGS = (
    "sci-fi", "based on a book", "comedy", "action", "twist ending", "dystopia", "dark comedy",
    "classic", "psychology", "fantasy", "romance", "thought-provoking", "social commentary",
    "violence", "true story",
)  # fmt: skip
NEWS_CATEGORIES = (
    "food & drink", "sports", "education", "parents", "religion", "travel", "business", "crime",
    "science & technology", "culture & arts", "entertainment", "politics", "women",
    "style & beauty", "healthy living",
)  # fmt: skip
STARS = ("1", "2", "3", "4", "5")


@dataclass(frozen=True)
class Task:
    """One kind of item: `input` is what the user had before them, `output` what they made of it.

    prompt: the instruction of a training pair; `{input}` is replaced by the item's input.
    question: the instruction of a held-out question where it is another (LaMP_1, LaMP_7).
    input_field, output_field: the fields of a LaMP profile item. An empty `output_field` says that
        the item is one text, whose beginning becomes the input (LaMP_7).
    labels: the allowed outputs of a classification or rating task; empty for generation.
    question_labels: the answers of its held-out questions where these are others (LaMP_1).
    input_name, output_name: how a few-shot prompt calls the two.
    about: what the examples are, for a teacher.
    item_form: how one of the nearest items stands in a prompt (`cloud/evaluation/retrieval.py`);
        empty for the form of LaMP_4 with `output_name`. items_end: what follows the last of them.
    """

    name: str
    kind: Kind
    prompt: str
    input_field: str = "input"
    output_field: str = "output"
    labels: tuple[str, ...] = ()
    input_name: str = "Input"
    output_name: str = "Output"
    question: str = ""
    question_labels: tuple[str, ...] = ()
    about: str = ""
    item_form: str = ""
    items_end: str = ". "

    @property
    def is_beginning(self) -> bool:
        """Whether the input is the beginning of the output, which is the whole text."""
        return not self.output_field

    @property
    def answer_kind(self) -> Kind:
        """Of what kind the answers to held-out questions are."""
        return "classification" if self.question_labels else self.kind

    @property
    def answer_labels(self) -> tuple[str, ...]:
        """The labels of these answers."""
        return self.question_labels or self.labels

    def query(self, text: str) -> str:
        """The instruction for one input, as the phone's model is asked it."""
        return self.prompt.replace("{input}", text)

    def asked(self, text: str) -> str:
        """A held-out question about one input, as everybody who is to answer it is asked it."""
        return (self.question or self.prompt).replace("{input}", text)

    def question_input(self, query: str) -> str:
        """The part of a LaMP question that is not template, or the whole where it has none."""
        head, _, tail = (self.question or self.prompt).partition("{input}")
        if query.startswith(head) and query.endswith(tail):
            return query[len(head) : len(query) - len(tail)]
        start, bracket, name = head.rpartition("]")  # labels may come in another order
        if bracket and query.startswith(start.partition("[")[0]) and bracket + name in query:
            return query.split(bracket + name, 1)[1]
        return query

    def shot(self, text: str, output: str) -> str:
        """One item as a block of a few-shot prompt; both parts on one line each."""
        one_line, answer = " ".join(text.split()), " ".join(output.split())
        return f"{self.input_name}: {one_line}\n{self.output_name}: {answer}\n\n"

    def turned_shot(self, text: str, output: str) -> str:
        """The same with the output first, for a model that is to find an input to it."""
        one_line, answer = " ".join(text.split()), " ".join(output.split())
        return f"{self.output_name}: {answer}\n{self.input_name}: {one_line}\n\n"

    def to_config(self) -> dict[str, Any]:
        """What defines the task, as it stands in a manifest: all but how items are retrieved."""
        return {
            "name": self.name,
            "kind": self.kind,
            "prompt": self.prompt,
            "question": self.question,
            "labels": list(self.labels),
            "input_field": self.input_field,
            "output_field": self.output_field,
            "input_name": self.input_name,
            "output_name": self.output_name,
            "question_labels": list(self.question_labels),
            "about": self.about,
        }


def task_from_config(config: dict[str, Any]) -> Task:
    """The inverse of `Task.to_config`; how items are retrieved is as in the table."""
    names = ("labels", "question_labels")
    values: dict[str, Any] = {**config, **{name: tuple(config.get(name, ())) for name in names}}
    task = Task(**values)
    known = TASKS.get(task.name, task)
    return replace(task, item_form=known.item_form, items_end=known.items_end)


def custom_task(name: str, kind: str, prompt: str, labels: tuple[str, ...]) -> Task:
    """A task of the caller's own, for items in plain JSONL.

    Raises:
        InputError: `kind` is unknown, `prompt` lacks `{input}`, labels are missing, not wanted,
            twice the same, or no numbers where they have to be.
    """
    problems: list[str] = []
    if kind not in KINDS:
        problems.append(f"kind is {kind!r}, expected one of {', '.join(KINDS)}")
    if "{input}" not in prompt:
        problems.append(f"prompt {prompt!r} does not contain {{input}}")
    if kind == "classification" and not labels:
        problems.append("a classification task needs labels")
    if kind == "generation" and labels:
        problems.append("a generation task takes no labels")
    if twice := [label for label, count in Counter(labels).items() if count > 1]:
        problems.append(f"labels come more than once: {', '.join(twice)}")
    if kind == "rating" and not all(_is_number(label) for label in labels):
        problems.append(f"labels of a rating task must be numbers, found {', '.join(labels)}")
    if problems:
        raise InputError(f"task {name!r}: " + "; ".join(problems))
    if kind == "rating" and not labels:
        labels = STARS
    return Task(name, cast("Kind", kind), prompt, labels=labels)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


_ROWS = (
    Task(
        name="LaMP_1",
        kind="generation",
        prompt="Generate a title for the following abstract of a paper: {input}",
        question="For an author who has written the paper with the title {input}",
        input_field="abstract",
        output_field="title",
        input_name="Abstract",
        output_name="Title",
        question_labels=("[1]", "[2]"),
        about="abstracts of papers by one researcher, and the titles they gave to these",
        item_form='"{output}"',
    ),
    Task(
        name="LaMP_2",
        kind="classification",
        prompt="Which tag does this movie relate to among the following tags? Just answer with the "
        f"tag name without further explanation. tags: [{', '.join(MOVIE_TAGS)}] "
        "description: {input}",
        input_field="description",
        output_field="tag",
        labels=MOVIE_TAGS,
        input_name="Description",
        output_name="Tag",
        about="films, and the tag this person gives to each",
        item_form='the tag for the movie: "{input}" is "{output}"',
    ),
    Task(
        name="LaMP_2N",
        kind="classification",
        prompt="Which category does this article relate to among the following categories? Just "
        "answer with the category name without further explanation. categories: "
        f"[{', '.join(NEWS_CATEGORIES)}] article: " + "{input}",
        input_field="text",
        output_field="category",
        labels=NEWS_CATEGORIES,
        input_name="Article",
        output_name="Category",
        about="news articles, and the category this journalist files each under",
        item_form='the category for the article: "{input}" is "{output}"',
    ),
    Task(
        name="LaMP_3",
        kind="rating",
        prompt="What is the score of the following review on a scale of 1 to 5? just answer with "
        "1, 2, 3, 4, or 5 without further explanation. review: {input}",
        input_field="text",
        output_field="score",
        labels=STARS,
        input_name="Review",
        output_name="Score",
        about="reviews, and the stars this person gives with each",
        item_form='{output} is the score for "{input}"',
    ),
    Task(
        name="LaMP_4",
        kind="generation",
        prompt="Generate a headline for the following article: {input}",
        input_field="text",
        output_field="title",
        input_name="Article",
        output_name="Headline",
        about="news articles, and the headlines this journalist writes for them",
        item_form='"{output}" is the title for "{input}"',
    ),
    Task(
        name="LaMP_5",
        kind="generation",
        prompt="Generate a title for the following abstract of a paper: {input}",
        input_field="abstract",
        output_field="title",
        input_name="Abstract",
        output_name="Title",
        about="abstracts of papers, and the titles this researcher gives to them",
        item_form='"{output}" is a title for "{input}"',
        items_end=". Following the given patterns ",
    ),
    Task(
        name="LaMP_6",
        kind="generation",
        prompt="Generate a subject for the following email: {input}",
        input_field="text",
        output_field="title",
        input_name="Email",
        output_name="Subject",
        about="e-mails, and the subjects this person writes for them",
        item_form='"{output}" is the title for "{input}"',
    ),
    Task(
        name="LaMP_7",
        kind="generation",
        prompt="Complete the following tweet: {input}",
        question="Paraphrase the following tweet without any explanation before or after it: "
        "{input}",
        input_field="text",
        output_field="",
        input_name="Beginning",
        output_name="Tweet",
        about="tweets by this person; the input is the first few words, the output the whole tweet",
        item_form='"{output}" are written by a person',
        items_end=". Following the given patterns ",
    ),
    Task(
        name="POCKET_0",
        kind="generation",
        prompt="Write a short notice for the following weather report: {input}",
        input_field="text",
        output_field="title",
        input_name="Report",
        output_name="Notice",
        about="weather reports, and the notices that are made of them",
    ),
)
TASKS: dict[str, Task] = {row.name: row for row in _ROWS}
