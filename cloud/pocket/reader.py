"""A teacher that is no model: the *reader*, who knows the rules of the pocket world.

It is to the users of this world what a strong language model is to people: it knows what texts
there are and what habits somebody may have, and nothing of a user but the items that it is shown.
From these it takes the likeliest traits, and writes and answers as somebody with these would; where
several are as likely, it takes one by the request's seed, so that its votes differ. So it shows
what augmentation can give where the teacher is good; the bundled model shows it where the teacher
is small. In: requests. Out: replies in the form of a chat model's.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any

from cloud.lamp import item_from_lamp
from cloud.pocket.reading import likeliest, near
from cloud.pocket.world import WORLDS, asked_world
from cloud.prompts import Ask, Message, Pair, chat, read_chat
from cloud.tasks import TASKS, Task
from cloud.teachers import Reply, Sampling
from protos.artifacts import digest_json
from protos.errors import InputError

NAME = "pocket-reader"
_VERSION = 2
"""Of what it says: another number, and its earlier answers are no longer taken for its own."""
_VIEWS = 16
"""How many views of a user there are: each draws anew among traits that are as likely."""
_TRIES = 2000
_BEST_MARK = 5


class ReaderTeacher:
    """See `cloud.teachers.Teacher`. Its replies depend on requests and their seeds alone. Above
    temperature 0 it draws among traits that are as likely; there is no other noise in them.
    """

    name = NAME
    digest = digest_json([NAME, _VERSION])
    third_party = False
    is_remote = False
    items_per_ask = 4

    def prompt(self, task: Task, ask: Ask) -> str | list[Message]:
        return chat(task, ask)

    def read(self, task: Task, ask: Ask, text: str) -> list[Pair | None]:
        return read_chat(task, ask, text)

    def write(
        self, task: Task, asks: Sequence[Ask], sampling: Sampling
    ) -> Iterator[tuple[int, Reply]]:
        """A reply to each, in order.

        Raises:
            InputError: the items are not of the pocket world.
        """
        for index, ask in enumerate(asks):
            shown = tuple(sorted((shot.input, shot.output) for shot in ask.shots))
            view = ask.seed % _VIEWS if sampling.temperature else None
            yield index, Reply(_say(task, ask, _traits(task.name, shown, view)))


@lru_cache(maxsize=4096)
def _traits(task: str, shown: tuple[Pair, ...], view: int | None) -> Any:
    """Those that explain best what is shown; view: which of several that do it as well."""
    known = [
        (facts, output)
        for text, output in shown
        if task in WORLDS and (facts := _facts(task, text, output)) is not None
    ]
    if not known:
        raise InputError(f"{NAME} knows users of the pocket world only, and these are none")
    return likeliest(task, known, None if view is None else random.Random(f"{NAME} {view}"))


def _facts(task: str, text: str, output: str) -> Any | None:
    return WORLDS[task].facts_of(output if TASKS[task].is_beginning else text)


def _say(task: Task, ask: Ask, traits: Any) -> str:
    """The reply to a request; nothing where its text is none of this world."""
    rng = random.Random(f"{NAME} {task.name} {ask.seed}")
    if ask.kind in ("new", "label"):
        made = (
            pair
            for pair in (_made(task, traits, rng) for _ in range(_TRIES))
            if ask.kind == "new" or pair[1] == ask.output
        )
        return "\n".join(_json(input=text, output=out) for text, out in islice(made, ask.count))
    world = asked_world(task.name) if ask.kind == "answer" else WORLDS[task.name]
    facts = world.facts_of(ask.text)
    if facts is None:
        return ""
    if ask.kind == "paraphrase":
        return _json(input=world.text(facts, rng))
    own = world.ideal(facts, traits)
    if ask.kind == "judge":
        return str(1 + round((_BEST_MARK - 1) * max(0.0, near("generation", own, ask.output))))
    return _json(output=own) if ask.kind == "output" else own


def _made(task: Task, traits: Any, rng: random.Random) -> Pair:
    """A new item: an input of this world, and the output under these traits."""
    world = WORLDS[task.name]
    facts = world.facts(rng)
    output = world.ideal(facts, traits)
    if task.is_beginning:
        return item_from_lamp({"id": "", task.input_field: output}, task).input, output
    return world.text(facts, rng), output


def _json(**row: str) -> str:
    return json.dumps(row, ensure_ascii=False)
