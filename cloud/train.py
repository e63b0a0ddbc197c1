"""Train: LoRA adapters, one for each Dataset, over one frozen Hugging Face causal LM.

In: Datasets and a base model. Out: for each an Adapter: a plain PEFT directory with our manifest
beside it. The loss is over completions only; the newest real items decide when to stop, and which
state stays. Many users are trained together and each as if alone (`cloud/trainer`). A killed run
goes on from its users' last checkpoints and ends with the adapters of an uninterrupted one.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from safetensors import SafetensorError

from cloud.augment import TRAIN_FILE, VALID_FILE
from cloud.profiles import read_rows
from cloud.randomness import seed_problems
from protos.artifacts import (
    Artifact,
    create,
    finished,
    open_artifact,
    read_json,
    refuse_to_replace,
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
from protos.errors import InputError, PocketuneError, without_frames
from protos.progress import Progress, part, silent
from protos.shipped_weights import load_shipped

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from cloud.checkpoint import State
    from cloud.trainer.alone import Beginnings
    from cloud.trainer.learner import Learner
    from cloud.trainer.memory import Budget
    from cloud.trainer.packing import Example

_CHECKPOINT = "checkpoint.safetensors"
MOST_RANK = 256
"""Of a LoRA adapter, here and in the service."""
_LARGEST = 1e30  # beyond it PyTorch's optimizers end in an overflow
_BEST_TOKENS = {"cpu": 2048, "cuda": 32768}
"""Tokens of a row that keep the device busy; longer ones only take memory."""


@dataclass(frozen=True)
class TrainConfig:
    """LoRA (arXiv 2106.09685) and its optimizer, AdamW with linear warm-up and decay.

    targets: "all-linear", or names of projections separated by commas. max_length: tokens of prompt
    and completion; a longer prompt loses its beginning. patience: epochs without a better
    validation loss before it stops. dtype: of the frozen base; the adapter is always float32.
    gradient_checkpointing: compute activations again in the backward pass instead of keeping them.
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
    gradient_checkpointing: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        positive = ("alpha", "learning_rate", "epochs", "batch_size", "patience")
        wrong = [
            f"{name} is {getattr(self, name)}, expected above 0 and at most {_LARGEST:g}"
            for name in positive
            if not 0 < getattr(self, name) <= _LARGEST
        ]
        if not 1 <= self.rank <= MOST_RANK:
            wrong.insert(0, f"rank is {self.rank}, expected 1 to {MOST_RANK}")
        if not 0 <= self.weight_decay <= 1:
            wrong.append(f"weight_decay is {self.weight_decay}, expected 0 to 1")
        for name in ("dropout", "warmup"):
            if not 0 <= getattr(self, name) < 1:
                wrong.append(f"{name} is {getattr(self, name)}, expected 0 to below 1")
        wrong += seed_problems(self.seed)
        if wrong:
            raise InputError("; ".join(wrong))


@dataclass(frozen=True)
class Member:
    """One user of a common training: the dataset, where the adapter goes, and how.

    wanted: asked before each step and each write; once it says no, this user ends with an error and
    its folder may go, the others go on. progress: told how far this user is.
    """

    dataset: Artifact
    out: Path
    config: TrainConfig
    wanted: Callable[[], bool] = lambda: True
    progress: Progress = silent


def train(
    dataset: Artifact,
    base: BaseModel,
    out: Path,
    config: TrainConfig,
    threads: int,
    progress: Progress = silent,
    memory_budget: int | None = None,
    shipped: Artifact | None = None,
) -> Artifact:
    """Train the adapter of one Dataset; an unchanged one is left as it is.

    shipped: a BaseBundle of the base; the adapter is then trained over the weights that a phone
    holds, so that it also makes up for what their quantization changed.

    Raises:
        InputError: the dataset has no usable row, or the loss stopped being a number.
        UnsupportedError: PEFT cannot adapt this model with these targets.
        MismatchError, ArtifactError: `shipped` is of another base, or cannot be read back.
    """
    member = Member(dataset, out, config)
    [made] = train_many([member], base, threads, memory_budget, progress, shipped)
    if isinstance(made, PocketuneError):
        raise made
    return made


