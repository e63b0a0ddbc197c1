"""The numbers of parity: how far apart two models' logits are, and whether an adapter moves them.

In: rungs, that is logits at the golden's ids, logsumexp and argmax for every row, and sketches of
operators. Out: figures, with 95% intervals (see `bootstrap`). All sums are taken in float64.
Nothing here knows limits; those are in `gates`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mobile_runtime.bootstrap import Bootstrap, Interval
from protos.golden import Floats, Golden, GoldenPrompt, Operators, Rung

Doubles = NDArray[np.float64]
SQNR_MOST = 150.0
"""dB; float32 itself resolves less."""
_LEAST_SHARE = 10 ** (-SQNR_MOST / 10)
REST_RESOLUTION = 1e-6
"""A probability below this is lost in the rounding of a float32 logsumexp."""


@dataclass(frozen=True)
class Comparison:
    """A model held against a reference, over `rows` positions.

    max_abs, mean_abs: |logit difference| at the golden's ids. full_max_abs: the same over the whole
    vocabulary, at the rows kept whole, and at all others what the logsumexp shows of it: its change
    is never more than the largest change of a logit.
    kl_*: nats, KL(reference || model) from the golden's ids and one bucket for all others, which is
    a lower bound of the full KL; kl_full_max is the full KL at the rows kept whole. kl_p99,
    kl_p999: the KL that 99% and 99.9% of the rows do not exceed.
    top1: share of rows with the same likeliest token.
    dp_rms: root mean square of how the probability of the token that follows in the golden's text
    changes, over the `truth_rows` rows where the golden kept that token's logit. ppl_ratio:
    perplexity of those tokens, model over reference.
    first_divergence: for each prompt the index in its continuation at which the model would have
    chosen another token than the reference, None where it never does. earliest: over all prompts.
    intervals: figure -> 95% interval.
    """

    rows: int
    max_abs: float
    mean_abs: float
    full_max_abs: float
    kl_mean: float
    kl_median: float
    kl_p99: float
    kl_p999: float
    kl_max: float
    kl_full_max: float
    top1: float
    dp_rms: float
    ppl_ratio: float
    truth_rows: int
    first_divergence: dict[str, int | None]
    earliest: int | None
    intervals: dict[str, Interval]


@dataclass(frozen=True)
class Effect:
    """How an adapter moves the logits on a device, held against how it moves them in PEFT.

    Vectors are (adapted - base) logits at the golden's ids over all rows. cosine: between both.
    norm_ratio: device over reference. no_effect: the device's change is within `floor`, the noise
    floor's norm, so it cannot be told from rounding. intervals: figure -> 95% interval.
    """

    cosine: float
    norm_ratio: float
    device_norm: float
    reference_norm: float
    floor: float
    no_effect: bool
    intervals: dict[str, Interval]


def compare(golden: Golden, reference: Rung, model: Rung) -> Comparison:
    """Hold `model` against `reference`; both hold a row for each of the golden's positions."""
    difference = np.abs(model.logits.astype(np.float64) - reference.logits)
    full = np.abs(model.full.astype(np.float64) - reference.full)
    sums = np.abs(model.logsumexp.astype(np.float64) - reference.logsumexp)
    kl = kl_lower_bound(reference, model)
    truth = _truth(golden, reference, model)
    same = reference.argmax == model.argmax
    divergence = first_divergence(golden.prompts, reference, model)
    quantiles = {name: float(np.quantile(kl, q, method=_METHOD)) for name, q in _QUANTILES.items()}
    return Comparison(
        rows=len(kl),
        max_abs=float(difference.max()),
        mean_abs=float(difference.mean()),
        full_max_abs=float(max(full.max(initial=0.0), sums.max())),
        kl_mean=float(kl.mean()),
        **quantiles,
        kl_full_max=float(full_kl(reference.full, model.full).max(initial=0.0)),
        top1=float(same.mean()),
        dp_rms=truth.dp_rms,
        ppl_ratio=truth.ppl_ratio,
        truth_rows=len(truth.rows),
        first_divergence=divergence,
        earliest=min((at for at in divergence.values() if at is not None), default=None),
        intervals=_intervals(golden, kl, same, truth),
    )


_METHOD = "inverted_cdf"
_QUANTILES = {"kl_median": 0.5, "kl_p99": 0.99, "kl_p999": 0.999, "kl_max": 1.0}


