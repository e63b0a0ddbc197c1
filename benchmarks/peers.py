"""Peers that conflict with our pins, each in a virtual environment of its own below build/peers/.

In: the name of a peer. Out: its Python. llama.cpp is compiled for the processor at hand, which
takes minutes; an environment that is there is used again. Its log lies beside it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

BUILD = Path(__file__).parents[1] / "build"
LLAMA_CPP = ("llama-cpp-python==0.3.36", "gguf==0.19.0", "numpy==2.4.6", "safetensors==0.8.0")
_CMAKE = "-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF"
_BUILD_S = 3600


class PeerError(Exception):
    """A peer cannot be had on this machine; the message says why."""


def llama_cpp() -> Path:
    """The Python that has llama.cpp, built from source, and GGUF's own package.

    Raises:
        PeerError: it cannot be built; the message names the log.
    """
    home = BUILD / "peers" / "llama_cpp"
    python, ready = home / "bin" / "python", home / "ready"
    wanted = "\n".join([*LLAMA_CPP, _CMAKE])
    if ready.is_file() and ready.read_text("utf-8") == wanted:
        return python
    shutil.rmtree(home, ignore_errors=True)
    home.parent.mkdir(parents=True, exist_ok=True)
    log = home.with_suffix(".log")
    print(f"building llama.cpp, some minutes; log: {log}", flush=True)
    environment = {
        **os.environ, "CMAKE_ARGS": _CMAKE, "CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count()),
    }  # fmt: skip
    install = ["-m", "pip", "install", "--disable-pip-version-check", "--no-cache-dir",
               "--no-binary", "llama-cpp-python", "--verbose", *LLAMA_CPP]  # fmt: skip
    with log.open("w", encoding="utf-8") as said:
        for command in ([sys.executable, "-m", "venv", str(home)], [str(python), *install]):
            shown = f"{' '.join(command[:4])} …"
            try:
                done = subprocess.run(
                    ["nice", *command], env=environment, stdout=said, stderr=subprocess.STDOUT,
                    timeout=_BUILD_S, check=False,
                )  # fmt: skip
            except subprocess.TimeoutExpired:
                raise PeerError(f"{shown} was not done after {_BUILD_S} s: {log}") from None
            if done.returncode:
                raise PeerError(f"{shown} ended with {done.returncode}: {log}")
    ready.write_text(wanted, encoding="utf-8")
    return python
