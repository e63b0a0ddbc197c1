"""Running a reference model over the golden prompts: greedy continuations and recorded logits.

Models here are eager PyTorch with transformers' own attention, never the exported wrapper. Prompts
of like length go through together, padded on the right: attention is causal, so padding cannot
reach a token. Legend: N prompts of a group, L its longest, V vocabulary, K kept ids.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from export.families import slides
from protos.golden import TOP, Floats, Ints, NoiseFloor, Operators, Rung, sketch

Forward = Callable[[torch.Tensor], torch.Tensor]
"""ids [N, L] -> logits [N, L, V]."""
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


def forward_of(model: nn.Module) -> Forward:
    """A model's logits without a cache."""
    return lambda ids: model(input_ids=ids, use_cache=False).logits


@dataclass(frozen=True)
class Continued:
    """What a model goes on with after one prompt. ids: `steps` of them. logits: [rows, V], what it
    says after each position of prompt and continuation; [0, V] where they were not asked for.
    """

    ids: list[int]
    logits: torch.Tensor


@torch.inference_mode()
def continuations(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    steps: int,
    vocab_size: int,
    *,
    logits: bool = True,
) -> tuple[list[Continued], Operators]:
    """The `steps` most likely ids after each prompt, one by one; an end token does not stop it.

    Also, as in `Rung`, its operators at the whole rows of prompts and continuations.
    logits: keep them, which takes a gigabyte for a vocabulary of 150,000.
    """
    found: dict[int, Continued] = {}
    taps = _Taps(model, [len(prompt) + steps for prompt in prompts])
    for group in grouped(prompts, vocab_size, _spread(model, max(map(len, prompts)) + steps)):
        found.update(zip(group.members, _greedy(model, group, steps, taps, logits), strict=True))
    return [found[index] for index in range(len(prompts))], taps.sketches()


def _spread(model: nn.Module, longest: int) -> tuple[float, int]:
    """A window counts places of the cache, padding too; past one, nothing may be padded."""
    config = cast("Any", model).config.to_dict()
    narrow = slides(config) and config["sliding_window"] < longest
    return _OF_ONE_LENGTH if narrow else _ALIKE_TO_DECODE