def train_many(
    members: Sequence[Member],
    base: BaseModel,
    threads: int,
    memory_budget: int | None = None,
    progress: Progress = silent,
    shipped: Artifact | None = None,
) -> list[Artifact | PocketuneError]:
    """Train the adapters of several users over one base, each as if it were alone.

    memory_budget: bytes beside the model's own; by default four fifths of what is free. Returns
    for each member, in their order, the Adapter or what went wrong with this one; unchanged
    adapters are left as they are. shipped: see `train`.

    Raises:
        InputError: two members would write the same adapter, or the base cannot be read.
        MismatchError, ArtifactError: `shipped` is of another base, or cannot be read back.
    """
    import torch

    _require_distinct(members)
    torch.set_num_threads(threads)
    jobs = [_Job(member, base, shipped) for member in members]
    waiting = [job for job in jobs if job.result is None]
    tokenizer = load_tokenizer(base) if waiting else None
    for job in waiting:
        with job.answering():
            job.read(cast("PreTrainedTokenizerFast", tokenizer))
    waiting = [job for job in waiting if job.result is None]
    done = 0
    for dtype in dict.fromkeys(job.dtype for job in waiting):
        own = [job for job in waiting if job.dtype == dtype]
        share = part(progress, done / len(waiting), (done + len(own)) / len(waiting))
        _train_jobs(own, _frozen_base(base, dtype, shipped), memory_budget, share)
        done += len(own)
    return [cast("Artifact | PocketuneError", job.result) for job in jobs]


def _train_jobs(
    jobs: Sequence[_Job], model: PreTrainedModel, memory_budget: int | None, progress: Progress
) -> None:
    """As many users at a time as the budget holds; then what cannot be packed, one by one."""
    from cloud.trainer.alone import Beginnings
    from cloud.trainer.memory import Budget, free_bytes, rounds

    device = model.device
    free = free_bytes(device)
    available = free if memory_budget is None else memory_budget
    budget = Budget(available, _BEST_TOKENS.get(device.type, _BEST_TOKENS["cpu"]))
    beginnings = Beginnings(model)
    for job in jobs:
        with job.answering():
            job.look(model, beginnings)
            job.require_room(available, free)
    sound = [job for job in jobs if job.result is None]
    together = [job for job in sound if not job.alone_because]
    alone = [[job] for job in sound if job.alone_because]
    done = 0
    for group in [*rounds(together, lambda job: job.state_bytes, budget.for_users), *alone]:
        share = part(progress, done / len(jobs), (done + len(group)) / len(jobs))
        if group[0].alone_because:
            _train_alone(group[0], model, share)
        else:
            _train_together(group, model, beginnings, budget, share)
        done += len(group)


def _train_together(
    jobs: Sequence[_Job],
    model: PreTrainedModel,
    beginnings: Beginnings,
    budget: Budget,
    progress: Progress,
) -> None:
    """One round: each adapter is written as soon as its user is through."""
    from cloud.trainer.fit import fit

    with contextlib.ExitStack() as stack:
        learners: dict[Learner, _Job] = {}
        for job in jobs:
            with job.answering():
                learners[job.learner(model, beginnings, stack)] = job
        beginnings.forget()

        def ended(learner: Learner) -> None:
            job = learners[learner]
            with job.answering():
                if learner.error:
                    raise learner.error
                how = {"trainer": "packed", "users": len(learners)}
                if learner.recomputed:
                    how["recomputed"] = f"{learner.recomputed} sequences, for want of memory"
                if job.exceeds:
                    how["memory"] = job.exceeds
                job.keep(cast("State", learner.state), learner.best(), how)

        if learners:
            progress = _adding(progress, jobs[0].exceeds)
            fit(model, list(learners), budget, progress, ended)


