"""What can be reached in the pocket world, by readers that are no models.

    python -m cloud.pocket.ceilings [--users 20] [--task LaMP_4]

All know the world's rules and the facts behind each question. The *oracle* knows the user's traits
too, so that only noise is left. The *stranger* answers as is nearest to most users. *Another* takes
the user for another one. The *reader* knows the user's first items and looks for the traits that
explain these best. Out: mean scores over held-out questions, as Markdown.
"""

import argparse
import functools
import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import click

from cloud.metrics import item_scores, score_name
from cloud.pocket.reading import crowd, likeliest, near
from cloud.pocket.world import QUESTIONS, SPLITS, WORLDS, User, asked_world, draw, sample_user
from cloud.tasks import TASKS

READ = (4, 16, 64)
MOST = 48
"""How many users are most users."""
Answer = Callable[[Any], str]


def score(user: User, answer: Answer) -> float:
    """Mean score of what `answer` makes of the facts of the user's held-out questions."""
    questions = list(itertools.islice(draw(user, "questions"), QUESTIONS))
    said = [answer(question.facts) for question in questions]
    each = item_scores(TASKS[user.task], said, [question.output for question in questions])
    return sum(each) / len(each)


def oracle(user: User) -> Answer:
    """The answers of one who knows the traits of `user`."""
    return lambda facts: asked_world(user.task).ideal(facts, user.traits)


def stranger(task: str) -> Answer:
    """The answers that are nearest to those of a crowd of users, on average."""
    kind = TASKS[task].answer_kind

    def answer(facts: Any) -> str:
        said = Counter(asked_world(task).ideal(facts, traits) for traits in crowd(task)[:MOST])
        nearest = {one: sum(near(kind, one, other) * said[other] for other in said) for one in said}
        return max(nearest, key=nearest.__getitem__)

    return answer


def reader(user: User, count: int) -> Answer:
    """The answers under the traits that explain the user's first `count` items best."""
    items = itertools.islice(draw(user), count)
    traits = likeliest(user.task, [(item.facts, item.output) for item in items])
    return lambda facts: asked_world(user.task).ideal(facts, traits)


def row(task: str, users: Sequence[User]) -> dict[str, float]:
    """Mean scores over users: the stranger, another user, the reader by items, the oracle."""
    another = {one.id: other for one, other in zip(users, [*users[1:], users[0]], strict=True)}
    readers: dict[str, Callable[[User], Answer]] = {
        "stranger": lambda user: stranger(user.task),
        "another": lambda user: oracle(another[user.id]),
        **{f"reader, {count} items": functools.partial(reader, count=count) for count in READ},
        "oracle": oracle,
    }
    return {
        name: sum(score(user, of(user)) for user in users) / len(users)
        for name, of in readers.items()
    }


def main() -> None:
    """Print a line of a Markdown table for each task."""
    parser = argparse.ArgumentParser(description="What can be reached in the pocket world.")
    parser.add_argument("--split", choices=("dev", "train"), default="dev")
    parser.add_argument("--users", type=int, default=len(SPLITS["dev"]))
    parser.add_argument("--task", choices=tuple(WORLDS), action="append")
    options = parser.parse_args()
    for task in options.task or WORLDS:
        users = [sample_user(task, number) for number in SPLITS[options.split][: options.users]]
        found = row(task, users)
        if task == next(iter(options.task or WORLDS)):
            click.echo(f"| task | score | {' | '.join(found)} |\n|{'---|' * (len(found) + 2)}")
        figures = " | ".join(f"{value:.3f}" for value in found.values())
        click.echo(f"| {task} | {score_name(TASKS[task])} | {figures} |")


if __name__ == "__main__":
    main()
