"""Train: a LoRA adapter on one Dataset, over a frozen Hugging Face causal LM.

In: a Dataset and a base model. Out: an Adapter: a plain PEFT directory with our manifest beside it.
The loss is over completions only; the newest real items decide when to stop, and which state stays.
A killed run goes on from its last checkpoint and ends with the adapter of an uninterrupted one.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from cloud.augment import TRAIN_FILE, VALID_FILE
from cloud.checkpoint import State, copies, resume, save
from cloud.profiles import read_rows
from protos.artifacts import (
    Artifact,
    create,
    finished,
    open_artifact,
    read_json,
    work_dir,
    write_json,
)
from protos.base_model import (
    BaseModel,
    completion_ids,
    compute_dtype,
    load_model,
    load_tokenizer,
    prompt_ids,
)
from protos.errors import InputError, UnsupportedError
from protos.progress import Progress, silent

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedTokenizerFast

_CHECKPOINT = "checkpoint.safetensors"
_IGNORED = -100
_CLIP_NORM = 1.0


@dataclass(frozen=True)
class TrainConfig:
    """LoRA (arXiv 2106.09685) and its optimizer, AdamW with linear warm-up and decay.

    targets: "all-linear", or names of projections separated by commas. max_length: tokens of prompt
    and completion; a longer prompt loses its beginning. patience: epochs without a better
    validation loss before it stops. dtype: of the frozen base; the adapter is always float32.
    """

    rank: int = 8
    alpha: int = 16
    targets: str = "all-linear"
    dropout: float = 0.0
    learning_rate: float = 2e-4
    weight_decay: float = 0.0
    warmup: float = 0.1
    epochs: int = 6
    batch_size: int = 8
    patience: int = 2
    max_length: int = 1024
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        positive = ("rank", "alpha", "learning_rate", "epochs", "batch_size", "patience")
        wrong = [
            f"{name} is {getattr(self, name)}, expected above 0"
            for name in positive
            if getattr(self, name) <= 0
        ]
        for name in ("dropout", "warmup"):
            if not 0 <= getattr(self, name) < 1:
                wrong.append(f"{name} is {getattr(self, name)}, expected 0 to below 1")
        if wrong:
            raise InputError("; ".join(wrong))


@dataclass(frozen=True)
class Example:
    """Token ids of prompt and completion, and how many of them, at the end, are completion."""

    ids: list[int]
    completion: int


def train(
    dataset: Artifact,
    base: BaseModel,
    out: Path,
    config: TrainConfig,
    threads: int,
    progress: Progress = silent,
) -> Artifact:
    """Train the adapter of one Dataset; an unchanged one is left as it is.

    Raises:
        InputError: the dataset has no usable row, or the loss stopped being a number.
        UnsupportedError: PEFT cannot adapt this model with these targets.
    """
    import torch

    parents = {"dataset": dataset.id, "base_model": base.digest}
    dtype = _dtype(config)
    resolved = {**asdict(config), "dtype": str(dtype).removeprefix("torch.")}
    if current := finished(out, "Adapter", parents, resolved):
        return current
    started = time.monotonic()
    torch.set_num_threads(threads)
    tokenizer = load_tokenizer(base)
    longest = min(config.max_length, base.max_context)
    rows, truncated = _examples(dataset, TRAIN_FILE, tokenizer, longest)
    valid, _ = _examples(dataset, VALID_FILE, tokenizer, longest)
    if not rows or not valid:
        raise InputError(f"{dataset.path}: {len(rows)} rows to train on, {len(valid)} to check by")
    torch.manual_seed(config.seed)
    model = _adapted(base, config, dtype)
    with work_dir(out, parents, resolved) as work:
        state = _fit(model, rows, valid, config, work / _CHECKPOINT, progress)
        with create(out, "Adapter", parents, resolved) as draft:
            _save_peft(model, base, draft.path)
            draft.measured.update(
                valid_loss_before=state.history[0]["valid_loss"],
                valid_loss_after=state.best_loss,
                train_loss_before=state.history[0]["train_loss"],
                train_loss_after=state.history[state.best_epoch]["train_loss"],
                best_epoch=state.best_epoch,
                epochs=len(state.history) - 1,
                steps=state.step,
                rows=len(rows),
                truncated=truncated,
                seconds=round(time.monotonic() - started, 2),
                history=state.history,
            )
    return open_artifact(out, "Adapter")


def _fit(
    model: PeftModel,
    rows: list[Example],
    valid: list[Example],
    config: TrainConfig,
    checkpoint: Path,
    progress: Progress,
) -> State:
    """Train until `epochs` or until the validation loss stops falling; keep the best state."""
    import torch

    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(
        parameters.values(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    per_epoch = math.ceil(len(rows) / config.batch_size)
    last = per_epoch * config.epochs
    best = copies(parameters)
    state = resume(checkpoint, parameters, best, optimizer)
    if state is None:
        before = {"train_loss": _loss(model, rows), "valid_loss": _loss(model, valid)}
        state = State(0, 0, [before])
    while state.step < last and len(state.history) - 1 - state.best_epoch < config.patience:
        epoch = state.step // per_epoch
        train_loss = 0.0
        for batch in _batches(rows, config, epoch):
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * _schedule(state.step, last, config.warmup)
            loss = _step(model, batch, optimizer, list(parameters.values()))
            if not math.isfinite(loss):
                raise InputError(
                    f"training loss is {loss} at step {state.step}; lower --learning-rate "
                    f"(now {config.learning_rate})"
                )
            train_loss += loss / per_epoch
            state.step += 1
            progress(f"epoch {epoch + 1}/{config.epochs} loss {loss:.3f}", state.step / last)
        valid_loss = _loss(model, valid)
        state.history.append({"train_loss": train_loss, "valid_loss": valid_loss})
        if valid_loss < state.best_loss:
            state.best_epoch = epoch + 1
            best.update(copies(parameters))
        save(checkpoint, state, parameters, best, optimizer)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(best[name])
    return state


def _step(
    model: PeftModel,
    batch: list[Example],
    optimizer: torch.optim.Optimizer,
    parameters: list[torch.Tensor],
) -> float:
    import torch

    model.train()
    optimizer.zero_grad(set_to_none=True)
    total, tokens = _losses(model, batch)
    loss = total / tokens
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, _CLIP_NORM)
    optimizer.step()
    return float(loss.detach())


def _loss(model: PeftModel, rows: list[Example], batch_size: int = 16) -> float:
    """Mean cross-entropy of a completion token, in nats."""
    import torch

    model.eval()
    total, tokens = 0.0, 0
    with torch.inference_mode():
        for start in range(0, len(rows), batch_size):
            batch_total, batch_tokens = _losses(model, rows[start : start + batch_size])
            total, tokens = total + float(batch_total), tokens + batch_tokens
    return total / tokens


def _losses(model: PeftModel, batch: list[Example]) -> tuple[torch.Tensor, int]:
    """Summed cross-entropy over the completion tokens of a batch, and their number."""
    import torch

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


def _batches(rows: list[Example], config: TrainConfig, epoch: int) -> list[list[Example]]:
    """The rows of one epoch in an order that depends on seed and epoch only."""
    import torch

    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
    order = torch.randperm(len(rows), generator=generator).tolist()
    size = config.batch_size
    return [[rows[i] for i in order[s : s + size]] for s in range(0, len(order), size)]


def _schedule(step: int, last: int, warmup: float) -> float:
    """Share of the learning rate: linear up over the warm-up, then linear down to zero."""
    up = max(1, round(last * warmup))
    return (step + 1) / up if step < up else (last - step) / max(1, last - up)


def _examples(
    dataset: Artifact, name: str, tokenizer: PreTrainedTokenizerFast, longest: int
) -> tuple[list[Example], int]:
    """The rows of one file as token ids, and how many prompts lost their beginning."""
    examples: list[Example] = []
    truncated = 0
    for row in read_rows(dataset.file(name)):
        completion = completion_ids(tokenizer, row["completion"])
        prompt = prompt_ids(tokenizer, row["prompt"])
        room = longest - len(completion)
        if room < 1:
            raise InputError(
                f"{dataset.file(name)}: an output of {len(completion)} tokens does not fit "
                f"{longest} tokens; raise --max-length or shorten it"
            )
        truncated += len(prompt) > room
        examples.append(Example(prompt[-room:] + completion, len(completion)))
    return examples, truncated


def _adapted(base: BaseModel, config: TrainConfig, dtype: torch.dtype) -> PeftModel:
    import torch
    from peft import LoraConfig, get_peft_model

    model: Any = load_model(base, dtype)
    if torch.cuda.is_available():
        model = model.to("cuda")
    chosen = config.targets
    targets = chosen if chosen == "all-linear" else [name.strip() for name in chosen.split(",")]
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        target_modules=targets,
        lora_dropout=config.dropout,
        task_type="CAUSAL_LM",
    )
    try:
        return cast("PeftModel", get_peft_model(model, lora))
    except ValueError as error:
        raise UnsupportedError(
            f"targets {chosen!r}: {' '.join(str(error).split())[:300]}"
        ) from None


def _save_peft(model: PeftModel, base: BaseModel, directory: Path) -> None:
    """The adapter as PEFT writes it, less its model card, and without a path of this machine."""
    model.peft_config["default"].base_model_name_or_path = base.name
    model.save_pretrained(str(directory), save_embedding_layers=False)
    (directory / "README.md").unlink(missing_ok=True)
    config = read_json(directory / "adapter_config.json")
    config["target_modules"] = sorted(config["target_modules"])  # PEFT writes a set, in any order
    write_json(directory / "adapter_config.json", config)


def _dtype(config: TrainConfig) -> torch.dtype:
    import torch

    return compute_dtype() if config.dtype == "auto" else getattr(torch, config.dtype)