def _greedy(
    model: nn.Module, group: Group, steps: int, taps: _Taps, logits: bool
) -> list[Continued]:
    """With the cache: new ids stand behind the padding, which the mask hides."""
    lengths = group.real.sum(1)
    mask = group.real.long()
    with taps.kept_at(group.members, group.positions):
        output = model(input_ids=group.ids, attention_mask=mask, use_cache=True)
    read = output.logits
    last, said, tokens = read[torch.arange(len(lengths)), lengths - 1], [read[:, :0]], []
    for step in range(steps):
        tokens.append(last.argmax(-1))
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        positions = (lengths + step)[:, None]
        with taps.kept_at(group.members, positions):
            output = model(
                input_ids=tokens[-1][:, None],
                attention_mask=mask,
                position_ids=positions,
                past_key_values=output.past_key_values,
                use_cache=True,
            )
        last = output.logits[:, -1]
        if logits:
            said.append(output.logits)
    after, ids = torch.cat(said, dim=1), torch.stack(tokens, dim=1).tolist()
    rows = lengths if logits else torch.zeros_like(lengths)
    return [
        Continued(ids[i], torch.cat([read[i, : rows[i]], after[i]]).float())
        for i in range(len(lengths))
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

    @torch.inference_mode()
    def record_float(self, references: Sequence[Forward], model: nn.Module) -> list[Rung]:
        """The float references (adapter off, and on where there is one), side by side: the ids that
        are kept are those with the highest elementwise maximum of their logits. All run `model`,
        whose operators are recorded for the last of them.
        """
        rungs = [self._empty() for _ in references]
        taps = _Taps(model, self.lengths)
        for group in self.groups:
            logits = [self._rows(forward, group) for forward in references[:-1]]
            with taps.kept_at(group.members, group.positions):
                logits.append(self._rows(references[-1], group))
            highest = [
                torch.stack(some).amax(0).topk(self.ids.shape[1]).indices
                for some in zip(*map(_some_rows, logits), strict=True)
            ]
            self.ids[group.rows.numpy()] = torch.cat(highest).numpy()
            for rung, values in zip(rungs, logits, strict=True):
                self._keep(rung, group, values)
        return [*rungs[:-1], dataclasses.replace(rungs[-1], operators=taps.sketches())]

    @torch.inference_mode()
    def record(self, forward: Forward) -> Rung:
        """What one reference says at the ids chosen before."""
        rung = self._empty()
        for group in self.groups:
            self._keep(rung, group, self._rows(forward, group))
        return rung

    def keep(self, sequences: Sequence[torch.Tensor]) -> Rung:
        """The same of logits that are there already, [rows of a sequence, V] each."""
        rung = self._empty()
        for group in self.groups:
            self._keep(rung, group, torch.cat([sequences[i] for i in group.members]))
        return rung

    @torch.inference_mode()
    def record_with_noise(self, model: nn.Module, seed: int) -> tuple[Rung, NoiseFloor]:
        """A reference, and itself again with its embeddings changed by a relative 1e-6."""
        taps, rung, noisy = _Taps(model, self.lengths), self._empty(), self._empty()
        divergence, largest = np.zeros(self.rows), 0.0
        generator = torch.Generator().manual_seed(seed)
        for group in self.groups:
            with taps.kept_at(group.members, group.positions):
                clean = self._rows(forward_of(model), group)
            changed = self._rows(_perturbed(model, generator), group)
            self._keep(rung, group, clean)
            self._keep(noisy, group, changed)
            divergence[group.rows.numpy()] = _kl(clean, changed).numpy()
            largest = max(largest, float((clean - changed).abs().max()))
        return dataclasses.replace(rung, operators=taps.sketches()), NoiseFloor(
            kl_mean=float(divergence.mean()),
            kl_max=float(divergence.max()),
            top1=float((rung.argmax == noisy.argmax).mean()),
            max_abs=largest,
            norm=float(np.linalg.norm((rung.logits - noisy.logits).astype(np.float64))),
        )

    def _rows(self, forward: Forward, group: Group) -> torch.Tensor:
        """Logits of the real positions, [rows of the group, V], float32."""
        return forward(group.ids)[group.real].float()

    def _empty(self) -> Rung:
        return Rung(
            logits=np.zeros(self.ids.shape, np.float32),
            logsumexp=np.zeros(self.rows, np.float32),
            argmax=np.zeros(self.rows, np.int32),
            full=np.zeros((len(self.full_rows), self.vocab_size), np.float32),
        )

    def _keep(self, rung: Rung, group: Group, logits: torch.Tensor) -> None:
        rows = group.rows.numpy()
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
    """What each operator is given and gives at the whole rows, taken from forwards that run anyway.

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

        def keep(name: str, _: nn.Module, given: tuple[torch.Tensor], gives: torch.Tensor) -> None:
            sides = self._kept.setdefault(name, ({}, {}))
            for side, values in zip(sides, (given[0], gives), strict=True):
                chosen = tokens_first(self._model, values)[places].float().reshape(len(rows), -1)
                side.update(zip(rows, chosen.numpy(), strict=True))

        with contextlib.ExitStack() as hooks:
            for name, module in self._operators.items() if held else ():
                hooks.enter_context(_hooked(module, functools.partial(keep, name)))
            yield


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


def _perturbed(model: nn.Module, generator: torch.Generator) -> Forward:
    """The model with every embedding times (1 + 1e-6 x standard normal)."""

    def change(_: nn.Module, __: object, output: torch.Tensor) -> torch.Tensor:
        return output * (1 + _NOISE * torch.randn(output.shape, generator=generator))

    def forward(ids: torch.Tensor) -> torch.Tensor:
        embedding = cast("Any", model).get_input_embeddings()
        with _hooked(embedding, change):
            return model(input_ids=ids, use_cache=False).logits

    return forward


@contextlib.contextmanager
def _hooked(module: nn.Module, hook: Any) -> Generator[None]:
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
