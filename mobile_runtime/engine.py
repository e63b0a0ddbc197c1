"""The seam of the runtime: what an engine does, and the one function that opens one.

In: bundles. Out: logits. An engine knows token ids only: text is the part of `prompt`, choosing
the next token that of `generate`.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from protos.errors import InputError
from protos.tensor_cache import FILE as TENSOR_CACHE

Logits = NDArray[np.float32]
_INSTALL_TVM = "pip install 'pocketune[mlc]', or pip install apache-tvm==0.27.0.post1"


@dataclass(frozen=True)
class SwapCost:
    """What it took to open a base with an adapter, or to change the adapter.

    verify_s: checking every digest and slot. join_s: making what only this machine needs, one data
    file of base and adapter (ExecuTorch) or a compiled library (MLC); 0 bytes if it was in the
    cache. load_s: opening the program, or reading the weights. phone_bytes: what a phone opens
    instead: the adapter's own files beside the base's, which stay open (a merged bundle is opened
    whole).
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
            f"{self.total_s:.3f} s (verify {self.verify_s:.3f}, make {self.join_s:.3f} "
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
    def stop_ids(self) -> frozenset[int] | None:
        """Ids at which the bundle tells a phone's own runner to stop; None if it tells none."""
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

    The bundle decides the engine: one with a tensor cache is MLC's and runs on Apache TVM, others
    run on ExecuTorch.

    Args:
        threads: for the whole process, see `default_threads`.
        cache_dir: where joined data files or compiled libraries are kept, if not in the default.

    Raises:
        InputError: neither is given, a path holds nothing, or the engine is not installed.
        ArtifactError, MismatchError: a bundle is damaged, or they do not belong together; nothing
            was run.
    """
    threads = threads or default_threads()
    if _is_mlc(base or adapter):
        if importlib.util.find_spec("tvm") is None:
            raise InputError(f"MLC bundles run on Apache TVM, which is not here: {_INSTALL_TVM}")
        from mobile_runtime.mlc.engine import TvmEngine

        return TvmEngine(base, adapter, threads, cache_dir)
    from mobile_runtime.executorch_engine import ExecuTorchEngine

    return ExecuTorchEngine(base, adapter, threads, cache_dir)


def engine_name(base: Path | None, adapter: Path | None) -> str:
    """Which engine `open_engine` takes for these bundles."""
    return "mlc-tvm" if _is_mlc(base or adapter) else "executorch-xnnpack"


def _is_mlc(bundle: Path | None) -> bool:
    return bundle is not None and (bundle / TENSOR_CACHE).is_file()


def check_ids(engine: Engine, ids: Sequence[int]) -> None:
    """What every engine refuses to read.

    Raises:
        InputError: see `Engine.prefill`.
    """
    if not len(ids):
        raise InputError("no tokens to read: the prompt is empty")
    wrong = [token for token in ids if not 0 <= token < engine.vocab_size]
    if wrong:
        raise InputError(f"token id {wrong[0]} is outside the vocabulary of {engine.vocab_size}")
    if engine.position + len(ids) > engine.context_length:
        raise InputError(
            f"{len(ids)} tokens after {engine.position} do not fit the context of "
            f"{engine.context_length}; shorten the prompt"
        )


def default_threads() -> int:
    """One per core that this process may use, at most 4: the large cores of a phone."""
    usable = getattr(os, "sched_getaffinity", None)  # Linux only
    return min(4, len(usable(0)) if usable else os.cpu_count() or 1)
