"""The model library: the decoder compiled for this machine, once for all users of a base.

In: a `ModelConfig`, and which projections an adapter adds to. Out: a module of TVM that holds no
weights. It is kept by a digest of all that decides its code: the config, the adapter's shapes, the
processor, TVM's version and our own sources. Where there is no C++ compiler to link it with, it is
made anew each time and stays in memory.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tvm
from tvm import relax
from tvm.support.cc import get_cc
from tvm.target import Target, codegen

from mobile_runtime import cache
from mobile_runtime.mlc import config as config_source
from mobile_runtime.mlc import matmul, model
from mobile_runtime.mlc.config import LoraRanks, ModelConfig
from protos.artifacts import digest_file, digest_json

KEEP = 8
"""Libraries kept; each is about a megabyte."""
_SOURCES = (config_source, matmul, model)


@dataclass(frozen=True)
class Library:
    """A compiled library, ready to run.

    module: TVM's. size_bytes: of its file, 0 if it has none. built: it was compiled just now.
    """

    module: Any
    size_bytes: int
    built: bool
    seconds: float


def open_library(
    config: ModelConfig, ranks: LoraRanks, dtype: str = "float32", directory: Path | None = None
) -> Library:
    """The library for this machine, compiled if it is not there.

    Args:
        dtype: what it computes in, `float32` or `float16`.
        directory: where libraries are kept.

    Raises:
        InputError: the directory cannot be written.
    """
    started = time.perf_counter()
    target = host_target()
    if get_cc() is None:
        module = build(config, ranks, target, dtype).jit()
        return Library(module, 0, True, time.perf_counter() - started)

    def write(path: Path) -> str:
        build(config, ranks, target, dtype).export_library(str(path))
        return digest_file(path)

    home = directory or cache.default_directory("mlc-libraries")
    with cache.kept(home, _key(config, ranks, target, dtype), ".so", write, KEEP) as file:
        module = tvm.runtime.load_module(str(file.path))
    return Library(module, file.size_bytes, file.built, time.perf_counter() - started)


def build(
    config: ModelConfig,
    ranks: LoraRanks,
    target: Target,
    dtype: str = "float32",
    system_prefix: str | None = None,
) -> Any:
    """Compile for any target.

    Args:
        system_prefix: for a library that is linked into an app: what its symbols begin with.
    """
    module = model.lower(config, ranks, target, dtype)
    if system_prefix is not None:
        module = module.with_attr("system_lib_prefix", system_prefix)
    with target:
        return relax.build(module, target, system_lib=system_prefix is not None)


def host_target() -> Target:
    """This machine's own processor, with all that it can do.

    fast-math lets LLVM turn a dot product into vectors, which costs some 1e-6 in a logit.
    """
    kind = {"kind": "llvm", "mcpu": codegen.llvm_get_system_cpu(), "fast-math": True}
    return Target(kind, host=kind)


def _key(config: ModelConfig, ranks: LoraRanks, target: Target, dtype: str) -> str:
    sources = [digest_file(Path(str(source.__file__))) for source in _SOURCES]
    return digest_json([asdict(config), dict(ranks), str(target), dtype, tvm.__version__, sources])
