"""Whom an evaluation is about: every user in LaMP's files, or Profiles that are there already.

In: folders. Out: Profiles with held-out questions, and who was left out, with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from cloud.evaluation.inputs import user_folder
from cloud.lamp import named_task, read_lamp_users
from cloud.profiles import EVALUATION, MIN_ITEMS, Consent, Profile, but_left_out, write_profile
from protos.artifacts import MANIFEST, Artifact, open_artifact
from protos.errors import InputError


@dataclass
class Users:
    """Some users. left_out: the reason by the user's name."""

    profiles: list[Artifact] = field(default_factory=list[Artifact])
    left_out: dict[str, str] = field(default_factory=dict[str, str])


def read_users(
    folder: Path, split: str, task: str | None, third_party: bool, out: Path,
    most: int | None = None, contributes: bool = False,
) -> Users:  # fmt: skip
    """The users in a folder of LaMP's files (imported into `out`), a Profile, or a folder of those.

    third_party, contributes: what those in LaMP's files agreed to.

    Raises:
        InputError: it is none of these, or LaMP's files are incomplete or malformed.
    """
    if (folder / f"{split}_questions.json").is_file():
        consent = Consent(EVALUATION, third_party=third_party, contributes=contributes)
        return _from_lamp(folder, split, task, consent, out, most)
    inside = [folder] if _is_artifact(folder) else sorted(filter(_is_artifact, _visible(folder)))
    if not inside:
        raise InputError(
            f"{folder}: no {split}_questions.json, no Profile and no folder of Profiles"
        )
    return Users([open_artifact(path, "Profile") for path in inside[:most]])


def _from_lamp(
    folder: Path, split: str, name: str | None, consent: Consent, out: Path, most: int | None
) -> Users:
    """The first users who have enough items; the files are read once for all of them."""
    questions, outputs = folder / f"{split}_questions.json", folder / f"{split}_outputs.json"
    if not outputs.is_file():
        raise InputError(
            f"{outputs}: no such file; without the users' own answers nothing can be scored"
        )
    task = named_task(name, "--task") if name else None
    found = Users()

    def sound() -> Iterator[Profile]:
        for read in read_lamp_users(questions, outputs, task):
            user = Profile(
                read.task, read.name, "und", consent, read.items, read.questions, read.left_out
            )
            if len(user.items) < MIN_ITEMS:
                few = f"{len(user.items)} items before the first question"
                found.left_out[user.user] = few + but_left_out(user)
            else:
                yield user

    found.profiles = [
        write_profile(user, user_folder(out, user.user) / "profile")
        for user in islice(sound(), most)
    ]
    if not found.profiles:
        first, why = next(iter(found.left_out.items()))
        raise InputError(
            f"{questions}: no user has {MIN_ITEMS} items before the first question (user {first}: "
            f"{why})"
        )
    return found


def _visible(folder: Path) -> list[Path]:
    inside = folder.iterdir() if folder.is_dir() else ()
    return [path for path in inside if not path.name.startswith(".")]


def _is_artifact(path: Path) -> bool:
    return (path / MANIFEST).is_file()
