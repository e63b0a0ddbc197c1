"""What fits: how much memory there is, and how many tokens and users it holds.

In: bytes that may be used beside the model. Out: the longest row, and users in rounds. Nothing here
changes a result: a smaller budget means shorter rows and more rounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TypeVar

import torch

from cloud.trainer.loss import CHUNK_LOGITS

T = TypeVar("T")

_SHARE = 0.8
_ROOM_FOR_USERS = 0.5
_CGROUP = Path("/sys/fs/cgroup")
_CGROUP_FILES = (
    ("memory.max", "memory.current", "memory.stat", ""),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat",
     "total_"),
)  # fmt: skip
"""Of cgroup v2, then v1: limit, usage, statistics, and how the names in these begin."""
_PROBES = (576, 640, 704)
"""Lengths that stand for all longer ones: full rows without filler, beyond the sequences whose
attention is computed otherwise, and between two powers of two, where sliding windows end."""
_LOGITS_BYTES = 3 * 4 * CHUNK_LOGITS


@dataclass(frozen=True)
class Budget:
    """Bytes for users' states and activations, and the tokens of a row that speed asks for."""

    bytes: int
    best_tokens: int

    @property
    def for_users(self) -> int:
        """Bytes that the states of the users of one round may take."""
        return int(self.bytes * _ROOM_FOR_USERS)

    def tokens(self, state_bytes: int, token_bytes: int) -> int:
        """The longest row that fits beside the users' states; 0 if none does."""
        left = self.bytes - state_bytes - _LOGITS_BYTES
        return max(0, min(self.best_tokens, left // max(1, token_bytes)))


def rounds(users: Sequence[T], size: Callable[[T], int], most_bytes: int) -> list[list[T]]:
    """The users in their order, in rounds whose sizes stay within `most_bytes` where one fits."""
    made: list[list[T]] = []
    filled = most_bytes + 1
    for user in users:
        if filled + size(user) > most_bytes:
            made.append([])
            filled = 0
        made[-1].append(user)
        filled += size(user)
    return made


def free_bytes(device: torch.device) -> int:
    """Four fifths of what is free on the device, in a container within its limit."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * _SHARE)
    import psutil

    return int(min(psutil.virtual_memory().available, _container_bytes()) * _SHARE)


def saved_bytes(forward: Callable[[], object], weights: Iterable[torch.Tensor]) -> int:
    """Bytes that a forward pass keeps for its backward pass, each storage once, weights aside."""
    there = {weight.untyped_storage().data_ptr() for weight in weights}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in there:
            kept[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)  # a freed one would give its address to the next
        return tensor

    held: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return sum(kept.values())


def scaled_bytes(measure: Callable[[int], int], length: int) -> int:
    """What a sequence of `length` tokens keeps, without running one that might not fit.

    What is kept is a constant, a share of each token and one of each pair of tokens: of longer
    sequences than the probes, three of these tell all three.
    """
    if length <= _PROBES[-1]:
        return measure(length)
    total = Fraction(0)
    for probe in _PROBES:
        weight = Fraction(measure(probe))
        for other in _PROBES:
            if other != probe:
                weight *= Fraction(length - other, probe - other)
        total += weight
    return math.ceil(total)


def _container_bytes() -> float:
    """What the container's limit leaves; what only keeps files at hand makes room by itself."""
    for limit, usage, statistics, prefix in _CGROUP_FILES:
        try:
            most = (_CGROUP / limit).read_text().strip()
            used = int((_CGROUP / usage).read_text())
        except (OSError, ValueError):
            continue
        cached = _cached_bytes(_CGROUP / statistics, prefix)
        return float("inf") if most == "max" else max(0, int(most) - max(0, used - cached))
    return float("inf")


def _cached_bytes(statistics: Path, prefix: str) -> int:
    """The file cache in a `memory.stat`; 0 if it cannot be read."""
    try:
        lines = [line.split() for line in statistics.read_text().splitlines()]
    except OSError:
        return 0
    names = (f"{prefix}inactive_file", f"{prefix}active_file")
    return sum(int(value) for name, value in lines if name in names)
