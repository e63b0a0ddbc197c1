"""PEFT: what every adapter begins with and is saved by, and the loop for what cannot be packed.

In: the frozen model and one user. Out: PEFT's own first factors; or, from `fit_alone`, the trained
ones. `fit_alone` takes any architecture that PEFT takes: padded batches, one user at a time.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Hashable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from cloud.checkpoint import State, copies, resume, save
from cloud.trainer.learner import CLIP_NORM, batches, require_finite, schedule
from cloud.trainer.packing import Example
from protos.errors import UnsupportedError
from protos.progress import Progress

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel

    from cloud.train import TrainConfig

_IGNORED = -100
_KINDS = 16
"""Kinds of adapters whose shapes are remembered."""


@contextmanager
def adapted(model: Any, config: TrainConfig, *, numberless: bool = False) -> Generator[PeftModel]:
    """Within, the model has PEFT's layers, as its seed makes them; afterwards it is as it was.

    numberless: the factors have shapes only, and take no memory.

    Raises:
        UnsupportedError: PEFT cannot adapt this model with these targets.
    """
    from peft import LoraConfig, get_peft_model

    chosen = config.targets
    targets = chosen if chosen == "all-linear" else [name.strip() for name in chosen.split(",")]
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        target_modules=targets,
        lora_dropout=config.dropout,
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(config.seed)
    try:
        peft = cast("PeftModel", get_peft_model(model, lora, low_cpu_mem_usage=numberless))
    except ValueError as error:
        raise UnsupportedError(
            f"targets {chosen!r}: {' '.join(str(error).split())[:300]}"
        ) from None
    try:
        yield peft
    finally:
        cast("Any", peft).unload()


def first_factors(model: Any, config: TrainConfig) -> tuple[dict[str, torch.Tensor], LoraConfig]:
    """What PEFT would begin with, by the names that it saves them under, and its config.

    Raises:
        UnsupportedError: PEFT cannot adapt this model with these targets.
    """
    with adapted(model, config) as peft:
        return factors(peft), cast("LoraConfig", peft.peft_config["default"])


class Beginnings:
    """PEFT's first factors for one user after another: most begin as the one before.

    PEFT takes up to a second to wrap a model, so the last user's factors are kept until `forget`,
    and the shapes of a few kinds of adapters, which are no more than names and numbers.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._shapes: dict[Hashable, tuple[dict[str, torch.Size], LoraConfig]] = {}
        self._last: Hashable = None
        self._tensors: dict[str, torch.Tensor] = {}

    def shapes(self, config: TrainConfig) -> tuple[dict[str, torch.Size], LoraConfig]:
        """The shapes of the factors by PEFT's names, and PEFT's own config.

        Raises:
            UnsupportedError: PEFT cannot adapt this model with these targets.
        """
        kind = (config.rank, config.alpha, config.dropout, config.targets)
        if kind not in self._shapes:
            while len(self._shapes) >= _KINDS:
                del self._shapes[next(iter(self._shapes))]
            with adapted(self._model, config, numberless=True) as peft:
                shapes = {name: tensor.shape for name, tensor in _tensors(peft).items()}
                self._shapes[kind] = shapes, cast("LoraConfig", peft.peft_config["default"])
        return self._shapes[kind]

    def factors(self, config: TrainConfig) -> dict[str, torch.Tensor]:
        """The factors themselves, to be copied, not changed."""
        begin = (config.seed, config.rank, config.alpha, config.dropout, config.targets)
        if begin != self._last:
            self.forget()
            self._tensors, _ = first_factors(self._model, config)
            self._last = begin
        return self._tensors

    def forget(self) -> None:
        """Let go of the last factors."""
        self._last, self._tensors = None, {}


def factors(peft: PeftModel) -> dict[str, torch.Tensor]:
    """The adapter's tensors, by the names that PEFT saves them under."""
    return {name: tensor.detach().cpu().clone() for name, tensor in _tensors(peft).items()}


def _tensors(peft: PeftModel) -> dict[str, torch.Tensor]:
    from peft import get_peft_model_state_dict

    return get_peft_model_state_dict(peft, save_embedding_layers=False)


