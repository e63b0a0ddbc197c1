"""What a benchmark of the suite gives back: a list of `Row`, each a line of docs/benchmarks.md.

A benchmark is a module with `rows(quick: bool, work: Path) -> list[Row]`, which ends with an error
where the outputs it compares are not right. `quick`: the bundled models, or one layer
of their base, and few repeats. `work`: an empty folder that is removed afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One figure, and what it is compared with.

    figure: what is measured, with its sizes: "train 8 users x 16 items, 135M shape: adapters per
    hour". ours, theirs: in `unit`; ours is None where this machine cannot measure it. peer: "" when
    nothing is compared. ratio: how many times better ours is, the median over interleaved repeats;
    above 1 is better. spread: the lowest and the highest ratio of the repeats. aim: the ratio that
    was to be reached. missing: a peer that was to be measured could not be had, as `note` says;
    ours and theirs are None, and a full run ends with 1.
    """

    figure: str
    ours: float | None
    unit: str
    peer: str = ""
    theirs: float | None = None
    ratio: float | None = None
    spread: tuple[float, float] | None = None
    aim: float | None = None
    note: str = ""
    missing: bool = False