def _intervals(
    golden: Golden, kl: Doubles, same: NDArray[np.bool_], truth: _Truth
) -> dict[str, Interval]:
    draws = Bootstrap([prompt.length for prompt in golden.prompts])
    known = np.zeros(len(kl))
    known[truth.rows] = 1.0
    squares, losses = np.zeros(len(kl)), np.zeros(len(kl))
    squares[truth.rows], losses[truth.rows] = truth.dp**2, truth.losses
    found = {"kl_mean": draws.mean(kl), "top1": draws.mean(same.astype(np.float64))}
    found |= dict(zip(_QUANTILES, draws.quantiles(kl, list(_QUANTILES.values())), strict=True))
    found["dp_rms"] = np.sqrt(draws.mean(squares, known))
    found["ppl_ratio"] = np.exp(draws.mean(losses, known))
    return {name: draws.interval(samples) for name, samples in found.items()}


@dataclass(frozen=True)
class _Truth:
    """What two models give to the tokens that follow in the golden's text.

    rows: those whose next token's logit was kept. dp: change of its probability, [rows]. losses:
    growth of its negative log-probability, nats, [rows].
    """

    rows: NDArray[np.intp]
    dp: Doubles
    losses: Doubles

    @property
    def dp_rms(self) -> float:
        return math.sqrt(float((self.dp**2).mean())) if len(self.rows) else 0.0

    @property
    def ppl_ratio(self) -> float:
        return math.exp(float(self.losses.mean())) if len(self.rows) else 1.0


def _truth(golden: Golden, reference: Rung, model: Rung) -> _Truth:
    """As llama.cpp's perplexity tool defines both: of the token that the text goes on with."""
    following = [t for p in golden.prompts for t in (*(*p.ids, *p.continuation)[1:], -1)]
    rows, places = np.nonzero(golden.ids == np.array(following)[:, None])
    log_p = reference.logits[rows, places].astype(np.float64) - reference.logsumexp[rows]
    log_q = model.logits[rows, places].astype(np.float64) - model.logsumexp[rows]
    return _Truth(rows, np.exp(log_q) - np.exp(log_p), log_p - log_q)


def kl_lower_bound(reference: Rung, model: Rung) -> Doubles:
    """KL(reference || model) of each row [rows], nats: the kept ids, and one bucket for the rest.

    Joining outcomes never enlarges a KL (the log-sum inequality; Cover and Thomas, Elements of
    Information Theory, theorem 2.7.1), so this is a lower bound of the KL over the vocabulary.
    """
    log_p = reference.logits.astype(np.float64) - reference.logsumexp[:, None]
    log_q = model.logits.astype(np.float64) - model.logsumexp[:, None]
    p, q = np.exp(log_p), np.exp(log_q)
    rest_p = np.maximum(1.0 - p.sum(axis=1), REST_RESOLUTION)
    rest_q = np.maximum(1.0 - q.sum(axis=1), REST_RESOLUTION)
    kl = (p * (log_p - log_q)).sum(axis=1) + rest_p * np.log(rest_p / rest_q)
    return np.maximum(kl, 0.0)


def full_kl(reference: Floats, model: Floats) -> Doubles:
    """KL(reference || model) of each row [rows], nats, from logits [rows, vocab]."""
    log_p, log_q = _log_softmax(reference), _log_softmax(model)
    return np.maximum((np.exp(log_p) * (log_p - log_q)).sum(axis=1), 0.0)


def first_divergence(
    prompts: Sequence[GoldenPrompt], reference: Rung, model: Rung
) -> dict[str, int | None]:
    """Prompt name -> index in its continuation of the first other choice, both on the same path."""
    found: dict[str, int | None] = {}
    start = 0
    for prompt in prompts:
        first = start + len(prompt.ids) - 1  # the row that predicts the continuation's first token
        rows = slice(first, first + len(prompt.continuation))
        other = np.flatnonzero(reference.argmax[rows] != model.argmax[rows])
        found[prompt.name] = int(other[0]) if len(other) else None
        start += prompt.length
    return found