def _train_alone(job: _Job, model: PreTrainedModel, progress: Progress) -> None:
    """One user in PEFT's own way, for what cannot be packed; progress and manifest say why."""
    from cloud.trainer.alone import adapted, factors, fit_alone
    from cloud.trainer.learner import CANCELLED

    def saying(message: str, fraction: float) -> None:
        if not job.member.wanted():
            raise InputError(CANCELLED)
        said = f"{message} (alone with PEFT: {job.alone_because})"
        progress(said, fraction)
        job.member.progress(said, fraction)

    with contextlib.ExitStack() as stack, job.answering():
        checkpoint = job.open_work(stack)
        with adapted(model, job.member.config) as peft:
            state = fit_alone(peft, job.rows, job.valid, job.member.config, checkpoint, saying)
            best = factors(peft)
        job.keep(state, best, {"trainer": f"alone with PEFT: {job.alone_because}"})


class _Job:
    """One member on its way to an answer. result: None as long as there is none."""

    def __init__(self, member: Member, base: BaseModel, shipped: Artifact | None) -> None:
        self.member, self._base = member, base
        self._weights = shipped.config["recipe"] if shipped else "float"
        self.dtype = frozen_dtype(member.config)
        self._parents = {"dataset": member.dataset.id, "base_model": base.digest}
        if shipped:
            self._parents["base_bundle"] = shipped.id
        self._resolved = {
            **asdict(member.config), "dtype": str(self.dtype).removeprefix("torch."),
        }  # fmt: skip
        if contributors := member.dataset.config.get("contributors"):
            self._resolved["contributors"] = contributors
        self._started = time.monotonic()
        self._work = contextlib.ExitStack()
        self.rows: list[Example] = []
        self.valid: list[Example] = []
        self.alone_because: str | None = None
        self.state_bytes = 0
        self.exceeds: str | None = None
        self.result: Artifact | PocketuneError | None = finished(
            member.out, "Adapter", self._parents, self._resolved
        )

    @contextlib.contextmanager
    def answering(self) -> Generator[None]:
        """An error of Pocketune's is this member's answer; its checkpoint stays.

        So is one of the disk where this member is not wanted any more: its folder may be gone.
        """
        from cloud.trainer.learner import CANCELLED

        try:
            yield
        except PocketuneError as error:
            self._end(error)
        except (OSError, SafetensorError):
            if self.member.wanted():
                raise
            self._end(InputError(CANCELLED))

    def _end(self, error: PocketuneError) -> None:
        self.result = error
        self._work.__exit__(type(error), error, error.__traceback__)
        without_frames(error)  # they hold this round's learners

    def read(self, tokenizer: PreTrainedTokenizerFast) -> None:
        """The rows as token ids, if the adapter can be kept."""
        refuse_to_replace(self.member.out, "Adapter")
        dataset = self.member.dataset
        longest = min(self.member.config.max_length, self._base.max_context)
        self.rows, self._truncated = _examples(dataset, TRAIN_FILE, tokenizer, longest)
        self.valid, self._truncated_valid = _examples(dataset, VALID_FILE, tokenizer, longest)
        if not self.rows or not self.valid:
            raise InputError(
                f"{dataset.path}: {len(self.rows)} rows to train on, {len(self.valid)} to check by"
            )

    def look(self, model: PreTrainedModel, beginnings: Beginnings) -> None:
        """What this member's adapter takes, and whether it can be packed with others."""
        from cloud.trainer.fit import unsupported
        from cloud.trainer.learner import layer_of, state_bytes

        shapes, self._lora = beginnings.shapes(self.member.config)
        self.state_bytes = state_bytes(sum(shape.numel() for shape in shapes.values()))
        self.alone_because = unsupported(model, [layer_of(name) for name in shapes])

    def require_room(self, available: int, free: int) -> None:
        """Note a state that exceeds the budget; it is a round of its own.

        Raises:
            InputError: it exceeds what is free, so that the process would be killed for it.
        """
        takes = f"the state of this adapter takes {_gib(self.state_bytes)}"
        if self.state_bytes > free:
            raise InputError(
                f"{takes}, but {_gib(free)} are free beside the model; lower --rank, or adapt "
                "fewer projections (--targets)"
            )
        if self.state_bytes > available:
            self.exceeds = f"{takes}, more than the {_gib(available)} of --memory"

    def open_work(self, stack: contextlib.ExitStack) -> Path:
        """Begin: where the checkpoint is, as long as this member is on its way."""
        self._started = time.monotonic()
        self._work = stack.enter_context(contextlib.ExitStack())
        folder = work_dir(self.member.out, self._parents, self._resolved)
        return self._work.enter_context(folder) / _CHECKPOINT

    def learner(
        self, model: PreTrainedModel, beginnings: Beginnings, stack: contextlib.ExitStack
    ) -> Learner:
        """Begin: this user among others."""
        from cloud.trainer.learner import Learner

        checkpoint = self.open_work(stack)
        member = self.member
        tensors = beginnings.factors(member.config)
        placed = {name: tensor.to(model.device) for name, tensor in tensors.items()}
        progress = _adding(member.progress, self.exceeds)
        return Learner(
            placed, self.rows, self.valid, member.config, checkpoint, member.wanted, progress
        )

    def keep(self, state: State, tensors: dict[str, torch.Tensor], how: dict[str, Any]) -> None:
        """Write the adapter; the checkpoint goes."""
        with create(self.member.out, "Adapter", self._parents, self._resolved) as draft:
            _save_peft(tensors, self._lora, self._base, draft.path)
            draft.measured.update(
                valid_loss_before=state.history[0]["valid_loss"],
                valid_loss_after=state.best_loss,
                train_loss_after=state.history[state.best_epoch]["train_loss"],
                best_epoch=state.best_epoch,
                epochs=len(state.history) - 1,
                steps=state.step,
                rows=len(self.rows),
                truncated=self._truncated,
                truncated_valid=self._truncated_valid,
                weights=self._weights,
                seconds=round(time.monotonic() - self._started, 2),
                **how,
                history=state.history,
            )
        self._work.close()
        self.result = open_artifact(self.member.out, "Adapter")


