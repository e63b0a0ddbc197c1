"""The seam of the runtime: what an engine does, and the one function that opens one.

In: bundles. Out: logits. An engine knows token ids only: text is the part of `prompt`, choosing
the next token that of `generate`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]


@dataclass(frozen=True)
class SwapCost:
    """What it took to open a base with an adapter, or to change the adapter.

    verify_s: checking every digest and slot. join_s: making one data file of base and adapter,
    which Python's loader needs; 0 bytes if it was in the cache. load_s: opening the program.
    phone_bytes: what a phone opens instead, which takes several data files: the adapter's program
    and data file beside the base's, which stays open (a merged bundle is opened whole).
    """

    verify_s: float
    join_s: float
    load_s: float
    written_bytes: int
    opened_bytes: int
    phone_bytes: int

    @property
    def total_s(self) -> float:
        return self.verify_s + self.join_s + self.load_s

    def __str__(self) -> str:
        return (
            f"{self.total_s:.3f} s (verify {self.verify_s:.3f}, one data file {self.join_s:.3f} "
            f"for {self.written_bytes:,} bytes written, load {self.load_s:.3f} for "
            f"{self.opened_bytes:,} bytes); a phone opens {self.phone_bytes:,} bytes for it"
        )


class Engine(Protocol):
    """A loaded model with a KV cache, for one conversation at a time."""

    @property
    def position(self) -> int:
        """How many tokens the cache holds."""
        ...

    @property
    def context_length(self) -> int:
        """The most tokens that the cache can hold."""
        ...

    @property
    def vocab_size(self) -> int:
        """Length of every vector of logits."""
        ...

    @property
    def cost(self) -> SwapCost:
        """What opening, or the last change of adapter, took."""
        ...

    def prefill(self, ids: Sequence[int]) -> Logits:
        """Read `ids`, any number of them; logits [vocab] after the last.

        Raises:
            InputError: none, an id outside the vocabulary, or more than the context has room for.
        """
        ...

    def decode(self, token: int) -> Logits:
        """Read one id; logits [vocab] after it. Raises as `prefill` does."""
        ...

    def reset(self) -> None:
        """Forget everything read."""
        ...

    def set_adapter(self, adapter: Path | None) -> SwapCost:
        """Change to another adapter of the same base, or to none, and forget everything read.

        If the adapter is refused, the engine stays as it was.

        Raises:
            ArtifactError: it is damaged. MismatchError: it was made for another base.
            UnsupportedError: this engine's program has its adapter merged in.
        """
        ...


def open_engine(
    base: Path | None,
    adapter: Path | None,
    threads: int | None = None,
    cache_dir: Path | None = None,
) -> Engine:
    """Open a base with an adapter, a base alone, or a merged bundle (which needs no base).

    Args:
        threads: for the whole process, see `default_threads`.
        cache_dir: where joined data files are kept; `cache.default_directory()` if not given.

    Raises:
        InputError: neither is given, or a path holds nothing. ArtifactError, MismatchError: a
            bundle is damaged, or they do not belong together; nothing was run.
    """
    from mobile_runtime.executorch_engine import ExecuTorchEngine

    return ExecuTorchEngine(base, adapter, threads or default_threads(), cache_dir)


def default_threads() -> int:
    """One per core that this process may use, at most 4: the large cores of a phone."""
    usable = getattr(os, "sched_getaffinity", None)  # Linux only
    return min(4, len(usable(0)) if usable else os.cpu_count() or 1)
