"""Every error that Pocketune raises on purpose, and the exit code of each.

    PocketuneError          1  base class, never raised itself
    |-- InputError          2  what the caller gave is missing, malformed or out of range
    |-- ArtifactError       3  an artifact is truncated, altered, of another kind or schema
    |-- MismatchError       4  two sound things that do not belong together (adapter and base)
    |-- UnsupportedError    5  sound, but cannot be represented exactly; named and refused
    |-- TeacherError        6  the teacher refused, timed out or gave nothing usable
    |-- GateError           7  a parity gate failed: the phone would not answer as trained
    `-- NotRunError         9  lowered, but nothing here runs it: neither sound nor failed (8 is the
                               client's, for calls of the service)

A message names the path or field, what was expected, what was found and what to do next.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

_SHOWN = 3


class PocketuneError(Exception):
    """Base of all errors with a message meant for the person who ran the command."""

    exit_code: ClassVar[int] = 1


class InputError(PocketuneError):
    """What the caller gave is missing, malformed or out of range."""

    exit_code = 2


class ArtifactError(PocketuneError):
    """An artifact is truncated, altered, of another kind or of an unknown schema version."""

    exit_code = 3


class MismatchError(PocketuneError):
    """Two things that are each sound do not belong together."""

    exit_code = 4


class UnsupportedError(PocketuneError):
    """The thing is sound, but this stage cannot represent it exactly, so it refuses it by name."""

    exit_code = 5


class TeacherError(PocketuneError):
    """The teacher refused, timed out or produced nothing usable."""

    exit_code = 6


class GateError(PocketuneError):
    """A parity gate failed."""

    exit_code = 7


class NotRunError(PocketuneError):
    """Lowered, but nothing here can run it, so that parity can say neither sound nor failed."""

    exit_code = 9


def without_frames(error: BaseException) -> None:
    """Forget where an error that is kept was raised, and each that led to it: frames hold all of
    their variables, a model's tensors too. Type, message and chain stay.
    """
    chain: list[BaseException | None] = [error]
    seen: set[int] = set()
    while chain:
        each = chain.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            each.__traceback__ = None
            chain += [each.__cause__, each.__context__]


def listed(reasons: Mapping[str, str]) -> str:
    """Who failed and why, in one line that stays readable of a thousand: the first three, and how
    many more. A reason that begins with its name is not named twice.
    """
    shown = [
        reason if reason.startswith(f"{name}: ") else f"{name}: {reason}"
        for name, reason in list(reasons.items())[:_SHOWN]
    ]
    more = len(reasons) - len(shown)
    return "; ".join([*shown, *[f"and {more} more"] * (more > 0)])
