"""The loop: each step takes every user's next batch, in as few forward passes as fit.

In: the frozen model and the users. Out: their best adapters, inside of them. A user's gradients are
normalised by that user's own tokens, so neither the company nor the splitting into rows matters.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from cloud.trainer import attention
from cloud.trainer.learner import CANCELLED, Learner, state_bytes
from cloud.trainer.lora import Routing, hooked
from cloud.trainer.loss import losses
from cloud.trainer.memory import Budget, saved_bytes, scaled_bytes
from cloud.trainer.norm import lean
from cloud.trainer.packing import MULTIPLE, Example, Piece, Row, groups, pack
from protos.errors import InputError
from protos.progress import Progress

FAMILIES = ("gemma3_text", "llama", "phi", "phi3", "qwen2", "qwen3", "smollm3")
_READ_BY_ATTENTION = ("k_proj", "v_proj", "qkv_proj")
_DROPOUTS = ("attention_dropout", "resid_pdrop", "embd_pdrop")


def unsupported(model: Any, layers: Sequence[str]) -> str | None:
    """Why this model or what is to be adapted in it cannot be packed; None if it can."""
    config = model.config
    if config.model_type not in FAMILIES:
        return f"{config.model_type} is none of {', '.join(FAMILIES)}"
    if dropping := [name for name in _DROPOUTS if getattr(config, name, 0)]:
        return f"the base itself asks for dropout ({', '.join(dropping)})"
    if getattr(config, "use_bidirectional_attention", False):
        return "its attention is bidirectional"
    if _changes(config.rope_parameters):
        return "its rotary embedding depends on the longest sequence of a batch"
    head = model.get_output_embeddings()
    for name in layers:
        layer = model.get_submodule(name)
        if not isinstance(layer, torch.nn.Linear) or layer is head:
            return f"{name} is no linear layer inside of the decoder"
    return None


def _changes(rope: dict[str, Any]) -> bool:
    """Whether a row's longest sequence may change the rotary embedding of all.

    Longrope's changes beyond its original length, which no example exceeds (they are cut to
    `BaseModel.max_context`), nor any filler, which is shorter than `MULTIPLE`.
    """
    if rope.get("rope_type") == "longrope":
        return rope["original_max_position_embeddings"] < MULTIPLE
    return "'dynamic'" in str(rope) or "'longrope'" in str(rope)


def fit(
    model: Any,
    learners: Sequence[Learner],
    budget: Budget,
    progress: Progress,
    ended: Callable[[Learner], None],
) -> None:
    """Train all of them until each one's `epochs` or until its validation loss stops falling.

    ended: called for each user as soon as it is through, failed or not wanted any more.
    """
    with _packed(model, learners) as passes:
        passes.plan(budget)
        fresh = [learner for learner in learners if learner.state is None]
        before = passes.evaluate(fresh, lambda learner: learner.valid)
        for learner, loss in zip(fresh, before, strict=True):
            learner.began(loss)
        going = list(learners)
        while going:
            for learner in [each for each in going if not (_is_wanted(each) and each.active)]:
                going.remove(learner)
                ended(learner)
            if not going:
                return
            mean = passes.step(going)
            through = [learner for learner in going if learner.epoch_ended]
            checked = passes.evaluate(through, lambda learner: learner.valid)
            for learner, loss in zip(through, checked, strict=True):
                if _is_wanted(learner):  # else its folder may be gone
                    learner.end_epoch(loss)
            for learner in going:
                learner.progress(_message([learner], learner.loss), _fraction([learner]))
            progress(_message(going, mean), _fraction(learners))


def _is_wanted(learner: Learner) -> bool:
    """Ask for this one; no is its error, and nothing is written for it any more."""
    if not learner.error and not learner.wanted():
        learner.error = InputError(CANCELLED)
    return not learner.error


def _message(going: Sequence[Learner], loss: float) -> str:
    if len(going) > 1:
        return f"{len(going)} users, loss {loss:.3f}"
    learner = going[0]
    step = learner.state.step if learner.state else 0
    epoch = max(0, step - 1) // learner.per_epoch + 1
    return f"epoch {epoch}/{learner.config.epochs} loss {loss:.3f}"


def _fraction(learners: Sequence[Learner]) -> float:
    """Steps taken or not needed any more, of all that there may be."""
    last = sum(learner.last for learner in learners)
    taken = sum(
        learner.state.step if learner.active and learner.state else learner.last
        for learner in learners
    )
    return taken / last


class _Passes:
    """Forward and backward passes over the packed rows of several users."""

    def __init__(self, model: Any, learners: Sequence[Learner], routing: Routing) -> None:
        self._model, self._learners, self._routing = model, learners, routing
        self._decoder, self._head = model.get_decoder(), model.get_output_embeddings()
        self._softcap = getattr(model.config, "final_logit_softcapping", None)
        self._recompute = any(learner.config.gradient_checkpointing for learner in learners)
        self._tokens = 0

    def plan(self, budget: Budget) -> None:
        """How long rows may be, from what the longest sequence would keep."""
        rows = [row for learner in self._learners for row in learner.rows]
        longest = max(len(row.ids) for row in rows)
        states = sum(state_bytes(learner.flat.numel()) for learner in self._learners)
        saved = scaled_bytes(self._saved, longest)
        layer = saved / self._model.config.num_hidden_layers
        transient = saved if self._recompute else 2 * layer
        self._tokens = budget.tokens(states, int((saved + transient) / longest))

    def _saved(self, length: int) -> int:
        """Bytes that a sequence of this length keeps for its backward pass, whosever it is.

        Dropout keeps less: with it, the last layer has no rows of needed tokens beside its input.
        """
        widest = max(self._learners, key=lambda learner: learner.width)
        self._routing.factors = [widest.routed(self._model.dtype, dropping=False)]
        probe = pack([Piece(0, 0, Example([0] * length, length))], self._model.device)
        with self._recomputing(self._recompute):
            return saved_bytes(lambda: self._states(probe), self._model.parameters())

    def step(self, learners: Sequence[Learner]) -> float:
        """One step of each; the mean of their losses."""
        self._routing.factors = [learner.routed(self._model.dtype) for learner in learners]
        pieces = _pieces([learner.next_batch() for learner in learners])
        tokens = _counted(pieces, len(learners), self._model.device)
        found = torch.zeros(len(learners), device=self._model.device)
        for group in groups(pieces, max(1, self._tokens)):
            alone = len(group[0].example.ids) > self._tokens
            if alone:
                learners[group[0].owner].recomputed += 1
            row = pack(group, self._model.device)
            with self._recomputing(alone or self._recompute):
                states = self._states(row)
                own, gradient = losses(
                    self._head, states.detach(), row.targets, self._softcap,
                    1 / tokens[row.owners],
                )  # fmt: skip
                states.backward(gradient)
            found.index_add_(0, row.owners, own)
        means = (found / tokens).tolist()
        for learner, loss in zip(learners, means, strict=True):
            learner.step(loss)
        return sum(means) / len(means)

    def evaluate(
        self, learners: Sequence[Learner], rows: Callable[[Learner], Sequence[Example]]
    ) -> list[float]:
        """Mean cross-entropy of a completion token of each user's rows, in nats."""
        if not learners:
            return []
        dtype = self._model.dtype
        self._routing.factors = [learner.routed(dtype, dropping=False) for learner in learners]
        pieces = _pieces([rows(learner) for learner in learners])
        found = torch.zeros(len(learners), dtype=torch.float64, device=self._model.device)
        with torch.no_grad():
            for group in groups(pieces, max(1, self._tokens)):
                row = pack(group, self._model.device)
                own, _ = losses(self._head, self._states(row), row.targets, self._softcap)
                found.index_add_(0, row.owners, own.double())
        return (found / _counted(pieces, len(learners), found.device)).tolist()

    def _states(self, row: Row) -> torch.Tensor:
        """The decoder's last states where something is predicted, `[positions, hidden]`."""
        self._routing.segments = row.segments
        self._routing.needed, self._routing.needed_segments = row.needed, row.needed_segments
        states = self._decoder(
            input_ids=row.ids, position_ids=row.positions, use_cache=False, lengths=row.lengths
        ).last_hidden_state
        return states[0, row.predicting]

    @contextmanager
    def _recomputing(self, wanted: bool) -> Generator[None]:
        """Within, layers keep their input only and compute the rest again in the backward pass."""
        if not wanted:
            yield
            return
        self._model.gradient_checkpointing_enable({"use_reentrant": False})
        self._model.train()
        try:
            yield
        finally:
            self._model.eval()
            self._model.gradient_checkpointing_disable()


