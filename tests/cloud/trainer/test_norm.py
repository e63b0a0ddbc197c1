"""The lean norms against the models' own, forward and backward."""

import pytest
import torch

from cloud.trainer.norm import lean
from tests.cloud.trainer.conftest import make_model


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lean_norms_give_what_the_models_own_do(family: str, dtype: torch.dtype) -> None:
    model = make_model(family).to(dtype)
    norm = model.model.layers[0].post_attention_layernorm
    torch.manual_seed(0)
    norm.weight.copy_(torch.rand_like(norm.weight) + 0.5)
    x, dy = torch.randn(2, 1, 70, 48).to(dtype)
    x.requires_grad_()
    own = norm(x)
    (expected,) = torch.autograd.grad(own, x, dy)
    with lean(model):
        found = norm(x)
        (gradient,) = torch.autograd.grad(found, x, dy)
    assert type(found.grad_fn).__name__ == "_NormBackward"
    assert type(norm(x).grad_fn).__name__ != "_NormBackward"
    torch.testing.assert_close(found, own)
    torch.testing.assert_close(gradient, expected)


def test_norms_of_another_form_are_left_alone() -> None:
    model = make_model("gemma3_text")
    with lean(model):
        assert not any("forward" in vars(module) for module in model.modules())
