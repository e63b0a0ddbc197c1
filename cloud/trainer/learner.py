"""One user under training: parameters, optimizer, order of the rows, and when to stop.

In: what PEFT would begin with, and the rows. Everything here depends on this user alone: whoever
else is trained at the same time changes nothing. All factors are views of one flat tensor, so that
clipping and AdamW cost a few calls however many layers there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from cloud.checkpoint import State, resume, save
from cloud.trainer.lora import Factors
from cloud.trainer.packing import Example, Segment
from protos.errors import InputError, PocketuneError, without_frames
from protos.progress import Progress, silent

if TYPE_CHECKING:
    from cloud.train import TrainConfig

CLIP_NORM = 1.0
CANCELLED = "cancelled; run it again to go on from the last epoch"
_PREFIX, _A, _B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"


def always() -> bool:
    """The `wanted` of a user whom nobody cancels."""
    return True


def layer_of(name: str) -> str:
    """The layer of the model that a tensor of PEFT's adapts."""
    return name.removeprefix(_PREFIX).rpartition(".lora_")[0]


def state_bytes(numbers: int) -> int:
    """Memory of a user's parameters, so many, with gradients, both moments and the best state."""
    return 5 * 4 * numbers


class Learner:
    """One user's adapter on its way.

    initial: the factors by PEFT's names (`base_model.model.LAYER.lora_A.weight`: `[rank, in]`,
    `….lora_B.weight`: `[out, rank]`). error: why it ended early; the others go on.
    """

    def __init__(
        self,
        initial: Mapping[str, torch.Tensor],
        rows: Sequence[Example],
        valid: Sequence[Example],
        config: TrainConfig,
        checkpoint: Path,
        wanted: Callable[[], bool] = always,
        progress: Progress = silent,
    ) -> None:
        self.config, self.rows, self.valid = config, rows, valid
        self.wanted, self.checkpoint, self.progress = wanted, checkpoint, progress
        self.error: PocketuneError | None = None
        self.loss = self.train_loss = 0.0
        self.recomputed = 0
        self.shapes = {name: tensor.shape for name, tensor in initial.items()}
        flat = torch.cat([tensor.detach().float().flatten() for tensor in initial.values()])
        self.flat = torch.nn.Parameter(flat)
        self.flat.grad = torch.zeros_like(flat)
        self.optimizer = torch.optim.AdamW(
            [self.flat], lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self._best = {"adapter": flat.clone()}
        self.state = resume(checkpoint, {"adapter": self.flat}, self._best, self.optimizer)

    @property
    def factors(self) -> dict[str, Factors]:
        """The factors as they are trained, by layer."""
        return self.routed(torch.float32)

    @property
    def width(self) -> int:
        """Numbers of A x of all layers together, which each of this user's tokens keeps."""
        return sum(shape[0] for name, shape in self.shapes.items() if name.endswith(_A))

    @property
    def per_epoch(self) -> int:
        """Steps of one pass over the rows."""
        return math.ceil(len(self.rows) / self.config.batch_size)

    @property
    def last(self) -> int:
        """Steps at most."""
        return self.per_epoch * self.config.epochs

    @property
    def active(self) -> bool:
        """Whether there is a step to take."""
        state = self.state
        if self.error or state is None or state.step >= self.last:
            return False
        if state.step % self.per_epoch:
            return True
        return len(state.history) - 1 - state.best_epoch < self.config.patience

    def began(self, valid_loss: float) -> None:
        """The loss before the first step is known."""
        self.state = State(0, 0, [{"valid_loss": valid_loss}])

    def next_batch(self) -> list[Example]:
        """The rows of the next step, in an order that depends on seed and epoch only."""
        assert self.state is not None
        epoch, step = divmod(self.state.step, self.per_epoch)
        return batches(self.rows, self.config, epoch)[step]

    def step(self, loss: float) -> None:
        """Use the gathered gradients. loss: of the batch, mean over its completion tokens."""
        assert self.state is not None
        assert self.flat.grad is not None
        try:
            require_finite(loss, self.state.step, self.config)
        except InputError as error:
            self._failed(error)
            return
        rate = schedule(self.state.step, self.last, self.config.warmup)
        self.optimizer.param_groups[0]["lr"] = self.config.learning_rate * rate
        torch.nn.utils.clip_grad_norm_([self.flat], CLIP_NORM)
        self.optimizer.step()
        self.flat.grad.zero_()
        self.loss = loss
        self.train_loss += loss / self.per_epoch
        self.state.step += 1

    @property
    def epoch_ended(self) -> bool:
        """Whether the losses of an epoch are due."""
        return self.error is None and self.state is not None and not (
            self.state.step % self.per_epoch
        )  # fmt: skip

    def end_epoch(self, valid_loss: float) -> None:
        """Note the losses, keep the best state, write the checkpoint."""
        try:
            self._end_epoch(valid_loss)
        except InputError as error:
            self._failed(error)

    def _failed(self, error: InputError) -> None:
        without_frames(error)  # they hold this learner
        self.error = error

    def _end_epoch(self, valid_loss: float) -> None:
        assert self.state is not None
        state = self.state
        require_finite(valid_loss, state.step, self.config, "validation")
        state.history.append({"train_loss": self.train_loss, "valid_loss": valid_loss})
        self.train_loss = 0.0
        if valid_loss < state.best_loss:
            state.best_epoch = len(state.history) - 1
            self._best["adapter"].copy_(self.flat.detach())
        save(self.checkpoint, state, {"adapter": self.flat}, self._best, self.optimizer)

    def best(self) -> dict[str, torch.Tensor]:
        """The adapter that is kept, by PEFT's names."""
        return {name: view.clone().cpu() for name, view in self._views(self._best["adapter"])}

    def routed(self, dtype: torch.dtype, *, dropping: bool = True) -> dict[str, Factors]:
        """The factors as they are now, by layer, for a base in dtype."""
        assert self.flat.grad is not None
        values = dict(self._views(self.flat.detach().to(dtype)))
        grads = dict(self._views(self.flat.grad))
        scale = self.config.alpha / self.config.rank
        layers = [name.removesuffix(_A) for name in values if name.endswith(_A)]
        drops = dropping and self.config.dropout
        return {
            layer.removeprefix(_PREFIX): Factors(
                values[layer + _A], values[layer + _B], grads[layer + _A], grads[layer + _B], scale,
                partial(self._drop, number) if drops else None,
            )
            for number, layer in enumerate(layers)
        }  # fmt: skip

    def _views(self, flat: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
        parts = flat.split([shape.numel() for shape in self.shapes.values()])
        return [
            (name, part.view(shape))
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        ]

    def _drop(self, layer: int, segment: Segment, width: int) -> torch.Tensor:
        """The mask of the dropout: the same however the batch is split, and when recomputed."""
        assert self.state is not None
        kept = 1 - self.config.dropout
        made: list[torch.Tensor] = []
        for piece in segment.pieces:
            seed = 0
            for part in (self.config.seed, self.state.step, piece.number, layer):
                seed = (seed * 1_000_003 + part) % (1 << 62)
            generator = torch.Generator().manual_seed(seed)
            made.append(torch.rand(len(piece.example.ids), width, generator=generator) < kept)
        masks = torch.cat(made).float() / kept
        filler = segment.stop - segment.start - len(masks)
        return torch.nn.functional.pad(masks, (0, 0, 0, filler)).to(self.flat.device)


def require_finite(loss: float, step: int, config: TrainConfig, which: str = "training") -> None:
    """Raise InputError if a loss is not a number any more."""
    if not math.isfinite(loss):
        raise InputError(
            f"{which} loss is {loss} at step {step}; lower --learning-rate "
            f"(now {config.learning_rate})"
        )


def batches(rows: Sequence[Example], config: TrainConfig, epoch: int) -> list[list[Example]]:
    """The rows of one epoch in an order that depends on seed and epoch only."""
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
    order = torch.randperm(len(rows), generator=generator).tolist()
    size = config.batch_size
    return [[rows[i] for i in order[s : s + size]] for s in range(0, len(order), size)]


def schedule(step: int, last: int, warmup: float) -> float:
    """Share of the learning rate: linear up over the warm-up, then linear down to zero."""
    up = max(1, round(last * warmup))
    return (step + 1) / up if step < up else (last - step) / max(1, last - up)
