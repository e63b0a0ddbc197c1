"""The engine on Apache TVM: MLC's weights and config, run by a library compiled here.

In: bundles, and nothing else. Out: logits. The base's tensors are read once; a change of adapter
reads the adapter's own shards only. Weights that are stored as halves are widened: everything is
computed in float32, so a phone that computes in float16 differs a little more from the reference.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mobile_runtime.engine import Logits, SwapCost, check_ids
from mobile_runtime.mlc.bundles import AdapterBundle, Bundle, open_adapter, open_base
from mobile_runtime.mlc.config import LoraRanks, ModelConfig
from mobile_runtime.mlc.library import Library, open_library
from mobile_runtime.mlc.machine import Machine, Weight, set_threads
from mobile_runtime.mlc.model import parameters
from protos.errors import ArtifactError, InputError, UnsupportedError


@dataclass(frozen=True)
class _Running:
    """A machine, and which adapter's shapes its library was made for."""

    machine: Machine
    config: ModelConfig
    ranks: LoraRanks


class TvmEngine:
    """See `engine.Engine`."""

    def __init__(
        self,
        base: Path | None,
        adapter: Path | None,
        threads: int,
        cache_dir: Path | None = None,
        dtype: str = "float32",
    ) -> None:
        """Open bundles; `dtype` is what the library computes in."""
        if base is None and adapter is None:
            raise InputError("neither a base bundle nor an adapter bundle is given")
        set_threads(threads)
        self._cache_dir, self._dtype = cache_dir, dtype
        self._loaded: _Running | None = None
        self._kept: dict[str, Weight] | None = None
        self._adapter: AdapterBundle | None = None
        self._position = 0
        started = time.perf_counter()
        self._base = None if base is None else open_base(base)
        opened = None if adapter is None else open_adapter(adapter, self._base)
        self._open(opened, time.perf_counter() - started)

    @property
    def position(self) -> int:
        return self._position

    @property
    def context_length(self) -> int:
        return self._source.config.context_length

    @property
    def vocab_size(self) -> int:
        return self._source.config.vocab_size

    @property
    def stop_ids(self) -> frozenset[int]:
        return self._source.stop_ids

    @property
    def cost(self) -> SwapCost:
        return self._cost

    def prefill(self, ids: Sequence[int]) -> Logits:
        """See `Engine.prefill`; longer inputs than a chunk are read in chunks."""
        check_ids(self, ids)
        chunk = self._source.config.chunk
        chunks = [ids[start : start + chunk] for start in range(0, len(ids), chunk)]
        return [self._forward(each) for each in chunks][-1]

    def decode(self, token: int) -> Logits:
        """See `Engine.decode`."""
        check_ids(self, [token])
        return self._forward([token])

    def reset(self) -> None:
        """See `Engine.reset`."""
        assert self._loaded is not None
        self._loaded.machine.clear()
        self._position = 0

    def set_adapter(self, adapter: Path | None) -> SwapCost:
        """See `Engine.set_adapter`."""
        if self._base is None or (self._adapter is not None and self._adapter.merged):
            raise UnsupportedError(
                f"{self._source.artifact.path}: its adapter is merged into the weights; open "
                "another bundle"
            )
        started = time.perf_counter()
        opened = None if adapter is None else open_adapter(adapter, self._base)
        self._open(opened, time.perf_counter() - started)
        return self._cost

    @property
    def _source(self) -> Bundle:
        """The bundle that errors name."""
        bundle = self._adapter or self._base
        assert bundle is not None
        return bundle

    def _open(self, adapter: AdapterBundle | None, verify_s: float) -> None:
        """Make and read everything that can fail, and only then change anything."""
        bundle = adapter or self._base
        assert bundle is not None
        started = time.perf_counter()
        running, library = self._running(bundle)
        made = time.perf_counter()
        weights, read_bytes = self._weights(bundle)
        running.machine.load(weights)
        self._adapter, self._loaded, self._position = adapter, running, 0
        size = library.size_bytes if library else 0
        self._cost = SwapCost(
            verify_s=verify_s,
            join_s=made - started,
            load_s=time.perf_counter() - made,
            written_bytes=size if library and library.built else 0,
            opened_bytes=size + read_bytes,
            phone_bytes=bundle.own_bytes,
        )

    def _running(self, bundle: Bundle) -> tuple[_Running, Library | None]:
        """A machine for the bundle's model: the one that runs already, or one with a library."""
        now = self._loaded
        if now and (now.config, now.ranks) == (bundle.config, bundle.ranks):
            return now, None
        library = open_library(bundle.config, bundle.ranks, self._dtype, self._cache_dir)
        taken = parameters(bundle.config, bundle.ranks, self._dtype)
        machine = Machine(library.module, bundle.config, taken)
        return _Running(machine, bundle.config, bundle.ranks), library

    def _weights(self, bundle: Bundle) -> tuple[dict[str, Weight], int]:
        """The bundle's tensors with those that it shares with its base, and the bytes read."""
        if bundle is self._base:
            return self._base_weights()
        weights, size = self._read_weights(bundle), bundle.own_bytes
        if bundle.shared:
            base, read_now = self._base_weights()
            weights |= {name: base[name] for name in bundle.shared_names}
            size += read_now
        return weights, size

    def _base_weights(self) -> tuple[dict[str, Weight], int]:
        """Read once, when first needed."""
        assert self._base is not None
        if self._kept is not None:
            return self._kept, 0
        self._kept = self._read_weights(self._base)
        return self._kept, self._base.own_bytes

    def _read_weights(self, bundle: Bundle) -> dict[str, Weight]:
        weights: dict[str, Weight] = {}
        for name, array in bundle.read():
            words = array.dtype == np.uint32
            if not words and not np.isfinite(array).all():
                raise ArtifactError(f"{bundle.artifact.path}: {name} holds what is not finite")
            weights[name] = Weight.of(array, "uint32" if words else self._dtype)
        return weights

    def _forward(self, ids: Sequence[int]) -> Logits:
        assert self._loaded is not None
        logits = self._loaded.machine.read(ids)
        if not np.isfinite(logits).all():
            raise ArtifactError(
                f"{self._source.artifact.path}: logits are not finite at position "
                f"{self._position}; its weights are damaged"
            )
        self._position += len(ids)
        return logits
