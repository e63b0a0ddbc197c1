"""The arms: the ways of answering a user's questions that an evaluation compares.

In: their names. Out: one row each: what its adapter learned from, and what else it is shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from protos.errors import InputError


@dataclass(frozen=True)
class Arm:
    """One way of answering.

    data: what its adapter was trained on, a key of `datasets.Datasets`; empty without an adapter.
    retrieves: the user's items nearest to the question stand in the prompt.
    """

    name: str
    about: str
    data: str = ""
    retrieves: bool = False


TEACHER, OTHER, TASK = "teacher", "other", "task"
ARMS = {
    arm.name: arm
    for arm in (
        Arm("base", "the base model alone"),
        Arm("base+bm25", "the base with the user's nearest items in the prompt", retrieves=True),
        Arm(TASK, "one adapter for all, trained on other users", TASK),
        Arm("real", "an adapter on own items alone", "real"),
        Arm(
            "real-repeated",
            "an adapter on own items alone, repeated to as many rows as mixed has",
            "real-repeated",
        ),
        Arm(
            "mixed-unfiltered",
            "an adapter on own items and what the teacher wrote first",
            "mixed-unfiltered",
        ),
        Arm("mixed", "an adapter on own items and what passed the filters", "mixed"),
        Arm("synthetic", "an adapter on what passed the filters alone", "synthetic"),
        Arm("mixed+bm25", "mixed, with the user's nearest items in the prompt", "mixed", True),
        Arm(OTHER, "another user's mixed adapter: the control", "mixed"),
        Arm(TEACHER, "the teacher itself, shown the user's items"),
    )
}
DEFAULT = tuple(name for name in ARMS if name != TASK)


def parse_arms(text: str, ratios: Sequence[float] = ()) -> list[Arm]:
    """The arms of `--arms`, in the order of the table, and those of `--ratios`.

    Raises:
        InputError: an unknown name, or no name at all.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in ARMS]
    if unknown or not names:
        raise InputError(
            f"arms: {', '.join(unknown) or 'none'}, expected some of {', '.join(ARMS)}"
        )
    return [arm for arm in ARMS.values() if arm.name in names] + [
        ratio_arm(ratio) for ratio in dict.fromkeys(ratios)
    ]


def ratio_arm(ratio: float) -> Arm:
    """The arm with so many synthetic items for each real one."""
    about = f"own items and {ratio:g} times as many that passed" if ratio else "own items alone"
    return Arm(f"ratio-{ratio:g}", about, f"ratio-{ratio:g}" if ratio else "real")


def parse_ratios(text: str) -> list[float]:
    """`0,0.5,1,2,3` as numbers, in increasing order.

    Raises:
        InputError: one is no number from 0 to 20.
    """
    ratios: list[float] = []
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        try:
            value = float(part)
        except ValueError:
            value = -1.0
        if not 0 <= value <= 20:
            raise InputError(f"ratios: {part!r}, expected numbers from 0 to 20, such as 0,0.5,1,2")
        ratios.append(value)
    return sorted(set(ratios))
