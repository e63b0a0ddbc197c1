"""The seed of a run: the same range for every stage and for the service."""

from __future__ import annotations

MOST_SEED = 2**31 - 1
"""What is derived from it stays within PyTorch's 64 bits, and remote teachers take it too."""


def seed_problems(seed: int) -> list[str]:
    """What is wrong with a seed, in the words of the other options."""
    return [] if 0 <= seed <= MOST_SEED else [f"seed is {seed}, expected 0 to {MOST_SEED}"]