def _adding(progress: Progress, note: str | None) -> Progress:
    """The same with a note behind each message."""
    return (lambda message, share: progress(f"{message} ({note})", share)) if note else progress


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 30):.3g} GiB"


def _require_distinct(members: Sequence[Member]) -> None:
    """Raise InputError if two members would write the same adapter, by whichever path."""
    places = [os.path.realpath(member.out) for member in members]  # no error for a loop of links
    if twice := sorted({place for place in places if places.count(place) > 1}):
        raise InputError(f"{', '.join(twice)}: asked for twice; give each user a place of its own")


def _frozen_base(base: BaseModel, dtype: torch.dtype, shipped: Artifact | None) -> PreTrainedModel:
    """The model that every adapter is trained over, where it is trained; nothing in it learns."""
    import torch

    loaded = load_shipped(base, shipped, dtype) if shipped else load_model(base, dtype)
    model: Any = loaded.requires_grad_(False)
    return model.to("cuda") if torch.cuda.is_available() else model


def _examples(
    dataset: Artifact, name: str, tokenizer: PreTrainedTokenizerFast, longest: int
) -> tuple[list[Example], int]:
    """The rows of one file as token ids, and how many prompts lost their beginning."""
    from cloud.trainer.packing import Example

    examples: list[Example] = []
    truncated = 0
    for number, row in enumerate(read_rows(dataset.file(name)), 1):
        if not row["completion"].strip():
            raise InputError(
                f"{dataset.file(name)}, line {number}: an empty completion teaches nothing; "
                "remove the item or write its output"
            )
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


def _save_peft(
    tensors: dict[str, torch.Tensor], lora: LoraConfig, base: BaseModel, directory: Path
) -> None:
    """The adapter as PEFT writes it, less its model card, and without a path of this machine."""
    from safetensors.torch import save_file

    lora.base_model_name_or_path = base.name
    lora.inference_mode = True
    lora.save_pretrained(str(directory))
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    config = read_json(directory / "adapter_config.json")
    config["target_modules"] = sorted(config["target_modules"])  # PEFT writes a set, in any order
    write_json(directory / "adapter_config.json", config)


def frozen_dtype(config: TrainConfig) -> torch.dtype:
    """What the frozen base is computed in."""
    import torch

    return compute_dtype() if config.dtype == "auto" else getattr(torch, config.dtype)
