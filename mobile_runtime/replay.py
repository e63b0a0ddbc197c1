"""A golden, replayed on an engine: the device's own rung.

In: prompts and their continuations. Out: the same arrays as a reference's. Each prompt is read
twice: one token at a time from the start, which gives a row for every position, and at once as a
phone does, after which the continuation is decoded (teacher forced). Then prompt and continuation
are read at once, so that no step depends on an earlier one's cache. Where two readings end at the
same position, their difference is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mobile_runtime.compare import full_kl, log_sum_exp
from mobile_runtime.engine import Engine, Logits
from protos.errors import InputError
from protos.golden import Floats, Golden, GoldenPrompt, Ints, Rung
from protos.progress import Progress, silent


@dataclass(frozen=True)
class Agreement:
    """Two readings of the same tokens on one device, at their last position, over all prompts.

    max_abs: of logit differences. kl_mean, kl_max: nats over the whole vocabulary.
    """

    max_abs: float
    kl_mean: float
    kl_max: float


@dataclass(frozen=True)
class Replay:
    """What the device says, and whether it says the same however it is asked.

    prefill_decode: a prompt at once against token by token. cache: prompt and continuation at once
    against the continuation decoded. reset: the first prompt, and again after all others.
    """

    rung: Rung
    prefill_decode: Agreement
    cache: Agreement
    reset: Agreement


def replay(engine: Engine, golden: Golden, progress: Progress = silent) -> Replay:
    """Run every prompt of `golden` on `engine` with the adapter that it has now."""
    recorder = _Recorder(golden, engine.vocab_size)
    readings: list[_Readings] = []
    for number, prompt in enumerate(golden.prompts):
        progress(f"replaying {prompt.name}", number / len(golden.prompts))
        readings.append(recorder.record(engine, prompt))
    again = _at_once(engine, golden.prompts[0].ids)
    return Replay(
        rung=recorder.rung(),
        prefill_decode=_agreement([(r.one_by_one, r.at_once) for r in readings]),
        cache=_agreement([(r.uncached, r.decoded) for r in readings]),
        reset=_agreement([(readings[0].at_once, again)]),
    )


def _agreement(pairs: Sequence[tuple[Logits, Logits]]) -> Agreement:
    kls = [float(full_kl(one[None], other[None])[0]) for one, other in pairs]
    worst = max(float(np.abs(one - other).max()) for one, other in pairs)
    return Agreement(worst, float(np.mean(kls)), max(kls))


@dataclass(frozen=True)
class _Readings:
    """Logits [vocab] after a prompt, read in two ways, and after its continuation, in two ways."""

    one_by_one: Logits
    at_once: Logits
    decoded: Logits
    uncached: Logits


def holds_context(engine: Engine) -> bool:
    """Whether the context can be filled to its end, and one token more is refused."""
    engine.reset()
    try:
        engine.prefill([0] * engine.context_length)
    except InputError:
        return False
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

    def record(self, engine: Engine, prompt: GoldenPrompt) -> _Readings:
        """One prompt's rows."""
        last: Logits | None = None
        engine.reset()
        for token in prompt.ids:
            last = engine.decode(token)
            self._keep(last)
        assert last is not None
        self._row -= 1  # the last position as a phone reads it is the one that counts
        at_once = decoded = _at_once(engine, prompt.ids)
        self._keep(at_once)
        for token in prompt.continuation:
            decoded = engine.decode(token)
            self._keep(decoded)
        uncached = _at_once(engine, [*prompt.ids, *prompt.continuation])
        return _Readings(last, at_once, decoded, uncached)

    def rung(self) -> Rung:
        return Rung(self._logits, self._logsumexp, self._argmax, self._full)

    def _keep(self, logits: Logits) -> None:
        self._logits[self._row] = logits[self._ids[self._row]]
        self._logsumexp[self._row] = log_sum_exp(logits)
        self._argmax[self._row] = logits.argmax()
        if self._row in self._whole:
            self._full[self._whole[self._row]] = logits
        self._row += 1


def _at_once(engine: Engine, ids: Sequence[int]) -> Logits:
    engine.reset()
    return engine.prefill(ids)
