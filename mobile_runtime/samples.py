"""What a page about parity draws: a few points, counts and texts out of many.

In: a golden and what the device said. Out: `Samples`, small enough to keep beside a report. The
texts are the user's: treat them like the golden's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mobile_runtime.compare import Doubles, first_divergence, kl_lower_bound
from mobile_runtime.prompt import Prompt
from protos.golden import Floats, Golden, Rung

POINTS = 300
KL_EDGES = tuple(half / 2 for half in range(-24, 5))
"""Powers of ten, nats; what lies outside counts in the first or the last bin."""
_SEED = 0

Points = list[list[float]]
"""Pairs (reference, device)."""


@dataclass(frozen=True)
class Continuation:
    """A prompt, what the reference goes on with, and where the device would choose otherwise.

    agreed: the text that both begin with. reference, device: how each goes on; the device's is one
    token long, since behind it the two are no longer asked the same. Both are empty where the
    device never chooses otherwise.
    """

    name: str
    asked: str
    agreed: str
    reference: str
    device: str


@dataclass(frozen=True)
class Samples:
    """kl: comparison ("lowering.on") -> rows in each bin of KL_EDGES, one bin fewer than edges."""

    kl: dict[str, list[int]]
    logits: Points
    effect: Points
    texts: list[Continuation]


def histogram(reference: Rung, model: Rung) -> list[int]:
    """How many rows have a KL in each bin."""
    powers = np.log10(np.maximum(kl_lower_bound(reference, model), 1e-300))
    counts, _ = np.histogram(np.clip(powers, KL_EDGES[0], KL_EDGES[-1]), KL_EDGES)
    return [int(count) for count in counts]


def points(reference: Floats | Doubles, model: Floats | Doubles) -> Points:
    """Some pairs of the elements of two arrays of one shape, always the same ones."""
    rng = np.random.default_rng(_SEED)
    chosen = rng.choice(reference.size, min(POINTS, reference.size), replace=False)
    pairs = np.stack([reference.ravel()[chosen], model.ravel()[chosen]], axis=1)
    return [[float(f"{x:.5g}"), float(f"{y:.5g}")] for x, y in pairs.tolist()]


def continuations(
    golden: Golden, reference: Rung, model: Rung, prompt: Prompt
) -> list[Continuation]:
    """Every prompt with both answers, those that differ first."""
    found: list[Continuation] = []
    start = 0
    divergence = first_divergence(golden.prompts, reference, model)
    for each in golden.prompts:
        at = divergence[each.name]
        chosen = None if at is None else int(model.argmax[start + len(each.ids) - 1 + at])
        found.append(
            Continuation(each.name, each.content, *_texts(prompt, each.continuation, at, chosen))
        )
        start += each.length
    return sorted(found, key=lambda text: not text.device)


def _texts(
    prompt: Prompt, continuation: list[int], at: int | None, chosen: int | None
) -> tuple[str, str, str]:
    """What both say, how the reference goes on, and the device's own token."""
    if at is None or chosen is None:
        return prompt.decode(continuation), "", ""
    agreed = prompt.decode(continuation[:at])
    whole, other = prompt.decode(continuation), prompt.decode([*continuation[:at], chosen])
    return agreed, whole[len(agreed) :], other[len(agreed) :] or f"token {chosen}"