@contextmanager
def _packed(model: Any, learners: Sequence[Learner]) -> Generator[_Passes]:
    """Within, the model reads packed rows and adds the users' adapters."""
    layers = {layer: None for learner in learners for layer in learner.factors}
    routing = Routing(sparse=_sparse(model, layers))
    before = model.config._attn_implementation
    model.set_attn_implementation(attention.register())
    try:
        with hooked(model, layers, routing), lean(model):
            yield _Passes(model, learners, routing)
    finally:
        model.set_attn_implementation(before)


def _sparse(model: Any, layers: Iterable[str]) -> set[str]:
    """Those layers of the last decoder layer that no other token's attention reads."""
    last = set(model.get_decoder().layers[-1].modules())
    return {
        name for name in layers
        if model.get_submodule(name) in last and not name.endswith(_READ_BY_ATTENTION)
    }  # fmt: skip


def _pieces(rows: Sequence[Sequence[Example]]) -> list[Piece]:
    return [
        Piece(owner, number, example)
        for owner, own in enumerate(rows)
        for number, example in enumerate(own)
    ]


def _counted(pieces: Sequence[Piece], owners: int, device: torch.device) -> torch.Tensor:
    """How many tokens of each user are predicted."""
    counts = [0] * owners
    for piece in pieces:
        counts[piece.owner] += min(piece.example.completion, len(piece.example.ids) - 1)
    return torch.tensor(counts, device=device)
