"""Where a training run stands, as one file that is replaced at once.

In: the trained parameters, the best ones so far, the optimizer and the losses. Out: the same, after
a kill. Data order and learning rate depend on seed and step only, so nothing else has to be kept.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protos.artifacts import sync
from protos.errors import InputError

if TYPE_CHECKING:
    import torch

_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass
class State:
    """Where a training run stands, beside the adapter and the optimizer.

    history: the validation loss before training, both losses after each epoch. best_epoch: the one
    whose adapter is kept, 0 before the first has ended. An untrained adapter is never kept, even if
    no epoch beats it: it would load and do nothing; `measured` and the parity report show what the
    kept one does.
    """

    step: int
    best_epoch: int
    history: list[dict[str, float]]

    @property
    def best_loss(self) -> float:
        return self.history[self.best_epoch]["valid_loss"] if self.best_epoch else math.inf


def copies(parameters: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The parameters' values as they are now, by name."""
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}


def save(
    path: Path,
    state: State,
    parameters: dict[str, Any],
    best: dict[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Write everything the run needs to go on, as one file that is replaced at once.

    Raises:
        InputError: this very place cannot be written, for its folder is gone, for example.
        OSError: the disk is full, which is no matter of this run alone.
    """
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in parameters.items():
        tensors[f"now.{name}"] = parameter.detach()
        tensors[f"best.{name}"] = best[name]
        for key, value in optimizer.state[parameter].items():
            tensors[f"{key}.{name}"] = value
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    try:
        _replace(path, contiguous, {"state": json.dumps(asdict(state))})
    except OSError as error:
        if error.errno in _FULL:
            raise
        raise InputError(f"{path}: the checkpoint cannot be written ({error.strerror})") from None


def _replace(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    partial = path.with_suffix(".partial")
    try:
        save_file(tensors, partial, metadata=metadata)
    except SafetensorError as error:  # it wraps the errors of the operating system
        found = re.search(r"os error (\d+)", str(error))
        if found is None:
            raise
        number = int(found[1])
        raise OSError(number, os.strerror(number), str(partial)) from None
    sync(partial)  # else a power cut may leave the name and not the bytes
    partial.rename(path)
    sync(path.parent)


def resume(
    path: Path,
    parameters: dict[str, Any],
    best: dict[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
) -> State | None:
    """Put a checkpoint's tensors in place and return where it stood; None if there is none.

    One that is torn is removed, so that the run begins again.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return None
    try:
        stored = safe_open(path, "pt")
    except SafetensorError:  # its lengths are checked here, before anything is read
        path.unlink()
        return None
    with stored, torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(stored.get_tensor(f"now.{name}"))
            best[name] = stored.get_tensor(f"best.{name}").to(parameter.device)
            optimizer.state[parameter] = {
                key: stored.get_tensor(f"{key}.{name}").to(
                    "cpu" if key == "step" else parameter.device
                )
                for key in ("step", "exp_avg", "exp_avg_sq")
            }
        metadata = stored.metadata()
    return State(**json.loads(metadata["state"]))
