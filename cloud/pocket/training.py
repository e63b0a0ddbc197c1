"""The training loop of both pocket models: batches in, a trained causal LM out.

Matrices are trained with Muon, everything else with AdamW; bf16 autocast (AMX on recent x86), two
threads. A batch carries a loss weight a token: 0 skips it, prompts count little, outputs fully.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import click
import torch
from torch import Tensor, nn
from torch.nn import functional

THREADS = 2


@dataclass(frozen=True)
class Batch:
    """Right-padded token ids [batch, seq]; weights [batch, seq] of predicting each token.

    marks [n, 2] are (row, position) where hidden traits should be known by now; labels [n, heads]
    are their classes (-1: not this task's head). Both are empty for the base.
    """

    ids: Tensor
    weights: Tensor
    marks: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Schedule:
    """Steps and learning rates: linear warm-up over 5%, then linear decay to zero."""

    steps: int
    muon_lr: float = 6e-3
    adam_lr: float = 3e-3
    trait_weight: float = 0.0

    def factor(self, step: int) -> float:
        warm = max(1, self.steps // 20)
        return min((step + 1) / warm, (self.steps - step) / (self.steps - warm))


class TraitHeads(nn.Module):
    """Linear readers of hidden traits, one a trait: they teach the teacher what to notice.

    They see what no reader of the text is told, exist in training only and are then thrown away.
    """

    def __init__(self, hidden: int, classes: list[int]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(hidden, count) for count in classes)

    def forward(self, states: Tensor, labels: Tensor) -> Tensor:
        """Mean cross entropy of states [n, hidden] against labels [n, heads]."""
        losses = [
            functional.cross_entropy(head(states).float(), labels[:, index], ignore_index=-1)
            for index, head in enumerate(self.heads)
        ]
        return torch.stack(losses).nansum() / len(losses)


def train(
    model: Any,
    batches: Iterator[Batch],
    schedule: Schedule,
    heads: TraitHeads | None = None,
    save: Callable[[Any], None] | None = None,
) -> float:
    """Train in place for `schedule.steps`; returns tokens per second (padding not counted).

    `save` gets the model every 100 steps, so that a long run can be looked at before it ends.
    """
    torch.set_num_threads(THREADS)
    optimizers = _optimizers(model, heads, schedule)
    model.train()
    start, seen, running = time.monotonic(), 0, 0.0
    for step in range(schedule.steps):
        batch = next(batches)
        _set_rates(optimizers, schedule, step)
        loss, trait_loss = _losses(model, heads, batch)
        (loss + schedule.trait_weight * trait_loss).backward()
        _update(optimizers, model)
        seen += int((batch.weights > 0).sum())
        running = loss.item() if step == 0 else 0.95 * running + 0.05 * loss.item()
        if step % 25 == 0 or step == schedule.steps - 1:
            speed = seen / (time.monotonic() - start)
            click.echo(f"step {step} loss {running:.4f} traits {trait_loss:.4f} {speed:.0f} tok/s")
        if save is not None and step % 100 == 99:
            save(model)
    model.eval()
    return seen / (time.monotonic() - start)


def _losses(model: Any, heads: TraitHeads | None, batch: Batch) -> tuple[Tensor, Tensor]:
    """(weighted next-token loss, loss of the trait heads or 0)."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        states = model.model(input_ids=batch.ids, use_cache=False).last_hidden_state
        weights = batch.weights[:, 1:].flatten()
        kept = weights.nonzero().squeeze(1)
        logits = model.lm_head(states[:, :-1].flatten(0, 1)[kept])
        targets = batch.ids[:, 1:].flatten()[kept]
        each = functional.cross_entropy(logits.float(), targets, reduction="none")
        loss = (each * weights[kept]).sum() / weights.sum()
        if heads is None:
            return loss, torch.zeros(())
        return loss, heads(states[batch.marks[:, 0], batch.marks[:, 1]], batch.labels)


def _optimizers(
    model: Any, heads: TraitHeads | None, schedule: Schedule
) -> list[torch.optim.Optimizer]:
    named = list(model.named_parameters())
    matrices = [p for name, p in named if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in named if p.ndim != 2 or "embed" in name]
    others += list(heads.parameters()) if heads is not None else []
    muon = torch.optim.Muon(
        matrices, lr=schedule.muon_lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"
    )
    adam = torch.optim.AdamW(
        others, lr=schedule.adam_lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True
    )
    return [muon, adam]


def _set_rates(optimizers: list[torch.optim.Optimizer], schedule: Schedule, step: int) -> None:
    factor = schedule.factor(step)
    for optimizer, rate in zip(optimizers, (schedule.muon_lr, schedule.adam_lr), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate * factor


def _update(optimizers: list[torch.optim.Optimizer], model: Any) -> None:
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
