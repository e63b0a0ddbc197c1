"""The numbers of parity: how far apart two models' logits are, and whether an adapter moves them.

In: rungs, that is logits at the golden's ids, logsumexp and argmax for every row. Out: figures. All
sums are taken in float64. Nothing here knows limits; those are in `gates`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protos.golden import Floats, Golden, GoldenPrompt, Rung

Doubles = NDArray[np.float64]
REST_RESOLUTION = 1e-6
"""A probability below this is lost in the rounding of a float32 logsumexp."""


@dataclass(frozen=True)
class Comparison:
    """A model held against a reference, over `rows` positions.

    max_abs, mean_abs: |logit difference| at the golden's ids. full_max_abs: the same over the whole
    vocabulary, at the rows kept whole. kl_*: nats, KL(reference || model) from the golden's ids and
    one bucket for all others, which is a lower bound of the full KL; kl_full_max is the full KL at
    the rows kept whole. top1: share of rows with the same likeliest token.
    first_divergence: for each prompt the index in its continuation at which the model would have
    chosen another token than the reference, None where it never does. earliest: over all prompts.
    """

    rows: int
    max_abs: float
    mean_abs: float
    full_max_abs: float
    kl_mean: float
    kl_median: float
    kl_p99: float
    kl_max: float
    kl_full_max: float
    top1: float
    first_divergence: dict[str, int | None]
    earliest: int | None


@dataclass(frozen=True)
class Effect:
    """How an adapter moves the logits on a device, held against how it moves them in PEFT.

    Vectors are (adapted - base) logits at the golden's ids over all rows. cosine: between both.
    norm_ratio: device over reference. no_effect: the device's change is within `floor`, the noise
    floor's norm, so it cannot be told from rounding.
    """

    cosine: float
    norm_ratio: float
    device_norm: float
    reference_norm: float
    floor: float
    no_effect: bool


def compare(golden: Golden, reference: Rung, model: Rung) -> Comparison:
    """Hold `model` against `reference`; both hold a row for each of the golden's positions."""
    difference = np.abs(model.logits.astype(np.float64) - reference.logits)
    full = np.abs(model.full.astype(np.float64) - reference.full)
    kl = kl_lower_bound(reference, model)
    divergence = first_divergence(golden.prompts, reference, model)
    return Comparison(
        rows=len(kl),
        max_abs=float(difference.max()),
        mean_abs=float(difference.mean()),
        full_max_abs=float(full.max(initial=0.0)),
        kl_mean=float(kl.mean()),
        kl_median=float(np.median(kl)),
        kl_p99=float(np.percentile(kl, 99)),
        kl_max=float(kl.max()),
        kl_full_max=float(full_kl(reference.full, model.full).max(initial=0.0)),
        top1=float((reference.argmax == model.argmax).mean()),
        first_divergence=divergence,
        earliest=min((at for at in divergence.values() if at is not None), default=None),
    )


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
    device_on: Rung, device_off: Rung, peft_on: Rung, peft_off: Rung, floor: float
) -> Effect:
    """The adapter's effect on a device against its effect in PEFT; `floor` as in `Effect`."""
    device = (device_on.logits.astype(np.float64) - device_off.logits).ravel()
    reference = (peft_on.logits.astype(np.float64) - peft_off.logits).ravel()
    device_norm, reference_norm = float(np.linalg.norm(device)), float(np.linalg.norm(reference))
    product = device_norm * reference_norm
    return Effect(
        cosine=float(device @ reference) / product if product else 0.0,
        norm_ratio=device_norm / reference_norm if reference_norm else 0.0,
        device_norm=device_norm,
        reference_norm=reference_norm,
        floor=floor,
        no_effect=device_norm <= floor,
    )


def log_sum_exp(logits: NDArray[np.float32]) -> float:
    """Logarithm of the sum of exp over a vector of logits [vocab]."""
    highest = float(logits.max())
    return highest + float(np.log(np.exp(logits.astype(np.float64) - highest).sum()))


def _log_softmax(logits: Floats) -> Doubles:
    if not logits.size:
        return np.zeros(logits.shape)
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
