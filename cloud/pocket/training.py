"""The training loop of both pocket models: batches in, a trained causal LM out.

Matrices are trained with Muon, everything else with AdamW; bf16 autocast, on a GPU if there is one
(else AMX on recent x86 helps). A batch carries a loss weight a token: 0 skips it, prompts
count little, outputs fully.
"""

import functools
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn
from torch.nn import functional

LOG_EVERY, SAVE_EVERY = 25, 50
_COMPILED_FROM = 200
"""Steps that repay a minute of compilation: compiled ones take 0.7 of the time."""


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
    """Steps and learning rates: linear warm-up over 5%, then linear decay to zero.

    smoothing: the share of each target that goes to all tokens alike (label smoothing).
    """

    steps: int
    muon_lr: float = 6e-3
    adam_lr: float = 3e-3
    weight_decay: float = 0.05
    smoothing: float = 0.0
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


@dataclass(frozen=True)
class Progress:
    """Where a run stands after `step` steps. loss: a running mean; speed: tokens a second, lately.

    Padding does not count as tokens.
    """

    step: int
    loss: float
    speed: float


def train(
    model: Any,
    batch_of: Callable[[int], Batch],
    schedule: Schedule,
    checkpoint: Path,
    heads: TraitHeads | None = None,
    pause: Callable[[int], bool] = lambda step: False,
) -> Progress:
    """Train in place for `schedule.steps`, or until `pause` says so of the steps done.

    It goes on where `checkpoint` stands, if that is there, and leaves one every `SAVE_EVERY` steps
    and at the end. Batches depend on their number only, so a run in pieces makes the same model.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    modules: dict[str, nn.Module] = {"model": model.to(device)}
    if heads is not None:
        modules["heads"] = heads.to(device)
    optimizers = _optimizers(model, heads, schedule)
    step, loss = _resume(checkpoint, modules, optimizers)
    model.train()
    decoder = _compiled(model.model, device, schedule.steps)
    token_loss = _compiled(
        functools.partial(_token_loss, model.lm_head, schedule.smoothing), device, schedule.steps
    )
    start, seen, speed = time.monotonic(), 0, 0.0
    while step < schedule.steps and not pause(step):
        batch = _on(device, batch_of(step))
        _set_rates(optimizers, schedule, step)
        now, trait_loss = _losses(decoder, token_loss, heads, batch)
        (now + schedule.trait_weight * trait_loss).backward()
        _update(optimizers, model)
        loss = now.item() if step == 0 else 0.95 * loss + 0.05 * now.item()
        seen += int((batch.weights > 0).sum())
        speed = seen / (time.monotonic() - start)
        step += 1
        if step % LOG_EVERY == 0 or step == schedule.steps:
            click.echo(f"step {step} loss {loss:.4f} traits {trait_loss:.4f} {speed:.0f} tok/s")
        if step % SAVE_EVERY == 0:
            _save(checkpoint, modules, optimizers, step, loss)
    _save(checkpoint, modules, optimizers, step, loss)
    model.eval()
    return Progress(step, loss, speed)


def _on(device: torch.device, batch: Batch) -> Batch:
    return Batch(*(getattr(batch, field.name).to(device) for field in fields(batch)))


def _tensors(modules: dict[str, nn.Module]) -> dict[str, Tensor]:
    """All trained tensors by name; tied ones once."""
    return {
        f"{name}.{key}": parameter.detach()
        for name, module in modules.items()
        for key, parameter in module.named_parameters()
    }


def _save(
    path: Path,
    modules: dict[str, nn.Module],
    optimizers: list[torch.optim.Optimizer],
    step: int,
    loss: float,
) -> None:
    """Everything that the run needs to go on, as one file that is replaced at once."""
    from safetensors.torch import save_file

    tensors = _tensors(modules)
    for number, optimizer in enumerate(optimizers):
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"state.{number}.{index}.{key}": value for key, value in state.items()}
    partial = path.with_suffix(".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, partial, metadata={"step": str(step), "loss": repr(loss)})
    partial.rename(path)


def _resume(
    path: Path, modules: dict[str, nn.Module], optimizers: list[torch.optim.Optimizer]
) -> tuple[int, float]:
    """Put a checkpoint's tensors in place; (steps done, running loss), (0, 0) without one."""
    from safetensors import safe_open

    if not path.is_file():
        return 0, 0.0
    states = [dict[int, dict[str, Tensor]]() for _ in optimizers]
    with safe_open(path, "pt") as stored, torch.no_grad():
        for name, tensor in _tensors(modules).items():
            tensor.copy_(stored.get_tensor(name))
        for name in stored.keys():  # noqa: SIM118 (it is no dict)
            if name.startswith("state."):
                _, number, index, key = name.split(".")
                states[int(number)].setdefault(int(index), {})[key] = stored.get_tensor(name)
        metadata = stored.metadata()
    for optimizer, state in zip(optimizers, states, strict=True):
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return int(metadata["step"]), float(metadata["loss"])


def _compiled(part: Any, device: torch.device, steps: int) -> Any:
    """The same, compiled where that pays and a C++ compiler is there.

    steps: of the whole run, so that a run in pieces is not compiled for some of them only.
    """
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if device.type != "cpu" or compiler is None or steps < _COMPILED_FROM:
        return part
    return torch.compile(part, dynamic=True)


def _token_loss(
    head: Any, smoothing: float, states: Tensor, targets: Tensor, weights: Tensor
) -> Tensor:
    """Sum of the weighted cross entropies of states [n, hidden] against token ids [n]."""
    logits = head(states).float()
    losses = functional.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
    return (losses * weights).sum()


def _losses(
    decoder: Any, token_loss: Any, heads: TraitHeads | None, batch: Batch
) -> tuple[Tensor, Tensor]:
    """(weighted next-token loss, loss of the trait heads or 0)."""
    with torch.autocast(batch.ids.device.type, dtype=torch.bfloat16):
        states = decoder(input_ids=batch.ids, use_cache=False).last_hidden_state
        weights = batch.weights[:, 1:].flatten()
        kept = weights.nonzero().squeeze(1)
        targets = batch.ids[:, 1:].flatten()[kept]
        known = states[:, :-1].flatten(0, 1)[kept]
        loss = token_loss(known, targets, weights[kept]) / weights.sum()
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
        matrices,
        lr=schedule.muon_lr,
        weight_decay=schedule.weight_decay,
        adjust_lr_fn="match_rms_adamw",
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
