"""A golden, replayed on an engine: the device's own rung.

In: prompts and their continuations. Out: the same arrays as a reference's. Each prompt is read
twice: one token at a time from the start, which gives a row for every position, and at once as a
phone does, after which the continuation is decoded (teacher forced). Where both read the same
position, their difference is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mobile_runtime.compare import full_kl, log_sum_exp
from mobile_runtime.engine import Engine, Logits
from protos.errors import InputError
from protos.golden import Floats, Golden, GoldenPrompt, Ints, Rung
from protos.progress import Progress, silent


@dataclass(frozen=True)
class PrefillDecode:
    """Reading a prompt at once against one by one, at its last position, over all prompts.

    kl_mean, kl_max: nats over the whole vocabulary.
    """

    max_abs: float
    kl_mean: float
    kl_max: float


@dataclass(frozen=True)
class Replay:
    """What the device says."""

    rung: Rung
    prefill_decode: PrefillDecode


def replay(engine: Engine, golden: Golden, progress: Progress = silent) -> Replay:
    """Run every prompt of `golden` on `engine` with the adapter that it has now."""
    recorder = _Recorder(golden, engine.vocab_size)
    differences: list[tuple[float, float]] = []
    for number, prompt in enumerate(golden.prompts):
        progress(f"replaying {prompt.name}", number / len(golden.prompts))
        at_once, one_by_one = recorder.record(engine, prompt)
        kl = float(full_kl(one_by_one[None], at_once[None])[0])
        differences.append((float(np.abs(at_once - one_by_one).max()), kl))
    kls = [kl for _, kl in differences]
    summary = PrefillDecode(max(d for d, _ in differences), float(np.mean(kls)), max(kls))
    return Replay(recorder.rung(), summary)


def holds_context(engine: Engine) -> bool:
    """Whether the context can be filled to its end, and one token more is refused."""
    engine.reset()
    engine.prefill([0] * engine.context_length)
    try:
        engine.decode(0)
    except InputError:
        return True
    return False


class _Recorder:
    """Fills the arrays of a rung row by row; whole vectors are kept only where the golden does."""

    def __init__(self, golden: Golden, vocab_size: int) -> None:
        rows = len(golden.ids)
        self._ids = golden.ids
        self._whole = {int(row): place for place, row in enumerate(golden.full_rows)}
        self._logits: Floats = np.zeros(golden.ids.shape, dtype=np.float32)
        self._logsumexp: Floats = np.zeros(rows, dtype=np.float32)
        self._argmax: Ints = np.zeros(rows, dtype=np.int32)
        self._full: Floats = np.zeros((len(golden.full_rows), vocab_size), dtype=np.float32)
        self._row = 0

    def record(self, engine: Engine, prompt: GoldenPrompt) -> tuple[Logits, Logits]:
        """One prompt's rows; the last position's logits, read at once and one by one."""
        last: Logits | None = None
        engine.reset()
        for token in prompt.ids:
            last = engine.decode(token)
            self._keep(last)
        assert last is not None
        self._row -= 1  # the last position as a phone reads it is the one that counts
        rows = _as_a_phone(engine, prompt)
        at_once = next(rows)
        self._keep(at_once)
        for logits in rows:
            self._keep(logits)
        return at_once, last

    def rung(self) -> Rung:
        return Rung(self._logits, self._logsumexp, self._argmax, self._full)

    def _keep(self, logits: Logits) -> None:
        self._logits[self._row] = logits[self._ids[self._row]]
        self._logsumexp[self._row] = log_sum_exp(logits)
        self._argmax[self._row] = logits.argmax()
        if self._row in self._whole:
            self._full[self._whole[self._row]] = logits
        self._row += 1


def _as_a_phone(engine: Engine, prompt: GoldenPrompt) -> Iterator[Logits]:
    engine.reset()
    yield engine.prefill(prompt.ids)
    for token in prompt.continuation:
        yield engine.decode(token)
