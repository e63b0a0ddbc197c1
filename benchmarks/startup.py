"""How soon there is something: the help, an opened base, a changed adapter, a first token.

Each first token is that of a new process, ours and Hugging Face's by turns, its files in the page
cache; its logits are held against those of the same model in float32. Adapters are changed in one
process, and the engine must then answer as one that was opened with that adapter.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import models
from benchmarks.alone import alone
from benchmarks.rows import Row
from benchmarks.turns import compared, limited

HELP_S = 0.3
_LEAST_COSINE = 0.8
"""Of logits with int4 weights to those in float32; bfloat16 is closer."""
EAGER, PEFT = "Hugging Face eager", "PEFT"


@dataclass(frozen=True)
class Sizes:
    """How often each is done; what Hugging Face computes in."""

    helps: int = 10
    starts: int = 5
    swaps: int = 9
    prompt: int = 128
    dtypes: tuple[str, ...] = ("float32", "bfloat16")


QUICK = Sizes(helps=3, starts=1, swaps=3, dtypes=("float32",))


def rows(quick: bool, work: Path) -> list[Row]:
    """Help, first tokens, changes of the adapter."""
    sizes, model = QUICK if quick else Sizes(), models.model(quick)
    return [_help(sizes), *_first_tokens(model, sizes, work), *_swaps(model, sizes, work)]


def _help(sizes: Sizes) -> Row:
    command = [str(Path(sys.executable).parent / "pocketune"), "--help"]
    seconds: list[float] = []
    for _ in range(sizes.helps):
        started = time.perf_counter()
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        seconds.append(time.perf_counter() - started)
        if "personalize" not in said:
            raise SystemExit(f"pocketune --help does not name its commands: {said}")
    return limited("pocketune --help", float(np.median(seconds)), "s", HELP_S)


def _first_tokens(model: models.Model, sizes: Sizes, work: Path) -> list[Row]:
    bundle = models.lowered("base", models.INT4, model).path
    ids = some_ids(model, sizes.prompt)
    said = work / "said.npy"
    alone(answer_hugging_face, base=model.base, dtype="float32", ids=ids, save=str(said))
    wanted = np.load(said)
    ways: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
        "8da4w": (answer, {"base": str(bundle)})
    }
    for dtype in sizes.dtypes:
        ways[f"{EAGER} {dtype}"] = (answer_hugging_face, {"base": model.base, "dtype": dtype})
    took: dict[str, dict[str, list[float]]] = {n: {"open_s": [], "first_s": []} for n in ways}
    for _ in range(sizes.starts):
        for name, (function, given) in ways.items():
            since = time.monotonic()
            done = alone(function, **given, ids=ids, save=str(said), since=since).result
            cosine = _cosine(np.load(said), wanted)
            if cosine < _LEAST_COSINE:
                raise SystemExit(f"{name}: cosine {cosine:.3f} to float32, not {_LEAST_COSINE}")
            for what, into in took[name].items():
                into.append(done[what])
    ours, *peers = ways
    figures = {
        "open_s": f"open the base, libraries loaded, 8da4w, {model.name}",
        "first_s": f"from the start of a process to the first token, {sizes.prompt} tokens read, "
        f"8da4w, {model.name}",
    }
    return [
        compared(figure, "s", peer, took[ours][what], took[peer][what], less_is_better=True)
        for what, figure in figures.items()
        for peer in peers
    ]


def answer(
    base: str | None, ids: Sequence[int], adapter: str | None = None, save: str | None = None,
    since: float = 0.0, threads: int = 2, tokens: int = 0,
) -> dict[str, float]:  # fmt: skip
    """Open a bundle, read `ids`, then so many tokens more; seconds to open, and since `since`."""
    from mobile_runtime.engine import open_engine
    from mobile_runtime.native import set_threads

    set_threads(threads)  # loads the runtime
    started = time.perf_counter()
    paths = [Path(path) if path else None for path in (base, adapter)]
    engine = open_engine(*paths, threads, models.KEPT / "joined")
    opened = time.perf_counter() - started
    logits = engine.prefill(ids)
    first = time.monotonic() - since
    for _ in range(tokens):
        engine.decode(int(logits.argmax()))
    if save:
        np.save(save, logits)
    return {"open_s": opened, "first_s": first}


def answer_hugging_face(
    base: str, dtype: str, ids: Sequence[int], adapter: str | None = None,
    save: str | None = None, since: float = 0.0, threads: int = 2, tokens: int = 0,
) -> dict[str, float]:  # fmt: skip
    """The same with transformers and PEFT."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.models.llama import modeling_llama  # noqa: F401 (else imported when opening)

    if adapter:
        from peft import PeftModel
    torch.set_num_threads(threads)
    started = time.perf_counter()
    loaded: Any = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype)).eval()
    if adapter:
        loaded = PeftModel.from_pretrained(loaded, adapter).eval()
    opened = time.perf_counter() - started
    with torch.inference_mode():
        out = loaded(input_ids=torch.tensor([list(ids)]), use_cache=True, logits_to_keep=1)
        logits = out.logits[0, -1].float().numpy()
        first = time.monotonic() - since
        for _ in range(tokens):
            token = torch.tensor([[int(logits.argmax())]])
            out = loaded(input_ids=token, past_key_values=out.past_key_values, use_cache=True)
    if save:
        np.save(save, logits)
    return {"open_s": opened, "first_s": first}


