"""The loop with PEFT, for what cannot be packed: what it takes of memory, at the same result."""

from pathlib import Path
from typing import Any

import pytest
import torch

from cloud.checkpoint import State
from cloud.trainer.alone import adapted, factors, fit_alone
from protos.errors import UnsupportedError
from protos.progress import silent
from tests.cloud.trainer.conftest import User, cross_entropy, make_model, make_user, predicted

EPOCHS, BATCHES = 2, 2


def user(**config: object) -> User:
    return make_user(1, 4, epochs=EPOCHS, batch_size=2, **config)


def trained(model: Any, own: User, path: Path) -> tuple[dict[str, torch.Tensor], State]:
    with adapted(model, own.config) as peft:
        state = fit_alone(peft, own.rows, own.valid, own.config, path, silent)
        return factors(peft), state


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
