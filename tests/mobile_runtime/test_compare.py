"""The numbers of parity against cases worked by hand, and against the full vocabulary."""

import math

import numpy as np
import pytest

from mobile_runtime.compare import (
    SQNR_MOST,
    compare,
    effect,
    first_divergence,
    full_kl,
    kl_lower_bound,
    log_sum_exp,
    operator_noise,
    rises_most,
)
from protos.golden import SKETCH, Golden, GoldenPrompt, NoiseFloor, Rung

NOISE = NoiseFloor(0.0, 0.0, 1.0, 0.0, 0.5)


def rung(logits: np.ndarray, ids: np.ndarray, full_rows: list[int]) -> Rung:
    lse = np.array([log_sum_exp(row) for row in logits], np.float32)
    kept = np.take_along_axis(logits, ids, axis=1)
    return Rung(kept, lse, logits.argmax(1).astype(np.int32), logits[full_rows])


def probabilities(*rows: list[float]) -> np.ndarray:
    return np.log(np.array(rows, np.float64)).astype(np.float32)


def test_kl_of_kept_ids_and_one_bucket_is_as_worked_by_hand() -> None:
    ids = np.array([[0, 1]], np.int32)
    reference = rung(probabilities([0.5, 0.25, 0.125, 0.125]), ids, [0])
    model = rung(probabilities([0.25, 0.25, 0.25, 0.25]), ids, [0])
    # 1/2 log 2 + 1/4 log 1 + rest 1/4 log(1/4 : 1/2) = 1/4 log 2; whole vocabulary: also 1/4 log 2
    assert kl_lower_bound(reference, model)[0] == pytest.approx(0.25 * math.log(2), rel=1e-5)
    assert full_kl(reference.full, model.full)[0] == pytest.approx(0.25 * math.log(2), rel=1e-5)


def test_the_bucket_only_ever_loses() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (200, 50)).astype(np.float32)
    other = (logits + rng.normal(0, 0.5, logits.shape)).astype(np.float32)
    ids = np.argsort(-logits, axis=1)[:, :8].astype(np.int32)
    rows = list(range(200))
    reference, model = rung(logits, ids, rows), rung(other, ids, rows)
    bound, whole = kl_lower_bound(reference, model), full_kl(logits, other)
    assert (bound <= whole + 1e-5).all()
    assert bound.mean() > 0.5 * whole.mean()


def test_a_common_shift_of_logits_changes_no_kl() -> None:
    ids = np.array([[0, 2]], np.int32)
    logits = probabilities([0.5, 0.2, 0.2, 0.1])
    shifted = (logits + 3).astype(np.float32)
    assert kl_lower_bound(rung(logits, ids, []), rung(shifted, ids, []))[0] < 1e-6


def test_all_figures_of_a_comparison() -> None:
    ids = np.array([[0, 1], [0, 1], [0, 1]], np.int32)
    reference = np.array([[2, 1, 0], [2, 1, 0], [2, 1, 0]], np.float32)
    model = np.array([[2, 1, 0], [1, 2, 4], [2.5, 1, 0]], np.float32)
    prompt = GoldenPrompt("p", "x", "x", [7], [0, 0])
    golden = Golden([prompt], ids, np.array([1], np.int32), {}, NOISE, {}, 0, {})
    found = compare(golden, rung(reference, ids, [1]), rung(model, ids, [1]))
    assert (found.rows, found.max_abs, found.full_max_abs) == (3, 1.0, 4.0)
    assert found.mean_abs == pytest.approx(2.5 / 6)
    assert found.top1 == pytest.approx(2 / 3)
    assert found.first_divergence == {"p": 1}
    assert found.earliest == 1
    assert found.kl_full_max == pytest.approx(full_kl(reference[1:2], model[1:2])[0])
    assert 0 < found.kl_median <= found.kl_p99 <= found.kl_p999 <= found.kl_max


def test_the_probability_of_the_tokens_that_follow_is_as_worked_by_hand() -> None:
    ids = np.array([[0, 1], [0, 1], [0, 1]], np.int32)
    reference = probabilities([0.5, 0.25, 0.25], [0.4, 0.4, 0.2], [0.1, 0.1, 0.8])
    model = probabilities([0.25, 0.5, 0.25], [0.2, 0.6, 0.2], [0.1, 0.1, 0.8])
    # after row 0 comes token 1: 0.25 -> 0.5; after row 1 token 0: 0.4 -> 0.2; after row 2 nothing
    golden = Golden([GoldenPrompt("p", "", "", [9, 1], [0])], ids, np.zeros(0, np.int32), {},
                    NOISE, {}, 0, {})  # fmt: skip
    found = compare(golden, rung(reference, ids, []), rung(model, ids, []))
    assert found.truth_rows == 2
    assert found.dp_rms == pytest.approx(math.sqrt((0.25**2 + 0.2**2) / 2), rel=1e-5)
    # perplexities: (4 x 2.5)^(1/2) and (2 x 5)^(1/2), so their ratio is 1
    assert found.ppl_ratio == pytest.approx(1.0, rel=1e-5)
    doubled = probabilities([0.5, 0.125, 0.375], [0.2, 0.6, 0.2], [0.1, 0.1, 0.8])
    assert compare(golden, rung(reference, ids, []), rung(doubled, ids, [])).ppl_ratio == (
        pytest.approx(2.0, rel=1e-5)
    )


