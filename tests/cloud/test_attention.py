"""Decoding with plain products says what PyTorch's fused kernel says."""

from pathlib import Path

import pytest
import torch

from cloud.attention import NAME, decode_fast, decoding_attention
from protos.base_model import load_model, open_base


@pytest.mark.parametrize("heads", [(4, 2), (4, 4), (6, 1)])
def test_one_token_sees_what_the_fused_kernel_lets_it_see(heads: tuple[int, int]) -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(3, count, length, 16) for count, length in
                         ((heads[0], 1), (heads[1], 9), (heads[1], 9)))  # fmt: skip
    mask = torch.ones(3, 1, 1, 9, dtype=torch.bool)
    mask[0, ..., :4] = False
    mask[1, ..., 2:5] = False
    for seen, scaling in ((mask, None), (None, 0.3)):
        wanted = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=seen, scale=scaling, enable_gqa=True
        ).transpose(1, 2)
        made, _ = decoding_attention(torch.nn.Module(), query, key, value, seen, scaling)
        torch.testing.assert_close(made, wanted)


def test_a_model_writes_the_same_with_it(plain_base: Path) -> None:
    base = open_base(str(plain_base))
    ids = torch.tensor([[0, 0, 0, 5, 6, 7], [9, 8, 7, 6, 5, 4]])
    given = {
        "input_ids": ids, "attention_mask": (ids > 0).long(), "max_new_tokens": 12,
        "do_sample": False, "output_logits": True, "return_dict_in_generate": True,
    }  # fmt: skip
    usual, fast = (load_model(base, torch.float32) for _ in range(2))
    decode_fast(fast)
    assert fast.config._attn_implementation == NAME
    wanted, made = usual.generate(**given), fast.generate(**given)
    assert torch.equal(made.sequences, wanted.sequences)
    for ours, theirs in zip(made.logits, wanted.logits, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_model_of_another_attention_keeps_it(plain_base: Path) -> None:
    model = load_model(open_base(str(plain_base)), torch.float32)
    model.set_attn_implementation("eager")
    decode_fast(model)
    assert model.config._attn_implementation == "eager"
