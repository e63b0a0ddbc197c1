"""Running a reference model over the golden prompts: greedy continuations and recorded logits.

Models here are eager PyTorch with transformers' own attention, never the exported wrapper. Prompts
of like length go through together, padded on the right: attention is causal, so padding cannot
reach a token. The head runs over some rows at a time: all logits of a long prompt would take
gigabytes. Legend: N prompts of a group, L its longest, H hidden size, V vocabulary, K kept ids.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from export.families import slides
from protos.golden import TOP, Floats, Ints, NoiseFloor, Operators, Rung, sketch

_MAX_LOGITS = 2**25
"""Logits held at once, 128 MB in float32."""
_COMPARED_AT_ONCE = 2**22
"""Logits that are looked at together: what is computed of them takes several times their memory."""
_ALIKE = (1.5, 32)
_ALIKE_TO_DECODE = (2.0, 128)
"""A step's time hardly depends on how many sequences take it: fewer groups, more padding."""
_OF_ONE_LENGTH = (1.0, 0)
_FULL_ROWS = 8
_NOISE = 1e-6


@dataclass(frozen=True)
class Group:
    """Sequences that run together. ids: [N, L]. real: [N, L], False on padding. rows: the golden's
    row of every real position, in order.
    """

    members: list[int]
    ids: torch.Tensor
    real: torch.Tensor
    rows: torch.Tensor

    @property
    def positions(self) -> torch.Tensor:
        """[N, L]: where in its sequence each token stands, -1 on padding."""
        return torch.where(self.real, torch.arange(self.real.shape[1]), -1)


def whole_rows(lengths: Sequence[int]) -> Ints:
    """The rows of sequences so long, one after the other, that a golden keeps whole."""
    rows = sum(lengths)
    return np.unique(np.linspace(0, rows - 1, _FULL_ROWS).astype(np.int32))


def grouped(
    sequences: Sequence[Sequence[int]], vocab_size: int, spread: tuple[float, int] = _ALIKE
) -> list[Group]:
    """Sequences by length, as many at once as memory and little padding allow.

    spread: (f, n); a group's longest sequence has at most f x its shortest + n ids.
    """
    first_row = np.cumsum([0, *(len(s) for s in sequences)])
    groups: list[list[int]] = []
    for index in sorted(range(len(sequences)), key=lambda i: len(sequences[i])):
        length = len(sequences[index])
        open_group = groups[-1] if groups else []
        padded = (len(open_group) + 1) * length
        shortest = len(sequences[open_group[0]]) if open_group else 0
        alike = bool(open_group) and length <= spread[0] * shortest + spread[1]
        if alike and padded * vocab_size <= _MAX_LOGITS:
            open_group.append(index)
        else:
            groups.append([index])
    return [_group(members, sequences, first_row) for members in groups]


def _group(members: list[int], sequences: Sequence[Sequence[int]], first_row: Any) -> Group:
    longest = max(len(sequences[i]) for i in members)
    ids = torch.zeros((len(members), longest), dtype=torch.long)
    for place, index in enumerate(members):
        ids[place, : len(sequences[index])] = torch.tensor(sequences[index])
    lengths = torch.tensor([len(sequences[i]) for i in members])
    rows = [int(first_row[i]) + t for i in members for t in range(len(sequences[i]))]
    return Group(members, ids, torch.arange(longest) < lengths[:, None], torch.tensor(rows))


@dataclass(frozen=True)
class Reference:
    """A language model, asked in two steps without a cache.

    within: what it runs in, such as PEFT's `disable_adapter`.
    """

    model: nn.Module
    within: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext

    @torch.inference_mode()
    def states(self, ids: torch.Tensor) -> torch.Tensor:
        """What the head is given: ids [N, L] -> [N, L, H]."""
        with self.within():
            return _decoder(self.model)(input_ids=ids, use_cache=False).last_hidden_state

    @torch.inference_mode()
    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """[rows, H] -> [rows, V], float32."""
        with self.within():
            return _said(self.model, states).float()


def _decoder(model: nn.Module) -> nn.Module:
    """All but the head; PEFT's models too hand on what transformers' have."""
    return cast("Any", model).get_decoder()


def _head(model: nn.Module) -> nn.Module:
    return cast("Any", model).get_output_embeddings()


