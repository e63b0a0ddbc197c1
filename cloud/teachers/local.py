"""A causal language model on this machine as a teacher: the bundled one, or any of Hugging Face's.

In: requests. Out: replies, sampled in batches of similar length with a KV cache; what requests of a
batch show alike is read once. The same seeds give the same replies, also where an interrupted run
asks for the rest only.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import TYPE_CHECKING, Any, cast

from cloud.profiles import Item
from cloud.prompts import (
    Ask,
    Message,
    Pair,
    chat,
    continuation,
    read_chat,
    read_continuation,
)
from cloud.tasks import Task
from cloud.teachers import Reply, Sampling
from protos.artifacts import digest_json
from protos.base_model import BaseModel, load_model, load_tokenizer
from protos.errors import InputError

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel, PreTrainedTokenizerFast

_BATCH = 32
_ITEMS_PER_CHAT = 5
_LABEL_ROOM = 8
_OPINIONS = ("vote", "judge")
_OUTPUTS = ("output", "answer")
_SLACK = 2
"""How many times longer than the longest output shown another may be; the filters' slack."""
_STOP = "\n\n"
"""What ends a block of a continuation."""


@dataclass
class HuggingFaceTeacher:
    """Its weights load at the first request, its tokenizer when it is needed."""

    name: str
    base: BaseModel
    threads: int
    third_party: bool = False
    is_remote: bool = False
    _model: PreTrainedModel | None = field(default=None, init=False, repr=False)
    _tokenizer: PreTrainedTokenizerFast | None = field(default=None, init=False, repr=False)

    @property
    def digest(self) -> str:
        return self.base.digest

    @property
    def items_per_ask(self) -> int:
        return _ITEMS_PER_CHAT if self._chats else 1

    def prompt(self, task: Task, ask: Ask) -> str | list[Message]:
        return chat(task, ask) if self._chats else continuation(task, ask)

    def read(self, task: Task, ask: Ask, text: str) -> list[Pair | None]:
        return (read_chat if self._chats else read_continuation)(task, ask, text)

    def write(
        self, task: Task, asks: Sequence[Ask], sampling: Sampling
    ) -> Iterator[tuple[int, Reply]]:
        rooms = [self._room(task, ask) for ask in asks]
        prompts = [self._fit(task, ask, room) for ask, room in zip(asks, rooms, strict=True)]
        by_length = sorted(range(len(asks)), key=lambda index: len(prompts[index]))
        unanswered = [index for index in by_length if not prompts[index]]
        yield from ((index, Reply("")) for index in unanswered)
        for batch in _batches(asks, by_length[len(unanswered) :]):
            chosen = [prompts[index] for index in batch]
            seed = int(digest_json([[asks[i].seed for i in batch], chosen])[:12], 16)
            alike = _alike([asks[i].shots for i in batch])
            replies = self._sample(chosen, alike, max(rooms[i] for i in batch), sampling, seed)
            yield from zip(batch, replies, strict=True)

    @property
    def _chats(self) -> bool:
        return self._words.chat_template is not None

    @property
    def _words(self) -> PreTrainedTokenizerFast:
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self.base)
        return self._tokenizer

    def _room(self, task: Task, ask: Ask) -> int:
        """Tokens to write in: one label, one output, or items half as long again as the longest."""
        if ask.kind in _OPINIONS:
            labels = [f" {label}" for label in task.labels] or [" 5"]
            return max(self._lengths(labels)) + _LABEL_ROOM
        if ask.kind in _OUTPUTS:
            outputs = [
                json.dumps({"output": shot.output}, ensure_ascii=False) for shot in ask.shots
            ]
            return self._longest(outputs) * _SLACK + _LABEL_ROOM
        blocks = [task.shot(shot.input, shot.output) for shot in ask.shots]
        return ask.count * (self._longest(blocks) * 3 // 2 + 8)

    def _longest(self, texts: Sequence[str]) -> int:
        """Tokens of the longest text that takes no more than a third of the context."""
        lengths = self._lengths(texts)
        short = [length for length in lengths if length * 3 <= self.base.max_positions]
        return max(short or lengths)

    def _lengths(self, texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in self._words(list(texts))["input_ids"]]

    def _fit(self, task: Task, ask: Ask, room: int) -> list[int]:
        """The prompt's ids with as many of the shots, the last ones, as leave `room` to write.

        None at all where nothing fits and a text is to be answered: it cannot be made shorter.
        """
        tails = [ask.shots[first:] for first in range(len(ask.shots))]
        for shots in [*tails, *((shot,) for shot in ask.shots[:-1])]:
            ids = self._ids(task, replace(ask, shots=shots))
            if len(ids) + room <= self.base.max_positions:
                return ids
        if ask.kind in (*_OPINIONS, *_OUTPUTS):
            return []
        longest = max(len(text) for text in (ask.text, *(shot.input for shot in ask.shots)))
        raise InputError(
            f"an item of {longest:,} characters does not fit the teacher's context of "
            f"{self.base.max_positions} tokens; take a teacher with a longer context, or a lower "
            "--max-chars, which leaves long items out of what is shown"
        )

    def _ids(self, task: Task, ask: Ask) -> list[int]:
        if not self._chats:
            return list(self._words(continuation(task, ask))["input_ids"])
        text = self._words.apply_chat_template(
            chat(task, ask), tokenize=False, add_generation_prompt=True
        )
        return list(self._words(str(text), add_special_tokens=False)["input_ids"])

    def _sample(
        self, prompts: Sequence[Sequence[int]], alike: Sequence[Sequence[int]], room: int,
        sampling: Sampling, seed: int,
    ) -> list[Reply]:  # fmt: skip
        """Sampled continuations of prompts, in their order. alike: which show the same items."""
        import torch

        model, tokenizer = self._weights(), self._words
        pad: Any = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        stop = None if self._chats else [_STOP]
        with torch.random.fork_rng(devices=[]), torch.inference_mode():
            shared, read = self._read_once(prompts, alike, pad)
            heads = [list(ids[:count]) for ids, count in zip(prompts, shared, strict=True)]
            tails = [list(ids[count:]) for ids, count in zip(prompts, shared, strict=True)]
            (heads, seen), (tails, more) = _filled(heads, pad), _filled(tails, pad)
            rows = [head + tail for head, tail in zip(heads, tails, strict=True)]
            mask = [head + tail for head, tail in zip(seen, more, strict=True)]
            torch.manual_seed(seed)
            generate: Any = model.generate
            output: Any = generate(
                input_ids=torch.tensor(rows, device=model.device),
                attention_mask=torch.tensor(mask, device=model.device),
                past_key_values=read,
                max_new_tokens=room,
                **_drawing(sampling),
                pad_token_id=pad,
                stop_strings=stop,
                tokenizer=tokenizer if stop else None,
            )[:, len(rows[0]) :]
        return [
            self._reply(len(ids), row.tolist(), pad, room)
            for ids, row in zip(prompts, output, strict=True)
        ]

    def _read_once(
        self, prompts: Sequence[Sequence[int]], alike: Sequence[Sequence[int]], pad: int
    ) -> tuple[list[int], Cache | None]:
        """How many tokens of each prompt are read, and the model's state after these, row by row.

        What those alike begin with is read once for all of them. 0 and None where nothing is alike,
        or where the state is not simply keys and values of all tokens, such as with a sliding
        window.
        """
        import torch
        from transformers import DynamicCache
        from transformers.cache_utils import DynamicLayer

        nothing = [0] * len(prompts)
        if len(alike) == len(prompts):
            return nothing, None
        model = self._weights()
        begun = [_beginning([prompts[row] for row in rows]) for rows in alike]
        if not all(begun):
            return nothing, None
        ids, mask = _filled(begun, pad)
        seen = torch.tensor(mask, device=model.device)
        read: Any = model(
            input_ids=torch.tensor(ids, device=model.device),
            attention_mask=seen,
            position_ids=(seen.cumsum(-1) - 1).clamp(min=0),
            use_cache=True,
            logits_to_keep=1,
        ).past_key_values
        if type(read) is not DynamicCache or any(type(x) is not DynamicLayer for x in read.layers):
            return nothing, None
        group = {row: number for number, rows in enumerate(alike) for row in rows}
        order = [group[row] for row in range(len(prompts))]
        read.batch_select_indices(torch.tensor(order, device=model.device))
        return [len(begun[number]) for number in order], read

    def _reply(self, prompt_tokens: int, row: list[int], pad: int, room: int) -> Reply:
        text = str(self._words.decode(row, skip_special_tokens=True))
        ends = {pad, *_listed(self._weights().generation_config.eos_token_id)}
        stopped = not self._chats and _STOP in text
        cut = len(row) == room and row[-1] not in ends and not stopped
        return Reply(text, prompt_tokens, sum(one != pad for one in row), cut)

    def _weights(self) -> PreTrainedModel:
        if self._model is None:
            import torch

            from cloud.attention import decode_fast
            from protos.base_model import compute_dtype

            torch.set_num_threads(self.threads)
            device = "cuda" if torch.cuda.is_available() else "cpu"
            model: Any = load_model(self.base, compute_dtype())
            self._model = model.to(device)
            decode_fast(model)
        return cast("PreTrainedModel", self._model)


def _batches(asks: Sequence[Ask], by_length: Sequence[int]) -> Iterator[list[int]]:
    """Batches by length, in which what shows the same items is together.

    After any of them, the rest alone gives the batches that are left.
    """
    groups = _alike([asks[index].shots for index in by_length])
    parts = [
        part[start : start + _BATCH] for part in groups for start in range(0, len(part), _BATCH)
    ]
    batch: list[int] = []
    for part in sorted(parts):
        if len(batch) + len(part) > _BATCH:
            yield batch
            batch = []
        batch = batch + [by_length[place] for place in part]
    if batch:
        yield batch


def _alike(shown: Sequence[tuple[Item, ...]]) -> list[list[int]]:
    """Places of equal ones, in the order of the first of them."""
    places: defaultdict[tuple[Item, ...], list[int]] = defaultdict(list)
    for place, items in enumerate(shown):
        places[items].append(place)
    return list(places.values())


def _beginning(prompts: Sequence[Sequence[int]]) -> list[int]:
    """The tokens that all of them begin with, short of the last one of any."""
    columns = zip(*(ids[:-1] for ids in prompts), strict=False)
    return [column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns)]


def _filled(rows: Sequence[list[int]], pad: int) -> tuple[list[list[int]], list[list[int]]]:
    """Rows filled up on the left to one length, and their masks."""
    longest = max(map(len, rows))
    fills = [longest - len(ids) for ids in rows]
    filled = [[pad] * fill + ids for fill, ids in zip(fills, rows, strict=True)]
    return filled, [[0] * fill + [1] * (longest - fill) for fill in fills]


def _drawing(sampling: Sampling) -> dict[str, Any]:
    """How `generate` chooses the next token; greedily at temperature 0."""
    if sampling.temperature == 0:
        return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    draw = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
    return {"do_sample": True, **draw}


def _listed(ids: Any) -> list[int]:
    """Stop ids, of which a model may have none, one or a list."""
    return ids if isinstance(ids, list) else [] if ids is None else [ids]