def _swaps(model: models.Model, sizes: Sizes, work: Path) -> list[Row]:
    """An adapter seen for the first time, and one that was there before."""
    bundle = models.lowered("base", models.INT4, model).path
    users = [str(models.exported(user, model, bundle, work / f"user{user}")) for user in (0, 1)]
    ids = some_ids(model, sizes.prompt)
    ours = alone(
        swap, base=str(bundle), users=users, ids=ids, cache=str(work / "joined"), times=sizes.swaps
    ).result
    theirs = alone(swap_peft, base=model.base, users=list(model.adapters), times=sizes.swaps).result
    figure = f"change the adapter, 8da4w, r = 8 on all linear layers, {model.name}"
    note = f"a phone opens {ours['phone_bytes'] / 1e6:.2f} MB for it"
    return [
        compared(
            f"{figure}: a new one", "ms", f"{PEFT}, load_adapter from disk", ours["new_ms"],
            theirs["new_ms"], less_is_better=True, note=note,
        ),
        compared(
            f"{figure}: one seen before", "ms", f"{PEFT}, set_adapter in memory",
            ours["again_ms"], theirs["again_ms"], less_is_better=True,
        ),
    ]  # fmt: skip


def swap(
    base: str, users: Sequence[str], ids: Sequence[int], cache: str, times: int
) -> dict[str, Any]:
    """Milliseconds to change between two users' bundles, their data file made anew or kept.

    Raises:
        SystemExit: a changed engine answers otherwise than one opened with that adapter.
    """
    import shutil

    from mobile_runtime.engine import open_engine

    paths = [Path(user) for user in users]
    wanted = [open_engine(Path(base), path, 2, Path(cache)).prefill(ids) for path in paths]
    if np.array_equal(*wanted):
        raise SystemExit("two users' adapters answer alike")
    engine = open_engine(Path(base), None, 2, Path(cache))
    engine.prefill(ids)
    took: dict[str, Any] = {"new_ms": [], "again_ms": []}
    for turn in range(times):
        for what in took:
            if what == "new_ms":
                shutil.rmtree(cache)
            for user in (turn % 2, 1 - turn % 2) if what == "again_ms" else (turn % 2,):
                started = time.perf_counter()
                cost = engine.set_adapter(paths[user])
                seconds = time.perf_counter() - started
                if not np.array_equal(engine.prefill(ids), wanted[user]):
                    raise SystemExit(f"after a change to {users[user]} the answers are others")
            took[what].append(1e3 * seconds)
    return took | {"phone_bytes": cost.phone_bytes}


def swap_peft(base: str, users: Sequence[str], times: int) -> dict[str, list[float]]:
    """The same with PEFT: loading a user's adapter beside the other, and changing between both."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    model: Any = PeftModel.from_pretrained(loaded, users[0], adapter_name="first").eval()
    took: dict[str, list[float]] = {"new_ms": [], "again_ms": []}
    for _ in range(times):
        started = time.perf_counter()
        model.load_adapter(users[1], adapter_name="second")
        model.set_adapter("second")
        took["new_ms"].append(1e3 * (time.perf_counter() - started))
        started = time.perf_counter()
        model.set_adapter("first")
        took["again_ms"].append(1e3 * (time.perf_counter() - started))
        model.delete_adapter("second")
    return took


def some_ids(model: models.Model, count: int) -> list[int]:
    """Token ids of its vocabulary, always the same."""
    from protos.base_model import open_base

    vocab = open_base(model.base).config["vocab_size"]
    return np.random.default_rng(0).integers(3, vocab, count).tolist()


def _cosine(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(found @ wanted / np.linalg.norm(found) / np.linalg.norm(wanted))
