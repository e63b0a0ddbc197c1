"""The engine on ExecuTorch: the same programs and kernels as on a phone, on this machine's CPU.

In: bundles. Out: logits. Python's loader takes one data file where phones take several, so base and
adapter are joined first (`cache`); a change of adapter opens the program again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mobile_runtime import cache
from mobile_runtime.bundles import AdapterBundle, BaseBundle, MergedBundle, open_adapter, open_base
from mobile_runtime.engine import Logits, SwapCost, check_ids
from mobile_runtime.native import Program, set_threads
from protos.artifacts import Artifact
from protos.errors import ArtifactError, InputError, UnsupportedError
from protos.ptd import Tensor, zeros


class ExecuTorchEngine:
    """See `engine.Engine`. Several may live at once; each has its own program and cache."""

    def __init__(
        self, base: Path | None, adapter: Path | None, threads: int, cache_dir: Path | None = None
    ) -> None:
        if base is None and adapter is None:
            raise InputError("neither a base bundle nor an adapter bundle is given")
        self._threads = threads
        self._cache_dir = cache_dir or cache.default_directory()
        self._position = 0
        set_threads(threads)  # loads the runtime itself, which is no cost of the bundle
        started = time.perf_counter()
        self._base = None if base is None else open_base(base)
        opened = None if adapter is None else open_adapter(adapter, self._base)
        self._open(opened, time.perf_counter() - started)

    @property
    def position(self) -> int:
        return self._position

    @property
    def context_length(self) -> int:
        return self._program.context_length

    @property
    def vocab_size(self) -> int:
        return self._program.vocab_size

    @property
    def stop_ids(self) -> frozenset[int]:
        return self._program.stop_ids

    @property
    def cost(self) -> SwapCost:
        return self._cost

    def prefill(self, ids: Sequence[int]) -> Logits:
        """See `Engine.prefill`; longer inputs than the program takes are read in chunks."""
        check_ids(self, ids)
        step = self._program.max_tokens
        for start in range(0, len(ids) - step, step):
            self._forward(ids[start : start + step])
        return self._forward(ids[(len(ids) - 1) // step * step :])

    def decode(self, token: int) -> Logits:
        """See `Engine.decode`."""
        check_ids(self, [token])
        return self._forward([token])

    def reset(self) -> None:
        """See `Engine.reset`; attention never reads the cache past `position`."""
        self._position = 0

    def set_adapter(self, adapter: Path | None) -> SwapCost:
        """See `Engine.set_adapter`."""
        if self._base is None or isinstance(self._adapter, MergedBundle):
            raise UnsupportedError(
                f"{self._source.path}: its adapter is merged into the program; open another bundle"
            )
        started = time.perf_counter()
        opened = None if adapter is None else open_adapter(adapter, self._base)
        self._open(opened, time.perf_counter() - started)
        return self._cost

    @property
    def _source(self) -> Artifact:
        """The bundle that errors name."""
        bundle = self._adapter or self._base
        assert bundle is not None
        return bundle.artifact

    def _open(self, adapter: AdapterBundle | MergedBundle | None, verify_s: float) -> None:
        opener = _Opener(self._base, adapter, self._threads, self._cache_dir)
        program, cost = opener.open(verify_s)
        self._adapter, self._program, self._cost = adapter, program, cost
        self._position = 0

    def _forward(self, ids: Sequence[int]) -> Logits:
        try:
            logits = self._program.forward(ids, self._position)
        except RuntimeError as error:
            raise ArtifactError(f"{self._source.path}: ExecuTorch stopped: {error}") from None
        if not np.isfinite(logits).all():
            raise ArtifactError(
                f"{self._source.path}: logits are not finite at position {self._position}; "
                "its weights are damaged"
            )
        self._position += len(ids)
        return logits


class _Opener:
    """Finds the program and the one data file for a base and an adapter, and loads them."""

    def __init__(
        self,
        base: BaseBundle | None,
        adapter: AdapterBundle | MergedBundle | None,
        threads: int,
        cache_dir: Path,
    ) -> None:
        self._base, self._adapter = base, adapter
        self._threads, self._cache_dir = threads, cache_dir

    def open(self, verify_s: float) -> tuple[Program, SwapCost]:
        """Load, and say what it took."""
        if isinstance(self._adapter, MergedBundle):
            return self._open_merged(self._adapter, verify_s)
        base = self._base
        assert base is not None
        source = base if self._adapter is None else self._adapter
        parents, tensors = constants(base, self._adapter)
        started = time.perf_counter()
        with cache.joined(self._cache_dir, parents, tensors) as file:
            join_s = time.perf_counter() - started
            program, load_s = self._load(source.artifact, source.program, file.path)
        _check_constants(program, base)
        size = source.program.stat().st_size
        cost = SwapCost(
            verify_s=verify_s,
            join_s=join_s,
            load_s=load_s,
            written_bytes=file.size_bytes if file.built else 0,
            opened_bytes=size + file.size_bytes,
            phone_bytes=size + sum(t.stored_bytes for t in tensors[len(base.foundation) :]),
        )
        return program, cost

    def _open_merged(self, adapter: MergedBundle, verify_s: float) -> tuple[Program, SwapCost]:
        program, load_s = self._load(adapter.artifact, adapter.program, None)
        size = adapter.program.stat().st_size
        return program, SwapCost(verify_s, 0.0, load_s, 0, size, size)

    def _load(self, artifact: Artifact, program: Path, data: Path | None) -> tuple[Program, float]:
        started = time.perf_counter()
        loaded = Program(program, data, self._threads)
        return loaded, time.perf_counter() - started


def constants(base: BaseBundle, adapter: AdapterBundle | None) -> tuple[list[str], list[Tensor]]:
    """All constants of a base with an adapter, the base's first, and the ids of what they are from.

    Without an adapter, zeros under the template's own keys, which change nothing: the base alone.
    """
    zero = [zeros(slot.key, slot.size_bytes) for slot in base.slots]
    tensors = zero if adapter is None else adapter.tensors
    return [base.artifact.id, (adapter or base).artifact.id], [*base.foundation, *tensors]


def _check_constants(program: Program, base: BaseBundle) -> None:
    said = (program.context_length, program.vocab_size)
    if said != (base.context_length, base.vocab_size):
        raise ArtifactError(
            f"{base.artifact.path}: the program says context and vocabulary {said}, layout.json "
            f"says {(base.context_length, base.vocab_size)}; export the base again"
        )