def fit_alone(
    model: PeftModel,
    rows: Sequence[Example],
    valid: Sequence[Example],
    config: TrainConfig,
    checkpoint: Path,
    progress: Progress,
) -> State:
    """Train until `epochs` or until the validation loss stops falling; keep the best state.

    Raises:
        UnsupportedError: the model cannot compute its activations again, as the config asks.
    """
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(
        parameters.values(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    per_epoch = math.ceil(len(rows) / config.batch_size)
    last = per_epoch * config.epochs
    best = copies(parameters)
    state = resume(checkpoint, parameters, best, optimizer)
    if state is None:
        state = State(0, 0, [{"valid_loss": _loss(model, valid)}])
    while state.step < last and len(state.history) - 1 - state.best_epoch < config.patience:
        epoch = state.step // per_epoch
        train_loss = 0.0
        with _recomputing(model.get_base_model(), config.gradient_checkpointing):
            for batch in batches(rows, config, epoch):
                for group in optimizer.param_groups:
                    group["lr"] = config.learning_rate * schedule(state.step, last, config.warmup)
                loss = _step(model, batch, optimizer, list(parameters.values()))
                require_finite(loss, state.step, config)
                train_loss += loss / per_epoch
                state.step += 1
                progress(f"epoch {epoch + 1}/{config.epochs} loss {loss:.3f}", state.step / last)
        valid_loss = _loss(model, valid)
        require_finite(valid_loss, state.step, config, "validation")
        state.history.append({"train_loss": train_loss, "valid_loss": valid_loss})
        if valid_loss < state.best_loss:
            state.best_epoch = epoch + 1
            best.update(copies(parameters))
        save(checkpoint, state, parameters, best, optimizer)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(best[name])
    return state


@contextmanager
def _recomputing(model: Any, wanted: bool) -> Generator[None]:
    """Within, training steps compute activations again; other users' may not want it."""
    if not wanted:
        yield
        return
    try:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    except ValueError:
        raise UnsupportedError(
            f"{model.config.model_type} cannot compute activations again; leave "
            "--gradient-checkpointing out"
        ) from None
    try:
        yield
    finally:
        model.gradient_checkpointing_disable()


def _step(
    model: PeftModel,
    batch: list[Example],
    optimizer: torch.optim.Optimizer,
    parameters: list[torch.Tensor],
) -> float:
    model.train()
    optimizer.zero_grad(set_to_none=True)
    total, tokens = _losses(model, batch)
    loss = total / tokens
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
    optimizer.step()
    return float(loss.detach())


def _loss(model: PeftModel, rows: Sequence[Example]) -> float:
    """Mean cross-entropy of a completion token, in nats; row by row, as logits are large."""
    model.eval()
    total, tokens = 0.0, 0
    with torch.inference_mode():
        for row in rows:
            row_total, row_tokens = _losses(model, [row])
            total, tokens = total + float(row_total), tokens + row_tokens
    return total / tokens


def _losses(model: PeftModel, batch: Sequence[Example]) -> tuple[torch.Tensor, int]:
    """Summed cross-entropy over the completion tokens of a batch, and their number."""
    length = max(len(row.ids) for row in batch)
    ids = torch.tensor([row.ids + [0] * (length - len(row.ids)) for row in batch])
    mask = torch.tensor([[int(k < len(row.ids)) for k in range(length)] for row in batch])
    labels = torch.full_like(ids, _IGNORED)
    for index, row in enumerate(batch):
        end = len(row.ids)
        labels[index, end - row.completion : end] = ids[index, end - row.completion : end]
    device = model.device
    with torch.autocast(device.type, torch.bfloat16, enabled=model.dtype == torch.bfloat16):
        hidden = model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits
    targets = labels[:, 1:].to(device)
    wanted = targets != _IGNORED
    logits = hidden[:, :-1][wanted].float()
    loss = torch.nn.functional.cross_entropy(logits, targets[wanted], reduction="sum")
    return loss, int(wanted.sum())