def _said(model: nn.Module, states: torch.Tensor) -> torch.Tensor:
    """Logits [..., V] of states [..., H], capped where the model caps them (Gemma 2's report,
    section 2).
    """
    logits = _head(model)(states)
    cap = getattr(cast("Any", model).config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


@dataclass(frozen=True)
class Continued:
    """What a model goes on with after one prompt. ids: `steps` of them. states: [rows, H], what its
    head is given at each position of prompt and continuation.
    """

    ids: list[int]
    states: torch.Tensor


@torch.inference_mode()
def continuations(
    model: nn.Module, prompts: Sequence[Sequence[int]], steps: int, vocab_size: int
) -> tuple[list[Continued], Operators]:
    """The `steps` most likely ids after each prompt, one by one; an end token does not stop it.

    Also, as in `Rung`, its operators at the whole rows of prompts and continuations.
    """
    found: dict[int, Continued] = {}
    taps = _Taps(model, [len(prompt) + steps for prompt in prompts])
    for group in grouped(prompts, vocab_size, _spread(model, max(map(len, prompts)) + steps)):
        found.update(zip(group.members, _greedy(model, group, steps, taps), strict=True))
    return [found[index] for index in range(len(prompts))], taps.sketches()


def _spread(model: nn.Module, longest: int) -> tuple[float, int]:
    """A window counts places of the cache, padding too; past one, nothing may be padded."""
    config = cast("Any", model).config.to_dict()
    narrow = slides(config) and config["sliding_window"] < longest
    return _OF_ONE_LENGTH if narrow else _ALIKE_TO_DECODE


def _greedy(model: nn.Module, group: Group, steps: int, taps: _Taps) -> list[Continued]:
    """With the cache: new ids stand behind the padding, which the mask hides."""
    lengths, decoder = group.real.sum(1), _decoder(model)
    mask = group.real.long()
    with taps.kept_at(group.members, group.positions):
        output = decoder(input_ids=group.ids, attention_mask=mask, use_cache=True)
    read = output.last_hidden_state
    last, states, tokens = read[torch.arange(len(lengths)), lengths - 1], [read[:, :0]], []
    for step in range(steps):
        tokens.append(_said(model, last).argmax(-1))
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        positions = (lengths + step)[:, None]
        with taps.kept_at(group.members, positions):
            output = decoder(
                input_ids=tokens[-1][:, None],
                attention_mask=mask,
                position_ids=positions,
                past_key_values=output.past_key_values,
                use_cache=True,
            )
        last = output.last_hidden_state[:, -1]
        states.append(output.last_hidden_state)
    after, ids = torch.cat(states, dim=1), torch.stack(tokens, dim=1).tolist()
    return [
        Continued(ids[i], torch.cat([read[i, : lengths[i]], after[i]])) for i in range(len(lengths))
    ]


class Recorder:
    """Runs references over one golden's sequences and keeps what the golden holds of them.

    ids: [rows, K], chosen by `record_float`, which comes first.
    """

    def __init__(self, sequences: Sequence[Sequence[int]], vocab_size: int) -> None:
        self.groups = grouped(sequences, vocab_size)
        self.vocab_size = vocab_size
        self.lengths = [len(sequence) for sequence in sequences]
        self.rows = sum(self.lengths)
        self.full_rows = whole_rows(self.lengths)
        self.ids: Ints = np.zeros((self.rows, min(TOP, vocab_size)), np.int32)

    def record_float(self, references: Sequence[Reference]) -> list[Rung]:
        """The float references (adapter off, and on where there is one), side by side: the ids that
        are kept are those with the highest elementwise maximum of their logits. The operators of
        the last of them are recorded.
        """
        rungs, last = [self._empty() for _ in references], references[-1]
        taps = _Taps(last.model, self.lengths)
        for group in self.groups:
            states = [each.states(group.ids)[group.real] for each in references[:-1]]
            with taps.kept_at(group.members, group.positions):
                states.append(last.states(group.ids)[group.real])
            for rows, *some in self._parts(group, *states):
                logits = [r.logits(each) for r, each in zip(references, some, strict=True)]
                self.ids[rows] = _highest(logits, self.ids.shape[1])
                for rung, values in zip(rungs, logits, strict=True):
                    self._keep(rung, rows, values)
        return [*rungs[:-1], dataclasses.replace(rungs[-1], operators=taps.sketches())]

    def record(self, reference: Reference) -> Rung:
        """What one reference says at the ids chosen before."""
        rung = self._empty()
        for group in self.groups:
            states = reference.states(group.ids)[group.real]
            for rows, some in self._parts(group, states):
                self._keep(rung, rows, reference.logits(some))
        return rung

    def keep(self, reference: Reference, sequences: Sequence[torch.Tensor]) -> Rung:
        """The same where the head's states are there already, [rows of a sequence, H] each."""
        rung = self._empty()
        for group in self.groups:
            states = torch.cat([sequences[i] for i in group.members])
            for rows, some in self._parts(group, states):
                self._keep(rung, rows, reference.logits(some))
        return rung

    def record_with_noise(self, model: nn.Module, seed: int) -> tuple[Rung, NoiseFloor]:
        """A reference, and itself again with its embeddings changed by a relative 1e-6."""
        taps, rung, noisy = _Taps(model, self.lengths), self._empty(), self._empty()
        divergence, largest = np.zeros(self.rows), 0.0
        generator = torch.Generator().manual_seed(seed)
        clean = Reference(model)
        changed = Reference(model, lambda: _perturbed(model, generator))
        for group in self.groups:
            with taps.kept_at(group.members, group.positions):
                states = clean.states(group.ids)[group.real]
            other = changed.states(group.ids)[group.real]
            for rows, *some in self._parts(group, states, other):
                one, another = (clean.logits(each) for each in some)
                self._keep(rung, rows, one)
                self._keep(noisy, rows, another)
                divergence[rows] = _kl(one, another).numpy()
                largest = max(largest, float((one - another).abs().max()))
        return dataclasses.replace(rung, operators=taps.sketches()), NoiseFloor(
            kl_mean=float(divergence.mean()),
            kl_max=float(divergence.max()),
            top1=float((rung.argmax == noisy.argmax).mean()),
            max_abs=largest,
            norm=float(np.linalg.norm((rung.logits - noisy.logits).astype(np.float64))),
        )

    def _parts(self, group: Group, *states: torch.Tensor) -> Iterator[tuple[Any, ...]]:
        """A golden's rows, and the states there, [rows, H] each, as many as have `_MAX_LOGITS`."""
        count = max(1, _MAX_LOGITS // self.vocab_size)
        for rows, *some in zip(*(each.split(count) for each in (group.rows, *states)), strict=True):
            yield rows.numpy(), *some

    def _empty(self) -> Rung:
        return Rung(
            logits=np.zeros(self.ids.shape, np.float32),
            logsumexp=np.zeros(self.rows, np.float32),
            argmax=np.zeros(self.rows, np.int32),
            full=np.zeros((len(self.full_rows), self.vocab_size), np.float32),
        )

    def _keep(self, rung: Rung, rows: Ints, logits: torch.Tensor) -> None:
        kept = torch.from_numpy(self.ids[rows]).long()
        rung.logits[rows] = logits.gather(1, kept).numpy()
        rung.logsumexp[rows] = torch.cat([some.logsumexp(1) for some in _some_rows(logits)]).numpy()
        rung.argmax[rows] = logits.argmax(1).numpy()
        places = np.flatnonzero(np.isin(rows, self.full_rows))
        order = np.searchsorted(self.full_rows, rows[places])
        rung.full[order] = cast("Floats", logits[torch.from_numpy(places)].numpy())


def operators(model: nn.Module) -> dict[str, nn.Module]:
    """A language model's modules with weights of their own, by path: embedding, linear layers and
    norms. One with LoRA around it counts as one, under the path that it has without.
    """

    def below(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
        for name, child in module.named_children():
            inner = f"{path}.{name}" if path else name
            weight = getattr(child, "weight", None)
            if isinstance(weight, torch.Tensor) or hasattr(child, "lora_A"):
                yield inner.removeprefix(_PEFT), child
            else:
                yield from below(child, inner)

    return dict(below(model, ""))


_PEFT = "base_model.model."
"""Where PEFT has the model that it wraps."""


def tokens_first(model: nn.Module, values: torch.Tensor) -> torch.Tensor:
    """What an operator of the model is given or gives, as [N, L, ...]: in Gemma 3 alone, norms
    inside attention have heads before tokens.
    """
    heads_first = values.dim() == 4 and cast("Any", model).config.model_type == "gemma3_text"
    return values.transpose(1, 2) if heads_first else values


class _Taps:
    """What each operator is given and gives at the whole rows, taken from forwards that run anyway;
    the head, which those leave out, is run for these rows.

    A layer's output is what the next is given, the attention's is what its last product is given.
    """

    def __init__(self, model: nn.Module, lengths: Sequence[int]) -> None:
        places = [(sequence, t) for sequence, n in enumerate(lengths) for t in range(n)]
        self._places = [places[row] for row in whole_rows(lengths)]
        self._model, self._operators = model, operators(model)
        self._kept: dict[str, tuple[dict[int, Floats], dict[int, Floats]]] = {}

    def sketches(self) -> Operators:
        """Of all rows, once the forwards have run."""
        return {
            name: np.stack(
                [sketch(np.stack([each[row] for row in sorted(each)])) for each in sides]
            )
            for name, sides in self._kept.items()
        }

    @contextlib.contextmanager
    def kept_at(self, members: Sequence[int], positions: torch.Tensor) -> Generator[None]:
        """Inside the `with`, one forward runs over these sequences' tokens at positions [N, L]."""
        held = [
            (row, members.index(sequence), int(column))
            for row, (sequence, position) in enumerate(self._places)
            if sequence in members
            for column in (positions[members.index(sequence)] == position).nonzero()
        ]
        rows, places = [row for row, *_ in held], tuple(zip(*(at for _, *at in held), strict=True))

        def keep(name: str, *chosen: torch.Tensor) -> None:
            sides = self._kept.setdefault(name, ({}, {}))
            for side, values in zip(sides, chosen, strict=True):
                side.update(zip(rows, values.float().reshape(len(rows), -1).numpy(), strict=True))

        def tap(name: str, _: nn.Module, given: tuple[torch.Tensor], gives: torch.Tensor) -> None:
            keep(name, *(tokens_first(self._model, each)[places] for each in (given[0], gives)))

        def tap_before_head(name: str, _: nn.Module, __: object, output: Any) -> None:
            states = output.last_hidden_state[places]
            keep(name, states, head(states))

        head = _head(self._model)
        with contextlib.ExitStack() as hooks:
            for name, module in self._operators.items() if held else ():
                if module is head:
                    module, hook = _decoder(self._model), tap_before_head
                else:
                    hook = tap
                hooks.enter_context(_hooked(module, functools.partial(hook, name)))
            yield


def _highest(logits: Sequence[torch.Tensor], count: int) -> Ints:
    """The `count` ids of each row where the maximum of several logits [rows, V] is highest."""
    return np.concatenate([
        torch.stack(some).amax(0).topk(count).indices.numpy().astype(np.int32)
        for some in zip(*map(_some_rows, logits), strict=True)
    ])  # fmt: skip


def _some_rows(logits: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Logits [rows, V] in parts that are compared at once."""
    return logits.split(max(1, _COMPARED_AT_ONCE // logits.shape[1]))


def _kl(reference: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Kullback-Leibler divergence of each row's distributions, nats; rounding below zero is cut."""
    found: list[torch.Tensor] = []
    for one, another in zip(_some_rows(reference), _some_rows(other), strict=True):
        log_p, log_q = one.log_softmax(-1), another.log_softmax(-1)
        found.append((log_p.exp() * (log_p - log_q)).sum(-1).double().clamp_min(0.0))
    return torch.cat(found)


def _perturbed(model: nn.Module, generator: torch.Generator) -> AbstractContextManager[None]:
    """Inside the `with`, every embedding is times (1 + 1e-6 x standard normal)."""

    def change(_: nn.Module, __: object, output: torch.Tensor) -> torch.Tensor:
        return output * (1 + _NOISE * torch.randn(output.shape, generator=generator))

    return _hooked(cast("Any", model).get_input_embeddings(), change)


@contextlib.contextmanager
def _hooked(module: nn.Module, hook: Any) -> Generator[None]:
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