def effect(
    golden: Golden, device: tuple[Rung, Rung], peft: tuple[Rung, Rung], floor: float
) -> Effect:
    """The adapter's effect on a device against its effect in PEFT, each (on, off); `floor` as in
    `Effect`.
    """
    moved, reference = (on.logits.astype(np.float64) - off.logits for on, off in (device, peft))
    draws = Bootstrap([prompt.length for prompt in golden.prompts])
    rows = ((moved * reference).sum(1), (moved**2).sum(1), (reference**2).sum(1))
    dot, device_square, reference_square = (float(row.sum()) for row in rows)
    dots, device_squares, reference_squares = (draws.totals(row) for row in rows)
    cosines = _over(dots, np.sqrt(device_squares * reference_squares))
    ratios = np.sqrt(_over(device_squares, reference_squares))
    device_norm, reference_norm = math.sqrt(device_square), math.sqrt(reference_square)
    product = device_norm * reference_norm
    return Effect(
        cosine=dot / product if product else 0.0,
        norm_ratio=device_norm / reference_norm if reference_norm else 0.0,
        device_norm=device_norm,
        reference_norm=reference_norm,
        floor=floor,
        no_effect=device_norm <= floor,
        intervals={"cosine": draws.interval(cosines), "norm_ratio": draws.interval(ratios)},
    )


def _over(numerator: Doubles, denominator: Doubles) -> Doubles:
    """Their quotient, 0 where the denominator is."""
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator != 0)


@dataclass(frozen=True)
class OperatorNoise:
    """What a stage does to its operators, at the rows that a golden keeps whole.

    sqnr: operator -> signal to noise, dB, of what it is given and of what it gives, in the order in
    which they run. worst: where noise rises most, see `rises_most`.
    """

    sqnr: dict[str, tuple[float, float]]
    worst: str


def operator_noise(reference: Operators, model: Operators, floor: float) -> OperatorNoise:
    """Hold the operators of a stage against those of the one before.

    floor: the share of noise that the reference has of itself, see `noise_share`.
    """
    shares = {
        name: (noise_share(one[0], model[name][0]), noise_share(one[1], model[name][1]))
        for name, one in reference.items()
    }
    sqnr = {name: (_decibels(given), _decibels(gives)) for name, (given, gives) in shares.items()}
    return OperatorNoise(sqnr, rises_most(shares, floor))


def noise_share(reference: Floats, model: Floats) -> float:
    """Sum of squares of the error over that of the reference, [rows, n], on average over rows:
    each counts the same, though the first token's numbers can be a thousand times the others'.
    """
    exact = reference.astype(np.float64)
    signal, noise = (exact**2).sum(1), ((exact - model) ** 2).sum(1)
    return float((noise / np.maximum(signal, 1e-300)).mean())


def rises_most(shares: Mapping[str, tuple[float, float]], floor: float) -> str:
    """Where noise rises most: an operator, or `the input of` one, for what stands before it.

    shares: operator -> share of noise in what it is given and in what it gives, in the order in
    which they run. An operator is asked how many times more noise it gives than it is given, and
    its input how many times more it has than anything before: what attention makes of q, k and v is
    the input of o_proj. What is broken stands out of what its stage does to every operator, while
    those behind it only hand its noise on.

    floor: no share counts as less, nor as less than that of the quietest operator from the first
    matrix on: a stage that rounds every matrix makes its first noise from next to none.
    """
    floor = max(
        floor, min((gives for _, gives in list(shares.values())[_BEFORE_MATRICES:]), default=0.0)
    )
    rises: dict[str, float] = {}
    highest = max(floor, _LEAST_SHARE)
    for name, (given, gives) in shares.items():
        rises[f"the input of {name}"] = given / highest
        rises[name] = gives / max(given, floor, _LEAST_SHARE)
        highest = max(highest, given, gives)
    return max(rises, key=lambda place: rises[place])


_BEFORE_MATRICES = 2
"""The embedding and the first norm."""


def _decibels(share: float) -> float:
    return -10 * math.log10(max(share, _LEAST_SHARE))


def log_sum_exp(logits: NDArray[np.float32]) -> float:
    """Logarithm of the sum of exp over a vector of logits [vocab]."""
    highest = float(logits.max())
    return highest + float(np.log(np.exp(logits.astype(np.float64) - highest).sum()))


def _log_softmax(logits: Floats) -> Doubles:
    if not logits.size:
        return np.zeros(logits.shape)
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
