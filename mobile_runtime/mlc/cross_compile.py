"""A check of code generation: can this model be compiled for phones and browsers at all?

In: a `ModelConfig`. Out: for each platform a `.tar` of objects as MLC's packaging links them into
an app, and what their headers and symbols say. These libraries are not for production: a library
and the runtime that loads it must be of one build of MLC, so real ones come from `mlc_llm compile`.

`python -m mobile_runtime.mlc.cross_compile BUNDLE` prints the table for a base bundle.
"""

from __future__ import annotations

import argparse
import tarfile
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvm.support import tar
from tvm.target import Target

from mobile_runtime.mlc.bundles import open_base
from mobile_runtime.mlc.config import LoraRanks, ModelConfig
from mobile_runtime.mlc.library import build

_ELF_AARCH64, _MACHO_ARM64 = 0xB7, 0x0100000C


@dataclass(frozen=True)
class Platform:
    """What to compile for. host: the processor that starts the kernels; device: None for itself."""

    name: str
    host: Mapping[str, Any]
    device: Mapping[str, Any] | None
    object_format: str

    @property
    def target(self) -> Target:
        return Target(dict(self.device or self.host), host=dict(self.host))


PLATFORMS = (
    Platform(
        "Android CPU",
        {"kind": "llvm", "mtriple": "aarch64-linux-android", "mattr": ["+neon"]}, None,
        "ELF aarch64",
    ),
    Platform(
        "Android OpenCL",
        {"kind": "llvm", "mtriple": "aarch64-linux-android"}, {"kind": "opencl"}, "ELF aarch64",
    ),
    Platform("iOS CPU", {"kind": "llvm", "mtriple": "arm64-apple-ios"}, None, "Mach-O arm64"),
    Platform(
        "iOS Metal",
        {"kind": "llvm", "mtriple": "arm64-apple-ios"},
        {"kind": "metal", "max_threads_per_block": 256, "max_shared_memory_per_block": 32768},
        "Mach-O arm64",
    ),
    Platform(
        "WebGPU",
        {"kind": "llvm", "mtriple": "wasm32-unknown-unknown-wasm"}, {"kind": "webgpu"}, "wasm",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What came out for a platform. problem: why it is not as it should be, else empty."""

    platform: str
    object_format: str
    size_bytes: int
    seconds: float
    problem: str


def symbol(config: ModelConfig) -> str:
    """What MLC's runtime looks for when the library is part of the app."""
    return f"{_prefix(config)}__tvm_ffi__library_bin"


def cross_compile(config: ModelConfig, ranks: LoraRanks, platform: Platform, out: Path) -> Outcome:
    """Write `out`, a `.tar`, and look into it; that a compiler refuses is a finding."""
    started = time.perf_counter()
    try:
        executable = build(config, ranks, platform.target, system_prefix=_prefix(config))
        executable.export_library(str(out), fcompile=tar.tar)
    except Exception as error:  # whatever TVM raises is the finding
        seconds = time.perf_counter() - started
        return Outcome(platform.name, "", 0, seconds, _first_line(error))
    seconds = time.perf_counter() - started
    objects = _objects(out)
    formats = {object_format(content) for content in objects.values()}
    problems: list[str] = []
    if formats != {platform.object_format}:
        problems.append(f"objects are {sorted(formats)}, expected {platform.object_format}")
    if not any(symbol(config).encode() in content for content in objects.values()):
        problems.append(f"no symbol {symbol(config)}")
    size = sum(len(content) for content in objects.values())
    return Outcome(platform.name, ", ".join(sorted(formats)), size, seconds, "; ".join(problems))


def object_format(content: bytes) -> str:
    """Told from the header of an object file."""
    if content[:4] == b"\x7fELF" and int.from_bytes(content[18:20], "little") == _ELF_AARCH64:
        return "ELF aarch64"
    if content[:4] == b"\xcf\xfa\xed\xfe" and _word(content, 4) == _MACHO_ARM64:
        return "Mach-O arm64"
    return "wasm" if content[:4] == b"\0asm" else f"unknown ({content[:4].hex()})"


def device_sources(config: ModelConfig, ranks: LoraRanks, platform: Platform) -> list[str]:
    """The kernels' source code, as the device's own compiler gets it."""
    executable = build(config, ranks, platform.target, system_prefix=_prefix(config))
    assert platform.device is not None
    kind = str(platform.device["kind"])
    return [module.inspect_source() for module in _modules(executable.mod) if module.kind == kind]


def _modules(module: Any) -> Iterable[Any]:
    yield module
    for imported in module.imports:
        yield from _modules(imported)


def _objects(archive: Path) -> dict[str, bytes]:
    with tarfile.open(archive) as opened:
        files = [member for member in opened.getmembers() if member.isfile()]
        return {member.name: _content(opened.extractfile(member)) for member in files}


def _content(stream: Any) -> bytes:
    return stream.read()


def _word(content: bytes, at: int) -> int:
    return int.from_bytes(content[at : at + 4], "little")


def _prefix(config: ModelConfig) -> str:
    return f"{config.family}_{config.quantization}_"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[-1]}"


def main() -> None:
    """Print a table; the objects are not kept unless `--out` says where."""
    arguments = argparse.ArgumentParser(description="A check of code generation, see the module.")
    arguments.add_argument("bundle", type=Path)
    arguments.add_argument("--out", type=Path)
    given = arguments.parse_args()
    config = open_base(given.bundle).config
    with tempfile.TemporaryDirectory() as scratch:
        home = given.out or Path(scratch)
        home.mkdir(parents=True, exist_ok=True)
        outcomes = [
            cross_compile(config, {}, platform, home / f"{platform.name.replace(' ', '-')}.tar")
            for platform in PLATFORMS
        ]
    _print(outcomes)


def _print(outcomes: list[Outcome]) -> None:
    from rich.console import Console
    from rich.table import Table

    grid = Table(
        "platform", "objects", "bytes", "seconds", "finding",
        title="Code generation only: libraries for production come from mlc_llm",
    )  # fmt: skip
    for each in outcomes:
        found = each.problem or "headers and symbol as expected"
        size, seconds = f"{each.size_bytes:,}", f"{each.seconds:.1f}"
        grid.add_row(each.platform, each.object_format, size, seconds, found)
    Console().print(grid)


if __name__ == "__main__":
    main()
