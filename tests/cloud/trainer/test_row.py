"""Rows of tokens, and the loss over them, against what is worked out by hand or by PyTorch."""

import pytest
import torch

from cloud.trainer.loss import CHUNK_LOGITS, losses
from cloud.trainer.packing import Example, Piece, groups, pack


def test_a_row_holds_users_side_by_side_and_knows_what_is_predicted() -> None:
    pieces = [
        Piece(0, 0, Example([11, 12, 13, 14], 2)),
        Piece(0, 1, Example([21, 22], 2)),  # nothing before the first of its two
        Piece(1, 0, Example([31, 32, 33], 1)),
    ]
    row = pack(pieces, torch.device("cpu"))
    assert row.lengths == (4, 2, 58, 3, 61)
    assert [(s.owner, s.start, s.stop) for s in row.segments] == [(0, 0, 64), (1, 64, 128)]
    assert row.ids[0, :6].tolist() == [11, 12, 13, 14, 21, 22]
    assert row.ids[0, 64:67].tolist() == [31, 32, 33]
    assert row.positions[0, :7].tolist() == [0, 1, 2, 3, 0, 1, 0]
    assert row.predicting.tolist() == [1, 2, 4, 65]
    assert row.targets.tolist() == [13, 14, 22, 33]
    assert row.owners.tolist() == [0, 0, 0, 1]
    assert row.needed[:5].tolist() == [1, 2, 4, 0, 3]
    assert row.needed[64:67].tolist() == [65, 64, 66]
    assert sorted(row.needed.tolist()) == list(range(128))  # each once: gradients meet there
    assert [(s.owner, s.start, s.stop) for s in row.needed_segments] == [(0, 0, 64), (1, 64, 128)]


def test_groups_are_of_like_size_and_a_long_piece_is_alone() -> None:
    sizes = [10, 10, 10, 10, 90]
    pieces = [Piece(n % 2, n, Example([0] * size, 1)) for n, size in enumerate(sizes)]
    made = [[piece.number for piece in group] for group in groups(pieces, 50)]
    assert made == [[0, 2], [4], [1, 3]]
    assert len(groups(pieces, 1000)) == 1


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("biased", [False, True])
def test_losses_and_gradient_are_those_of_pytorch_over_several_chunks(
    softcap: float | None, biased: bool
) -> None:
    torch.manual_seed(0)
    head = torch.nn.Linear(8, 100_000, bias=biased)
    hidden = torch.randn(150, 8, requires_grad=True)
    assert hidden.shape[0] * 100_000 > CHUNK_LOGITS
    targets, weights = torch.randint(100_000, (150,)), torch.rand(150)
    logits = head(hidden)
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    expected = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    (expected * weights).sum().backward()
    found, gradient = losses(head, hidden.detach(), targets, softcap, weights)
    assert hidden.grad is not None
    assert gradient is not None
    torch.testing.assert_close(found, expected.detach())
    torch.testing.assert_close(gradient, hidden.grad, rtol=1e-4, atol=1e-6)
    assert losses(head, hidden.detach(), targets, softcap)[1] is None
