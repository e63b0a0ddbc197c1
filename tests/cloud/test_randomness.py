"""Seeds: one range for every stage and for the service."""

from collections.abc import Callable

import pytest
import torch

from cloud.augment import AugmentConfig
from cloud.evaluation.inputs import EvaluateConfig
from cloud.randomness import MOST_SEED
from cloud.service.rules import RULES
from cloud.train import MOST_RANK, TrainConfig
from cloud.trainer.learner import batches
from cloud.trainer.packing import Example
from protos.errors import InputError

CONFIGS = (TrainConfig, AugmentConfig, EvaluateConfig)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("seed", [-1, MOST_SEED + 1, 20_000_000_000_000, 10**40])
def test_a_seed_out_of_range_is_named(config: Callable[..., object], seed: int) -> None:
    with pytest.raises(InputError, match=f"seed is {seed}, expected 0 to 2147483647"):
        config(seed=seed)


@pytest.mark.parametrize("config", CONFIGS)
def test_a_seed_in_range_is_taken(config: Callable[..., object]) -> None:
    assert config(seed=0) != config(seed=MOST_SEED)


def test_the_largest_seed_orders_rows() -> None:
    rows = [Example([number], 1) for number in range(8)]
    [batch] = batches(rows, TrainConfig(seed=MOST_SEED), epoch=10**6)
    assert sorted(row.ids[0] for row in batch) == list(range(8))
    torch.manual_seed(MOST_SEED)


def test_a_rank_out_of_range_is_named() -> None:
    for rank in (0, MOST_RANK + 1, 300_000_000):
        with pytest.raises(InputError, match=f"rank is {rank}, expected 1 to 256"):
            TrainConfig(rank=rank)
    assert TrainConfig(rank=MOST_RANK).rank == 256


def test_the_service_takes_what_the_stages_take() -> None:
    for name in ("AugmentOptions", "TrainOptions"):
        assert (RULES[f"{name}.seed"].least, RULES[f"{name}.seed"].most) == (0, MOST_SEED)
    assert (RULES["TrainOptions.rank"].least, RULES["TrainOptions.rank"].most) == (1, MOST_RANK)
