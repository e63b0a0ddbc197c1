"""How soon there is something: the help, an opened base, a changed adapter, a first token.

Each first token is that of a new process, ours and Hugging Face's by turns, its files in the page
cache; its logits are held against those of the same model in float32. Adapters are changed in one
process that holds both, by turns: the engine must then answer as one that was opened with that
adapter, and PEFT like it.
"""

from __future__ import annotations

import shutil
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
            hold(name, said, wanted)
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
    took = alone(
        swap, base=str(bundle), users=users, cache=str(work / "joined"), peer_base=model.base,
        peer_users=list(model.adapters), ids=some_ids(model, sizes.prompt), times=sizes.swaps,
    ).result  # fmt: skip
    figure = f"change the adapter, 8da4w, r = 8 on all linear layers, {model.name}"
    note = f"a phone opens {took['phone_bytes'] / 1e6:.2f} MB for it"
    return [
        compared(
            f"{figure}: a new one", "ms", f"{PEFT}, load_adapter from disk", took["new"],
            took["peer_new"], less_is_better=True, note=note,
        ),
        compared(
            f"{figure}: one seen before", "ms", f"{PEFT}, set_adapter in memory",
            took["again"], took["peer_again"], less_is_better=True,
        ),
    ]  # fmt: skip


def swap(
    base: str, users: Sequence[str], cache: str, peer_base: str, peer_users: Sequence[str],
    ids: Sequence[int], times: int,
) -> dict[str, Any]:  # fmt: skip
    """Milliseconds to change to the second user and back, ours and PEFT's by turns in one process.

    Raises:
        SystemExit: one that was changed answers otherwise than it would with that adapter alone.
    """
    ours = Ours(base, users, cache, ids)
    peer = Peer(peer_base, peer_users, ids, like=ours.wanted)
    took: dict[str, list[float]] = {"new": [], "peer_new": [], "again": [], "peer_again": []}
    for _ in range(times):
        for side, prefix in ((ours, ""), (peer, "peer_")):
            took[f"{prefix}new"].append(side.new())
        for side, prefix in ((ours, ""), (peer, "peer_")):
            took[f"{prefix}again"].append(side.again())
    return took | {"phone_bytes": ours.phone_bytes}


class Ours:
    """An engine between two users' bundles, their data file made anew or kept."""

    def __init__(self, base: str, users: Sequence[str], cache: str, ids: Sequence[int]) -> None:
        from mobile_runtime.engine import open_engine

        self._users, self._cache, self._ids = [Path(user) for user in users], Path(cache), ids
        self.wanted = [
            open_engine(Path(base), user, 2, self._cache).prefill(ids) for user in self._users
        ]
        if np.array_equal(*self.wanted):
            raise SystemExit("two users' adapters answer alike")
        self._engine = open_engine(Path(base), self._users[0], 2, self._cache)
        self.phone_bytes = 0

    def new(self) -> float:
        """To the second user's, which was never joined with the base."""
        shutil.rmtree(self._cache)
        return self._change(1)

    def again(self) -> float:
        """To the first user's, which was."""
        self._engine.set_adapter(self._users[0])
        self._engine.set_adapter(self._users[1])
        return self._change(0)

    def _change(self, user: int) -> float:
        started = time.perf_counter()
        cost = self._engine.set_adapter(self._users[user])
        seconds = time.perf_counter() - started
        self.phone_bytes = cost.phone_bytes
        if not np.array_equal(self._engine.prefill(self._ids), self.wanted[user]):
            raise SystemExit(f"after a change to {self._users[user]} the answers are others")
        return 1e3 * seconds


class Peer:
    """The same with PEFT: loading a user's adapter beside the other, and changing between both."""

    def __init__(
        self, base: str, users: Sequence[str], ids: Sequence[int], like: Sequence[np.ndarray]
    ) -> None:
        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(2)
        self._torch, self._users, self._ids, self._like = torch, users, list(ids), like
        loaded: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
        self._model: Any = PeftModel.from_pretrained(loaded, users[0], adapter_name="0").eval()

    def new(self) -> float:
        """To the second user's, read from the disk."""
        if "1" in self._model.peft_config:
            self._model.delete_adapter("1")
        started = time.perf_counter()
        self._model.load_adapter(self._users[1], adapter_name="1")
        self._model.set_adapter("1")
        return self._checked(1, started)

    def again(self) -> float:
        """To the first user's, which is in memory."""
        started = time.perf_counter()
        self._model.set_adapter("0")
        return self._checked(0, started)

    def _checked(self, user: int, started: float) -> float:
        """Milliseconds; the answers must be like ours, see `hold_user`."""
        seconds = time.perf_counter() - started
        with self._torch.inference_mode():
            out = self._model(input_ids=self._torch.tensor([self._ids]), logits_to_keep=1)
        said = out.logits[0, -1].float().numpy()
        hold_user(user, said, self._like)
        return 1e3 * seconds


def hold_user(user: int, said: np.ndarray, like: Sequence[np.ndarray]) -> None:
    """See to it that PEFT's logits with an adapter are more like ours with it than with the other.

    Raises:
        SystemExit: they are not.
    """
    own, other = (_cosine(said, like[each]) for each in (user, 1 - user))
    if not (own >= _LEAST_COSINE and own >= other):
        raise SystemExit(f"PEFT, user {user}: cosine {own:.3f} to ours, other {other:.3f}")


def hold(name: str, said: Path, wanted: np.ndarray) -> None:
    """See to it that the logits in a file are like those of the same model in float32.

    Raises:
        SystemExit: they are not.
    """
    cosine = _cosine(np.load(said), wanted)
    if not cosine >= _LEAST_COSINE:  # nor are those that are no numbers
        raise SystemExit(f"{name}: cosine {cosine:.3f} to float32, not {_LEAST_COSINE}")


def some_ids(model: models.Model, count: int) -> list[int]:
    """Token ids of its vocabulary, always the same."""
    from protos.base_model import open_base

    vocab = open_base(model.base).config["vocab_size"]
    return np.random.default_rng(0).integers(3, vocab, count).tolist()


def _cosine(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(found @ wanted / np.linalg.norm(found) / np.linalg.norm(wanted))
