"""Every user's adapter is the one that PEFT makes of this user alone, whatever the company."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from cloud.trainer.alone import first_factors
from cloud.trainer.fit import fit, unsupported
from cloud.trainer.learner import Learner, layer_of
from cloud.trainer.memory import Budget
from protos.progress import silent
from tests.cloud.trainer.conftest import (
    FAMILIES,
    User,
    cross_entropy,
    make_model,
    make_user,
    predicted,
    train_with_peft,
)

ROOMY = Budget(1 << 32, 4096)


def users() -> list[User]:
    """Unlike in all that a user may choose; some 20 steps each, ended at different ones."""
    return [
        make_user(0, 9, batch_size=4, epochs=7, rank=4, alpha=8),
        make_user(1, 5, batch_size=2, epochs=7, rank=8, alpha=4, learning_rate=1e-3),
        make_user(2, 10, batch_size=1, epochs=2, rank=2, alpha=2, weight_decay=0.1, warmup=0.3),
    ]


def trained(model, chosen: Sequence[User], work: Path, budget: Budget = ROOMY) -> list[Learner]:
    """All of them by the trainer, together."""
    learners = []
    for number, user in enumerate(chosen):
        tensors, _ = first_factors(model, user.config)
        assert unsupported(model, [layer_of(name) for name in tensors]) is None
        path = work / f"{number}.safetensors"
        learners.append(Learner(tensors, user.rows, user.valid, user.config, path))
    ended: list[Learner] = []
    fit(model, learners, budget, silent, ended.append)
    assert set(ended) == set(learners)
    return learners


def final(learner: Learner) -> dict[str, torch.Tensor]:
    """The adapter after the last step, by PEFT's names."""
    named: dict[str, torch.Tensor] = {}
    for layer, own in learner.factors.items():
        named[f"base_model.model.{layer}.lora_A.weight"] = own.a
        named[f"base_model.model.{layer}.lora_B.weight"] = own.b
    return named


def distance(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """The largest relative difference of a tensor, by its norm."""
    assert found.keys() == expected.keys()
    return max(
        float((found[name] - expected[name]).norm() / expected[name].norm()) for name in expected
    )


def losses_of(learner: Learner) -> list[float]:
    assert learner.state is not None
    assert learner.error is None
    return [entry["valid_loss"] for entry in learner.state.history]


@pytest.mark.parametrize("family", FAMILIES)
def test_each_adapter_is_that_of_peft_training_the_user_alone(family: str, tmp_path: Path) -> None:
    model = make_model(family)
    model.set_attn_implementation("eager")
    together = users()
    for learner, user in zip(trained(model, together, tmp_path), together, strict=True):
        expected = train_with_peft(model, user)
        assert len(user.history) >= 20
        assert distance(final(learner), expected) < 1e-4
        assert max(float(t.norm()) for n, t in expected.items() if "lora_B" in n) > 0.01
        assert learner.state is not None
        per_epoch = learner.per_epoch
        epochs = [user.history[s : s + per_epoch] for s in range(0, len(user.history), per_epoch)]
        found = [entry["train_loss"] for entry in learner.state.history[1:]]
        assert found == pytest.approx([sum(e) / len(e) for e in epochs], rel=1e-4)
