"""What reads tokens for benchmarks/inference.py: one process for each library and thread count.

`python -m benchmarks.runners LIBRARY JSON` loads the variants that the JSON names and answers, line
by line, requests {"variant", "ids", "prompt", "save"}: it reads the first `prompt` ids at once, the
others one by one, and prints the seconds of both; logits after the prompt and after each further id
go to the file `save`. What a library prints itself goes to stderr. benchmarks/llama.py
speaks the same for llama.cpp.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np

from benchmarks.alone import ROOT


class Reader(Protocol):
    """A model that reads tokens; logits [vocab] after the last one."""

    def prefill(self, ids: list[int]) -> Any: ...

    def decode(self, token: int) -> Any: ...


class Times(NamedTuple):
    """Seconds of one turn."""

    prefill: float
    decode: float


class Runner:
    """A process that reads; see the module's docstring."""

    def __init__(self, process: subprocess.Popen[str], name: str) -> None:
        self._process, self._name = process, name
        self._answer()

    def read(
        self, variant: str, ids: Sequence[int], prompt: int, save: Path | None = None
    ) -> Times:
        """One turn."""
        request = {
            "variant": variant, "ids": list(ids), "prompt": prompt,
            "save": str(save) if save else None,
        }  # fmt: skip
        assert self._process.stdin
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return Times(**self._answer())

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        said = self._process.stdout.readline()
        if not said:
            raise SystemExit(f"{self._name} ended with {self._process.wait()}, see above")
        return json.loads(said)


@contextlib.contextmanager
def running(
    library: str, threads: int, variants: Mapping[str, Any], python: Path | None = None
) -> Generator[Runner]:
    """A runner of one of our own libraries, or, with a peer's `python`, of benchmarks/llama.py."""
    module = "benchmarks.llama" if python else "benchmarks.runners"
    told = json.dumps({"threads": threads, "variants": variants})
    command = [str(python or sys.executable), "-m", module, library, told]
    process = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
    )  # fmt: skip
    try:
        yield Runner(process, library)
    finally:
        process.kill()
        process.communicate()


class _Pocketune:
    """Bundles on the reference runtime."""

    def __init__(self, threads: int, base: str | None, adapter: str | None) -> None:
        from mobile_runtime.engine import open_engine

        paths = [Path(path) if path else None for path in (base, adapter)]
        self._engine = open_engine(*paths, threads, ROOT / "build" / "bench" / "joined")

    def prefill(self, ids: list[int]) -> Any:
        self._engine.reset()
        return self._engine.prefill(ids)

    def decode(self, token: int) -> Any:
        return self._engine.decode(token)


class _HuggingFace:
    """transformers with a cache, as `generate` calls it.

    static: a cache of fixed size. compiled: torch.compile of the forward pass, with its defaults.
    As references of correctness: quantized: the recipe whose weights it computes with; merged: the
    adapter is merged before that; weights: a file to take in place of the model's own.
    """

    _loaded: ClassVar[dict[tuple[Any, ...], Any]] = {}

    def __init__(
        self, threads: int, base: str, dtype: str, adapter: str | None = None,
        static: bool = False, compiled: bool = False, quantized: str | None = None,
        merged: bool = False, weights: str | None = None,
    ) -> None:  # fmt: skip
        import torch

        torch.set_num_threads(threads)
        key = (base, dtype, adapter, quantized, merged, weights)
        if key not in self._loaded:
            self._loaded[key] = _load(*key)
        self._torch, self._model = torch, self._loaded[key]
        self._forward = torch.compile(self._model, dynamic=False) if compiled else self._model
        self._static, self._cache, self._position = static, None, 0

    def prefill(self, ids: list[int]) -> Any:
        from transformers import DynamicCache, StaticCache

        config = self._model.config
        if not self._static:
            self._cache = DynamicCache(config=config)
        elif self._cache is None:
            self._cache = StaticCache(config=config, max_cache_len=512)
        else:
            with self._torch.inference_mode():
                self._cache.reset()
        self._position = 0
        return self._read(ids)

    def decode(self, token: int) -> Any:
        return self._read([token])

    def _read(self, ids: list[int]) -> Any:
        torch = self._torch
        places = torch.arange(self._position, self._position + len(ids))
        with torch.inference_mode():
            out = self._forward(
                input_ids=torch.tensor([ids]), position_ids=places[None],
                past_key_values=self._cache, use_cache=True, logits_to_keep=1,
            )  # fmt: skip
        self._position += len(ids)
        return out.logits[0, -1].float().numpy()


def _load(
    base: str, dtype: str, adapter: str | None, quantized: str | None, merged: bool,
    weights: str | None,
) -> Any:  # fmt: skip
    import torch
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype)).eval()
    if weights:
        from safetensors.torch import load_file

        missing, unexpected = loaded.load_state_dict(load_file(weights), strict=False)
        if unexpected or set(missing) - {"lm_head.weight"}:
            raise SystemExit(f"{weights}: missing {missing}, unexpected {unexpected}")
    if adapter and merged:
        loaded = _tuned(loaded, adapter).merge_and_unload()
    if quantized:
        from export.executorch.quantize import quantize
        from export.recipes import find_recipe

        quantize(loaded, find_recipe(quantized))
    return _tuned(loaded, adapter) if adapter and not merged else loaded


def _tuned(loaded: Any, adapter: str) -> Any:
    from peft import PeftModel

    return PeftModel.from_pretrained(loaded, adapter).eval()


LIBRARIES: Mapping[str, Callable[..., Reader]] = {
    "pocketune": _Pocketune, "huggingface": _HuggingFace,
}  # fmt: skip


def serve(open_reader: Callable[..., Reader], given: Mapping[str, Any]) -> None:
    """Load every variant, then answer until stdin ends."""
    said, sys.stdout = os.fdopen(os.dup(1), "w"), sys.stderr
    os.dup2(2, 1)  # libraries print to the first descriptor
    readers = {
        name: open_reader(given["threads"], **options)
        for name, options in given["variants"].items()
    }
    print("{}", file=said, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        answer = _turn(readers[request["variant"]], request)
        print(json.dumps(answer), file=said, flush=True)


def _turn(reader: Reader, request: Mapping[str, Any]) -> dict[str, float]:
    prompt, rest = request["ids"][: request["prompt"]], request["ids"][request["prompt"] :]
    started = time.perf_counter()
    logits = [reader.prefill(prompt)]
    between = time.perf_counter()
    for token in rest:
        logits.append(reader.decode(token))
    ended = time.perf_counter()
    if request["save"]:
        np.save(request["save"], np.stack(logits).astype(np.float32))
    return {"prefill": between - started, "decode": ended - between}


if __name__ == "__main__":
    serve(LIBRARIES[sys.argv[1]], json.loads(sys.argv[2]))
