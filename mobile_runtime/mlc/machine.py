"""TVM's virtual machine with one library, one set of weights and one paged KV cache, typed.

In: a library and its weights. Out: logits as numpy. The only module that calls a compiled library.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax
from tvm.runtime import ShapeTuple

from mobile_runtime.mlc.config import ModelConfig
from mobile_runtime.mlc.model import PAGE, Parameter
from protos.errors import InputError

_SHARE_ALL_CORES = -3
"""Threads may run on any core. TVM's other ways pin this very thread to one, for good."""
_SEQUENCE = 0
"""The cache could hold several conversations; an engine has one."""


@dataclass(frozen=True)
class Weight:
    """A tensor in TVM's memory."""

    tensor: Any

    @classmethod
    def of(cls, array: NDArray[Any], dtype: str) -> Weight:
        """A copy of `array`, in the dtype that the library computes in."""
        return cls(tvm.runtime.tensor(np.ascontiguousarray(array.astype(dtype, copy=False))))


class Machine:
    """A library that runs, with its own cache; weights are given by name and can be exchanged."""

    def __init__(self, library: Any, config: ModelConfig, parameters: Sequence[Parameter]) -> None:
        cpu: Any = tvm.cpu()
        self._functions: Any = relax.VirtualMachine(library, cpu)
        self._names = [parameter.name for parameter in parameters]
        sizes = (1, config.context_length, config.chunk, PAGE, 0)
        self._cache: Any = self._functions["create_paged_kv_cache"](*(_shape(n) for n in sizes))
        self._weights: list[Any] = []
        self.clear()

    def load(self, weights: Mapping[str, Weight]) -> None:
        """Take these weights from now on, and forget everything read."""
        self._weights = [weights[name].tensor for name in self._names]
        self.clear()

    def clear(self) -> None:
        """Forget everything read."""
        _state("clear")(self._cache)
        _state("add_sequence")(self._cache, _SEQUENCE)

    def read(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Logits [vocab] after the last of `ids`, which follow all that was read before."""
        tokens = tvm.runtime.tensor(np.asarray(ids, dtype=np.int32))
        embeddings: Any = self._functions["embed"](tokens, self._weights)
        step: Any = self._functions["decode" if len(ids) == 1 else "prefill"]
        _state("begin_forward")(self._cache, _shape(_SEQUENCE), _shape(len(ids)))
        logits: Any = step(embeddings, self._cache, self._weights)
        _state("end_forward")(self._cache)
        return np.array(logits.numpy().reshape(-1), dtype=np.float32)


def set_threads(threads: int) -> None:
    """Size TVM's one pool of threads, which all engines of the process share.

    Raises:
        InputError: below 1.
    """
    if threads < 1:
        raise InputError(f"threads is {threads}, expected at least 1")
    usable = getattr(os, "sched_getaffinity", None)  # Linux only
    cores = sorted(usable(0)) if usable else range(os.cpu_count() or 1)
    configure = tvm.get_global_func("runtime.config_threadpool")
    configure(_SHARE_ALL_CORES, threads, [str(core) for core in cores])


def _state(name: str) -> Any:
    return tvm.get_global_func(f"vm.builtin.kv_state_{name}")


def _shape(size: int) -> ShapeTuple:
    return ShapeTuple((size,))
