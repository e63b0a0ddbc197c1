"""Packing: sequences of several users become one row of tokens, without padding.

In: examples and whose they are. Out: rows `[1, tokens]` in which a user's tokens are contiguous,
and where in them something is to be predicted. Each user's tokens are filled up to a multiple of 64
by a sequence of their own that nothing is learned from: the libraries below compile a kernel for
every shape that they meet, which takes time and stays in memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

MULTIPLE = 64
"""Filler is shorter than this."""


@dataclass(frozen=True)
class Example:
    """Token ids of prompt and completion, and how many of them, at the end, are completion."""

    ids: list[int]
    completion: int


@dataclass(frozen=True)
class Piece:
    """One sequence on its way into a row. owner: index of its user; number: in the user's batch."""

    owner: int
    number: int
    example: Example


@dataclass(frozen=True)
class Segment:
    """The tokens `start` to `stop` of a row: one user's, sequence by sequence, then filler.

    Or where they are among the tokens `needed`.
    """

    owner: int
    start: int
    stop: int
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Row:
    """One forward pass. predicting, targets, owners: `[positions]`, where a completion token
    follows, which one, and whose. needed: these positions, each user's filled up to a multiple of
    64 with others of that user's tokens; needed_segments: each user's part of them.
    """

    ids: torch.Tensor  # [1, tokens]
    positions: torch.Tensor  # [1, tokens]; each sequence begins at 0
    lengths: tuple[int, ...]
    segments: tuple[Segment, ...]
    needed_segments: tuple[Segment, ...]
    needed: torch.Tensor
    predicting: torch.Tensor
    targets: torch.Tensor
    owners: torch.Tensor


def groups(pieces: Sequence[Piece], most_tokens: int) -> list[list[Piece]]:
    """Pieces in order of their owners, in groups of like size, of `most_tokens` at most.

    A piece that is longer than that is a group of its own.
    """
    ordered = sorted(pieces, key=lambda piece: piece.owner)
    total = sum(len(piece.example.ids) for piece in ordered)
    even = math.ceil(total / max(1, math.ceil(total / most_tokens)))
    made: list[list[Piece]] = []
    filled = even
    for piece in ordered:
        length = len(piece.example.ids)
        if filled >= even or filled + length > most_tokens:
            made.append([])
            filled = 0
        made[-1].append(piece)
        filled += length
    return made


def pack(pieces: Sequence[Piece], device: torch.device) -> Row:
    """One row of these pieces, which come in order of their owners."""
    import torch

    ids: list[int] = []
    lengths: list[int] = []
    predicting: list[int] = []
    owners: list[int] = []
    segments: list[Segment] = []
    needed: list[int] = []
    needed_segments: list[Segment] = []
    for owner, group in groupby(pieces, key=lambda piece: piece.owner):
        start, first, own = len(ids), len(predicting), tuple(group)
        for piece in own:
            length = len(piece.example.ids)
            learned = min(piece.example.completion, length - 1)  # nothing predicts the first token
            ids += piece.example.ids
            lengths.append(length)
            predicting += range(len(ids) - learned - 1, len(ids) - 1)
            owners += [owner] * learned
        if filler := -len(ids) % MULTIPLE:
            ids += [0] * filler
            lengths.append(filler)
        segments.append(Segment(owner, start, len(ids), own))
        read = set(predicting[first:])
        others = [at for at in range(start, len(ids)) if at not in read]
        before = len(needed)
        needed += [*predicting[first:], *others[: -len(read) % MULTIPLE]]
        needed_segments.append(Segment(owner, before, len(needed), own))
    positions = [position for length in lengths for position in range(length)]
    return Row(
        ids=torch.tensor([ids], device=device),
        positions=torch.tensor([positions], device=device),
        lengths=tuple(lengths),
        segments=tuple(segments),
        needed_segments=tuple(needed_segments),
        needed=torch.tensor(needed, dtype=torch.long, device=device),
        predicting=torch.tensor(predicting, device=device),
        targets=torch.tensor([ids[at + 1] for at in predicting], device=device),
        owners=torch.tensor(owners, device=device),
    )