def test_a_token_whose_logit_was_not_kept_counts_in_no_probability() -> None:
    ids = np.array([[0], [0]], np.int32)
    logits = probabilities([0.5, 0.5], [0.5, 0.5])
    golden = Golden([GoldenPrompt("p", "", "", [1, 1], [])], ids, np.zeros(0, np.int32), {},
                    NOISE, {}, 0, {})  # fmt: skip
    found = compare(golden, rung(logits, ids, []), rung(logits[::-1], ids, []))
    assert (found.truth_rows, found.dp_rms, found.ppl_ratio) == (0, 0.0, 1.0)


def test_divergence_is_counted_where_the_continuation_is_chosen() -> None:
    prompts = [GoldenPrompt("a", "", "", [1, 1, 1], [1, 1]), GoldenPrompt("b", "", "", [1], [1])]

    def chosen(*argmax: int) -> Rung:
        rows = len(argmax)
        empty = np.zeros((rows, 1), np.float32)
        return Rung(empty, empty[:, 0], np.array(argmax, np.int32), empty[:0])

    reference = chosen(0, 0, 0, 0, 0, 0, 0)
    # rows 0-1 lie inside a's prompt, row 4 follows its last token: neither chooses a token of it
    assert first_divergence(prompts, reference, chosen(9, 9, 0, 0, 9, 0, 9)) == {
        "a": None,
        "b": None,
    }
    assert first_divergence(prompts, reference, chosen(0, 0, 9, 0, 0, 9, 0)) == {"a": 0, "b": 0}
    assert first_divergence(prompts, reference, chosen(0, 0, 0, 9, 0, 0, 0)) == {"a": 1, "b": None}


ONE_ROW = Golden(
    [GoldenPrompt("p", "", "", [1], [])], np.zeros((1, 2), np.int32), np.zeros(0, np.int32),
    {}, NOISE, {}, 0, {},
)  # fmt: skip


def vector(*logits: float) -> Rung:
    row = np.array([logits], np.float32)
    return Rung(row, np.zeros(1, np.float32), np.zeros(1, np.int32), row)


@pytest.mark.parametrize(
    ("on", "cosine", "ratio", "no_effect"),
    [
        ((3.0, 4.0), 1.0, 1.0, False),
        ((6.0, 8.0), 1.0, 2.0, False),
        ((-3.0, -4.0), -1.0, 1.0, False),
        ((-4.0, 3.0), 0.0, 1.0, False),
        ((0.15, 0.2), 1.0, 0.05, True),
        ((0.0, 0.0), 0.0, 0.0, True),
    ],
)
def test_effect_is_as_worked_by_hand(on, cosine, ratio, no_effect) -> None:
    zero = vector(0.0, 0.0)
    found = effect(ONE_ROW, (vector(*on), zero), (vector(3.0, 4.0), zero), floor=0.5)
    assert found.cosine == pytest.approx(cosine, abs=1e-7)
    assert found.norm_ratio == pytest.approx(ratio)
    assert found.no_effect is no_effect


def sketched(*rows: list[float]) -> np.ndarray:
    return np.pad(np.array(rows, np.float32), ((0, 0), (0, SKETCH - len(rows[0]))))


def test_noise_of_operators_is_as_worked_by_hand() -> None:
    x, y, z = sketched([3.0, 4.0], [6.0, 8.0]), sketched([1.0, 0.0]), sketched([2.0, 0.0])
    reference = {"norm": np.stack([x, x]), "up": np.stack([y, z]), "down": np.stack([z, z])}
    model = {
        "norm": np.stack([x, sketched([3.0, 4.0], [6.0, 7.0])]),  # 0 and 1/100, on average 1/200
        "up": np.stack([y, sketched([2.2, 0.0])]),  # 0.04 to 4, 20 dB
        "down": np.stack([z, z]),
    }
    found = operator_noise(reference, model, floor=1e-6)
    sqnr = {name: pytest.approx(pair, abs=1e-3) for name, pair in found.sqnr.items()}
    assert sqnr == {
        "norm": (SQNR_MOST, 10 * math.log10(200)),
        "up": (SQNR_MOST, 20.0),
        "down": (SQNR_MOST, SQNR_MOST),
    }
    assert found.worst == "up"


QUIET = {"embedding": (0.0, 1e-8), "norm": (1e-8, 1e-8), "k": (1e-8, 1e-8)}
ROUNDED = {"embedding": (0.0, 1e-5), "norm": (1e-5, 1e-5), "k": (1e-5, 1e-2)}
RISES = {
    "an operator": (QUIET | {"o": (3e-6, 4e-3), "up": (2e-3, 9e-3)}, "o"),
    "one whose noise others amplify": (QUIET | {"q": (1e-8, 1e-3), "o": (0.02, 0.05)}, "q"),
    "what stands before one": (QUIET | {"o": (1e-2, 2e-2)}, "the input of o"),
    "noise below the floor is none": (QUIET | {"q": (1e-15, 1e-7), "up": (1e-7, 1e-3)}, "up"),
    "the embedding": ({"embedding": (0.0, 0.5), "norm": (0.5, 0.5), "k": (0.5, 0.4)}, "embedding"),
    "one of many that round": (ROUNDED | {"up": (0.02, 1.0), "down": (0.9, 0.9)}, "up"),
}


@pytest.mark.parametrize(("shares", "worst"), RISES.values(), ids=RISES)
def test_noise_rises_most_where_it_is_made(shares, worst) -> None:
    assert rises_most(shares, floor=1e-6) == worst


def test_an_adapter_that_does_nothing_in_peft_has_no_direction() -> None:
    zero = vector(0.0, 0.0)
    found = effect(ONE_ROW, (zero, zero), (zero, zero), floor=0.5)
    assert (found.cosine, found.norm_ratio, found.no_effect) == (0.0, 0.0, True)
