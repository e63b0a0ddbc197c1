"""ExecuTorch's own runtime, typed: the only module that touches its Python bindings.

In: a program and at most one data file. Out: logits as numpy. torch is here only because the
bindings carry tensors in it. The bindings are loaded directly: their public wrapper imports the
whole exporter (6 s instead of 1.5 s), which a runtime does not need.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import importlib.util
import os
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protos.errors import ArtifactError, InputError

_OPERATOR_LIBRARIES = (
    ("executorch.extension.llm.custom_ops", "custom_ops_aot_lib"),
    ("executorch.kernels.quantized", "quantized_ops_aot_lib"),
)
_LOCK = threading.RLock()
"""Programs share one thread pool; it is never resized while one of them computes."""


class Program:
    """A loaded program with its own KV cache."""

    def __init__(self, program: Path, data: Path | None, threads: int) -> None:
        """Load it and run one position, so that missing or unusable constants show here.

        Raises:
            ArtifactError: the runtime does not take it. InputError: see `set_threads`.
        """
        with _LOCK:
            bindings = _bindings()
            set_threads(threads)
            _live.add(self)
            try:
                self._module = bindings._load_for_executorch(
                    str(program), None if data is None else str(data)
                )
                shape = self._module.method_meta("forward").input_tensor_meta(0).sizes()
                self.max_tokens = int(shape[1])
                self.forward([0], 0)
                self.facts = _facts(self._module, program)
            except (RuntimeError, IndexError, TypeError, ValueError) as error:
                raise ArtifactError(f"{program}: ExecuTorch cannot run it ({error})") from None

    def forward(self, ids: Sequence[int], position: int) -> NDArray[np.float32]:
        """Logits [vocab] after the last of `ids`, which stand at `position` and after."""
        logits = self.outputs(ids, position)[0]
        return logits.reshape(-1, logits.shape[-1])[-1]

    def outputs(self, ids: Sequence[int], position: int) -> list[NDArray[np.float32]]:
        """All that the program gives for them: logits first, and what a probe adds."""
        import torch

        tokens = torch.tensor([list(ids)], dtype=torch.int64)
        start = torch.tensor([position], dtype=torch.int64)
        with _LOCK, _one_thread_a_caller():
            given: Any = self._module.run_method("forward", (tokens, start))
            return [np.array(tensor.numpy(), dtype=np.float32) for tensor in given]

    @property
    def context_length(self) -> int:
        return self.facts.context_length

    @property
    def vocab_size(self) -> int:
        return self.facts.vocab_size

    @property
    def stop_ids(self) -> frozenset[int]:
        return self.facts.stop_ids


@dataclass(frozen=True)
class Facts:
    """What a program says of itself."""

    context_length: int
    vocab_size: int
    stop_ids: frozenset[int]


def _facts(module: Any, program: Path) -> Facts:
    def said(method: str) -> list[int]:
        if method not in module.method_names():
            raise ArtifactError(f"{program}: the program has no method {method}")
        return [int(value) for value in module.run_method(method, ())]

    return Facts(
        context_length=said("get_max_context_len")[0],
        vocab_size=said("get_vocab_size")[0],
        stop_ids=frozenset(said("get_eos_ids")),
    )


def describe(program: Path) -> tuple[Facts, float]:
    """What a program says of itself that no engine here runs, and the seconds of opening it.

    Raises:
        ArtifactError: it cannot be opened, or takes and gives other tensors than a language model.
    """
    started = time.perf_counter()
    with _LOCK:
        try:
            module = _bindings()._load_for_executorch(str(program), None)
            facts, meta = _facts(module, program), module.method_meta("forward")
            taken = meta.num_inputs()
            given = list(meta.output_tensor_meta(0).sizes())
        except (RuntimeError, IndexError, TypeError, ValueError) as error:
            raise ArtifactError(f"{program}: ExecuTorch cannot open it ({error})") from None
    if taken != 2 or given != [1, facts.vocab_size]:
        raise ArtifactError(
            f"{program}: forward takes {taken} tensors and gives {given}, expected ids and "
            f"position, and [1, {facts.vocab_size}]"
        )
    return facts, time.perf_counter() - started


def set_threads(threads: int) -> None:
    """Size the one thread pool of the process.

    Raises:
        InputError: below 1, or live programs use another number: they hold the pool they began
            with, so replacing it under them would crash.
    """
    global _threads
    if threads < 1:
        raise InputError(f"threads is {threads}, expected at least 1")
    with _LOCK:
        if threads == _threads:
            return
        if len(_live):
            gc.collect()  # a caught error's traceback may hold programs that nobody else does
        if len(_live):
            raise InputError(
                f"threads is {threads}, but this process already runs ExecuTorch with {_threads}; "
                "its thread pool is shared by all engines"
            )
        with _quiet_stderr():
            _bindings()._unsafe_reset_threadpool(threads)
        _threads = threads


@contextlib.contextmanager
def _one_thread_a_caller() -> Generator[None]:
    """While a program computes, PyTorch's BLAS keeps to the thread that calls it.

    Every thread of the pool calls it in attention, and MKL, which is in PyTorch's builds for x86,
    began a team of its own for each: reading a prompt on two cores took twice as long.
    """
    import torch

    threads, (mkl, default) = torch.get_num_threads(), _mkl()
    torch.set_num_threads(1)  # this thread's, and that of MKL in it
    if mkl:
        mkl.mkl_serv_set_num_threads(1)  # all others'
    try:
        yield
    finally:
        if mkl:
            mkl.mkl_serv_set_num_threads(default)
        torch.set_num_threads(threads)


@functools.cache
def _mkl() -> tuple[ctypes.CDLL | None, int]:
    """PyTorch's MKL, if that is its BLAS, and how many threads it takes by default."""
    import torch

    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        here = library.MKL_Set_Num_Threads_Local(0)
        default = library.mkl_serv_get_max_threads()
        library.MKL_Set_Num_Threads_Local(here)
    except (OSError, AttributeError):
        return None, 0
    return library, default


_threads: int | None = None
_live: weakref.WeakSet[Program] = weakref.WeakSet()


@functools.cache
def _bindings() -> Any:
    """The bindings with the operators that our programs use.

    Raises:
        InputError: executorch is not installed.
    """
    try:
        with _quiet_stderr():
            import torch
            from executorch.extension.pybindings import (
                _portable_lib,
            )

            for package, library in _OPERATOR_LIBRARIES:
                torch.ops.load_library(_library(package, library))
    except (ImportError, OSError) as error:
        raise InputError(f"ExecuTorch's runtime cannot be loaded: {error}") from None
    return _portable_lib


def _library(package: str, library: str) -> Path:
    """The shared library inside an installed package, which is found but not imported."""
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(folder).glob(f"*{library}*")):
            return path
    raise ImportError(f"no {library} in {package}")


@contextlib.contextmanager
def _quiet_stderr() -> Generator[None]:
    """Keep native code's notes on the CPU off the terminal; if the block raises, show them."""
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as notes:
        os.dup2(notes.fileno(), 2)
        try:
            yield
        except BaseException:
            notes.seek(0)
            os.write(saved, notes.read())
            raise
        finally:
            os.dup2(saved, 2)
            os.close(saved)
