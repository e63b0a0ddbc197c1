"""The loss: logits only where a completion token follows, a few positions at a time.

In: the decoder's states at those positions. Out: the cross-entropy of each position and the
gradient of their weighted sum, made chunk by chunk, so that `[positions, vocabulary]` never exists
whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

CHUNK_LOGITS = 1 << 23
"""Logits that exist at a time: 32 MB of float32."""


def losses(
    head: torch.nn.Linear,
    hidden: torch.Tensor,
    targets: torch.Tensor,
    softcap: float | None,
    weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Cross-entropy of each position in nats, and the gradient of their sum weighted by `weights`.

    hidden: `[positions, hidden]`; targets, weights: `[positions]`. Returns float32 `[positions]`
    and `[positions, hidden]` in hidden's dtype, None without weights. softcap: the family's bound
    of logits, cap · tanh(logits / cap) (Gemma 2, arXiv 2408.00118, section 2).
    """
    import torch

    step = max(1, CHUNK_LOGITS // head.weight.shape[0])
    found = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
    gradient = None if weights is None else torch.empty_like(hidden)
    with torch.no_grad():
        for start in range(0, len(targets), step):
            own = slice(start, start + step)
            logits = torch.nn.functional.linear(hidden[own], head.weight, head.bias).float()
            if softcap:
                logits = torch.tanh_(logits.div_(softcap)).mul_(softcap)
            slope = 1 - (logits / softcap) ** 2 if softcap and weights is not None else None
            wanted = targets[own, None]
            total = torch.logsumexp(logits, 1, keepdim=True)
            found[own] = (total - logits.gather(1, wanted))[:, 0]
            if weights is None or gradient is None:
                continue
            # d loss / d logits = softmax - one-hot
            change = logits.sub_(total).exp_()
            change.scatter_add_(1, wanted, change.new_full(wanted.shape, -1.0))
            change.mul_(weights[own, None])
            if slope is not None:
                change.mul_(slope)
            gradient[own] = change.to(hidden.dtype) @ head.weight
    return found, gradient
