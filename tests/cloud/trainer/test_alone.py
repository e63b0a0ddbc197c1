"""The loop with PEFT, for what cannot be packed: what it takes of memory, at the same result."""

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from cloud.checkpoint import State
from cloud.train import TrainConfig
from cloud.trainer.alone import Beginnings, adapted, factors, first_factors, fit_alone
from protos.errors import InputError, UnsupportedError
from protos.progress import Progress, silent
from tests.cloud.trainer.conftest import (
    FAMILIES,
    User,
    cross_entropy,
    make_model,
    make_user,
    predicted,
    train_with_peft,
)

EPOCHS, BATCHES = 2, 2
Q = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def user(**config: object) -> User:
    return make_user(1, 4, epochs=EPOCHS, batch_size=2, **config)


def trained(
    model: Any, own: User, path: Path, progress: Progress = silent
) -> tuple[dict[str, torch.Tensor], State]:
    with adapted(model, own.config) as peft:
        state = fit_alone(peft, own.rows, own.valid, own.config, path, progress)
        return factors(peft), state


class Interrupted(Exception):
    """Whatever ends a run in the middle of an epoch."""


@pytest.mark.parametrize("step", [1, 3, 4])
def test_interrupted_it_goes_on_from_its_last_epoch_and_ends_the_same(
    tmp_path: Path, step: int
) -> None:
    model, own = make_model("mistral"), user(weight_decay=0.1)
    whole, state = trained(model, own, tmp_path / "whole.safetensors")
    taken: list[float] = []

    def until(_: str, fraction: float) -> None:
        taken.append(fraction)
        if len(taken) == step:
            raise Interrupted

    path = tmp_path / "c.safetensors"
    with pytest.raises(Interrupted):
        trained(model, own, path, until)
    assert path.is_file() == (step > BATCHES)
    again: list[float] = []
    resumed, found = trained(model, own, path, lambda _, fraction: again.append(fraction))
    assert again == ([0.75, 1.0] if step > BATCHES else [0.25, 0.5, 0.75, 1.0])
    assert found == state
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())


def test_it_stops_early_and_keeps_what_it_had_at_its_best(tmp_path: Path) -> None:
    model = make_model("mistral")
    early = make_user(4, 8, batch_size=4, epochs=30, patience=1, learning_rate=3e-2)
    found, state = trained(model, early, tmp_path / "c.safetensors")
    losses = [entry["valid_loss"] for entry in state.history[1:]]
    assert len(losses) == state.best_epoch + 1 < early.config.epochs
    assert losses[state.best_epoch - 1] == min(losses)
    expected = train_with_peft(model, early, state.best_epoch * 2)
    for name, tensor in expected.items():
        assert float((found[name] - tensor).norm() / tensor.norm()) < 1e-4, name


def test_a_loss_that_is_no_number_ends_it_and_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model = make_model("mistral")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    wild = user(learning_rate=1e30)
    with pytest.raises(InputError, match=r"loss is (nan|inf) at step \d+; lower --learning-rate"):
        trained(model, wild, tmp_path / "c.safetensors")
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_activations_are_computed_again_where_it_is_asked_for(tmp_path: Path) -> None:
    model = make_model("mistral")
    runs: list[bool] = []
    mlp = model.model.layers[0].mlp
    mlp.register_forward_pre_hook(lambda layer, _: runs.append(layer.training))
    plain, _ = trained(model, user(), tmp_path / "plain.safetensors")
    assert sum(runs) == EPOCHS * BATCHES
    runs.clear()
    again, _ = trained(model, user(gradient_checkpointing=True), tmp_path / "again.safetensors")
    assert sum(runs) == 2 * EPOCHS * BATCHES
    assert not model.is_gradient_checkpointing
    torch.testing.assert_close(again, plain)


@pytest.mark.parametrize("family", [*FAMILIES, "mistral"])
def test_beginnings_are_those_of_peft(family: str) -> None:
    """The shapes and the factors bit by bit, whoever came before."""
    model = make_model(family)
    weights = {name: (p.data_ptr(), p.requires_grad) for name, p in model.named_parameters()}
    beginnings = Beginnings(model)
    configs = [
        TrainConfig(seed=seed, rank=rank, dropout=(seed - 1) / 10, targets=targets)
        for seed, rank, targets in (
            (1, 4, "all-linear"), (1, 4, "all-linear"), (2, 4, "all-linear"), (2, 8, "all-linear"),
            (2, 8, "o_proj,down_proj" if family != "phi" else "dense,fc2"), (1, 4, "all-linear"),
        )
    ]  # fmt: skip
    for config in configs:
        expected, lora = first_factors(model, config)
        shapes, found_lora = beginnings.shapes(config)
        found = beginnings.factors(config)
        assert found.keys() == expected.keys() == shapes.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
        assert shapes == {name: tensor.shape for name, tensor in expected.items()}
        assert found_lora.to_dict() == lora.to_dict()
    assert weights == {
        name: (p.data_ptr(), p.requires_grad) for name, p in model.named_parameters()
    }


def test_what_beginnings_remember_does_not_grow_with_the_users() -> None:
    model = make_model("llama")
    beginnings = Beginnings(model)
    for rank in range(1, 20):
        beginnings.shapes(TrainConfig(rank=rank, targets="q_proj"))
    assert len(beginnings._shapes) == 16
    kept = weakref.ref(beginnings.factors(TrainConfig(rank=2))[Q])
    assert kept() is not None
    beginnings.factors(TrainConfig(rank=3))
    assert kept() is None
    kept = weakref.ref(beginnings.factors(TrainConfig(rank=2))[Q])
    beginnings.forget()
    assert kept() is None


def test_shapes_take_no_memory() -> None:
    model = make_model("llama")
    with adapted(model, TrainConfig(), numberless=True) as peft:
        made = [p for name, p in peft.named_parameters() if "lora_" in name]
        assert {p.device.type for p in made} == {"meta"}


def test_checking_takes_one_row_at_a_time(tmp_path: Path) -> None:
    model = make_model("mistral")
    own, seen = user(), list[int]()
    before = sum(float(cross_entropy(model, row)) for row in own.valid) / predicted(own.valid)

    def noted(decoder: torch.nn.Module, _: object, given: dict[str, torch.Tensor]) -> None:
        if not decoder.training:
            seen.append(len(given["input_ids"]))

    model.model.register_forward_pre_hook(noted, with_kwargs=True)
    _, state = trained(model, own, tmp_path / "c.safetensors")
    assert seen == [1] * len(own.valid) * (1 + EPOCHS)
    assert state.history[0]["valid_loss"] == pytest.approx(before, rel=1e-5)


def test_a_model_that_cannot_compute_again_is_named(tmp_path: Path) -> None:
    model = make_model("mistral")
    type(model).supports_gradient_checkpointing, kept = False, True
    try:
        with pytest.raises(UnsupportedError, match="mistral cannot compute activations again"):
            trained(model, user(gradient_checkpointing=True), tmp_path / "c.safetensors")
    finally:
        type(model).supports_gradient_checkpointing = kept
