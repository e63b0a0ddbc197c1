"""Teachers: the strong models that write new items in a user's manner.

In: `--teacher pocket | hf:<dir or id> | openai:<base-url>#<model>`. Out: a `Teacher`, which answers
a list of requests (each a list of the user's items to show) with what it wrote, in order.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlparse

from cloud.profiles import Item
from cloud.prompts import (
    Message,
    Pair,
    chat_prompt,
    continuation_prompt,
    parse_chat,
    parse_continuation,
)
from cloud.tasks import Task
from protos.artifacts import digest_json
from protos.base_model import BaseModel, load_model, load_tokenizer, open_base
from protos.errors import InputError, TeacherError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

POCKET_TEACHER = Path(__file__).parent / "pocket" / "models" / "teacher"
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_BATCH = 32
_ITEMS_PER_CHAT = 5
_CONCURRENT_CALLS = 8
_CALL_TIMEOUT_S = 120.0
_CALL_RETRIES = 5


@dataclass(frozen=True)
class Sampling:
    """How a teacher draws its words. seed: the same one gives the same samples (local models)."""

    temperature: float = 1.0
    top_p: float = 0.95
    seed: int = 0


@dataclass(frozen=True)
class Reply:
    """One answer. text: as the teacher wrote it. pairs: what it holds, None where it is garbled."""

    text: str
    pairs: list[Pair | None]


class Teacher(Protocol):
    """A model that writes new items when it is shown some.

    name: as the caller named it. digest: identifies weights or endpoint. third_party: items leave
    the operator's own machines, which the user must have consented to.
    """

    @property
    def name(self) -> str: ...
    @property
    def digest(self) -> str: ...
    @property
    def third_party(self) -> bool: ...

    def write(
        self, task: Task, requests: Sequence[Sequence[Item]], sampling: Sampling
    ) -> list[Reply]:
        """One reply for each request, in order.

        Raises:
            TeacherError: it could not be reached or refused.
        """
        ...


def open_teacher(spec: str, threads: int) -> Teacher:
    """The teacher that a `--teacher` option names; local weights load at the first request.

    Raises:
        InputError: the option is malformed or names a model that is not there.
    """
    kind, _, rest = spec.partition(":")
    if spec == "pocket":
        return HuggingFaceTeacher("pocket", open_base(str(POCKET_TEACHER)), threads)
    if kind == "hf" and rest:
        return HuggingFaceTeacher(spec, open_base(rest), threads)
    if kind == "openai" and rest:
        base_url, _, model = rest.rpartition("#")
        if urlparse(base_url).scheme not in ("http", "https") or not model:
            raise InputError(f"--teacher {spec}: expected openai:<base-url>#<model>")
        return OpenAITeacher(base_url, model, os.environ.get("OPENAI_API_KEY", "none"))
    raise InputError(
        f"--teacher {spec}: expected pocket, hf:<dir or id> or openai:<base-url>#<model>"
    )


@dataclass
class HuggingFaceTeacher:
    """A causal LM on this machine, sampled in batches of similar length with its KV cache."""

    name: str
    base: BaseModel
    threads: int
    third_party: bool = False
    _loaded: tuple[PreTrainedModel, PreTrainedTokenizerFast] | None = field(
        default=None, init=False, repr=False
    )

    @property
    def digest(self) -> str:
        return self.base.digest

    def write(
        self, task: Task, requests: Sequence[Sequence[Item]], sampling: Sampling
    ) -> list[Reply]:
        model, tokenizer = self._load()
        chat = tokenizer.chat_template is not None
        room = _new_tokens(tokenizer, task, requests, _ITEMS_PER_CHAT if chat else 1)
        prompts = [self._fit(tokenizer, task, shots, room) for shots in requests]
        stop = None if chat else ["\n\n"]
        texts = _generate(model, tokenizer, prompts, room, stop, sampling)
        parse: Callable[[str], list[Pair | None]] = (
            parse_chat if chat else lambda text: parse_continuation(task, text)
        )
        return [Reply(text, parse(text)) for text in texts]

    def _load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
        if self._loaded is None:
            import torch

            from protos.base_model import compute_dtype

            torch.set_num_threads(self.threads)
            tokenizer = load_tokenizer(self.base)
            device = "cuda" if torch.cuda.is_available() else "cpu"
            model: Any = load_model(self.base, compute_dtype())
            self._loaded = model.to(device), tokenizer
        return self._loaded

    def _fit(
        self, tokenizer: PreTrainedTokenizerFast, task: Task, shots: Sequence[Item], room: int
    ) -> list[int]:
        """The prompt's ids with as many of the shots, the last ones, as leave `room` to write."""
        for first in range(len(shots)):
            ids = _prompt_ids(tokenizer, task, shots[first:])
            if len(ids) + room <= self.base.max_context:
                return ids
        raise InputError(
            f"an item of {max(len(shot.input) for shot in shots):,} characters does not fit the "
            f"teacher's context of {self.base.max_context} tokens; take one with a longer context"
        )


def _prompt_ids(tokenizer: PreTrainedTokenizerFast, task: Task, shots: Sequence[Item]) -> list[int]:
    if tokenizer.chat_template is None:
        return list(tokenizer(continuation_prompt(task, shots))["input_ids"])
    messages = chat_prompt(task, shots, _ITEMS_PER_CHAT)
    text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _new_tokens(
    tokenizer: PreTrainedTokenizerFast, task: Task, requests: Sequence[Sequence[Item]], items: int
) -> int:
    """Room for `items` items, each half as long again as the longest that is shown."""
    blocks = {task.shot(shot.input, shot.output) for shots in requests for shot in shots}
    longest = max(len(ids) for ids in tokenizer(sorted(blocks))["input_ids"])
    return items * (longest * 3 // 2 + 8)


def _generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    stop: list[str] | None,
    sampling: Sampling,
) -> list[str]:
    """Sampled continuations, in the prompts' order; prompts of similar length share a batch."""
    import torch

    by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    texts = [""] * len(prompts)
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(sampling.seed)
        for start in range(0, len(by_length), _BATCH):
            batch = by_length[start : start + _BATCH]
            longest = len(prompts[batch[-1]])
            pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
            rows = [[pad] * (longest - len(prompts[i])) + list(prompts[i]) for i in batch]
            mask = [[int(k >= longest - len(prompts[i])) for k in range(longest)] for i in batch]
            generate: Any = model.generate
            output: Any = generate(
                input_ids=torch.tensor(rows, device=model.device),
                attention_mask=torch.tensor(mask, device=model.device),
                max_new_tokens=new_tokens,
                do_sample=True,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=0,
                pad_token_id=pad,
                stop_strings=stop,
                tokenizer=tokenizer if stop else None,
            )
            for index, row in zip(batch, output[:, longest:], strict=True):
                texts[index] = str(tokenizer.decode(row, skip_special_tokens=True))
    return texts


@dataclass(frozen=True)
class OpenAITeacher:
    """A model behind any server that speaks OpenAI's chat completions."""

    base_url: str
    model: str
    api_key: str = field(repr=False)

    @property
    def name(self) -> str:
        return f"openai:{self.base_url}#{self.model}"

    @property
    def digest(self) -> str:
        return digest_json([self.base_url, self.model])

    @property
    def third_party(self) -> bool:
        return urlparse(self.base_url).hostname not in _LOOPBACK

    def write(
        self, task: Task, requests: Sequence[Sequence[Item]], sampling: Sampling
    ) -> list[Reply]:
        import openai

        client = openai.OpenAI(
            base_url=self.base_url,
            api_key=self.api_key,
            timeout=_CALL_TIMEOUT_S,
            max_retries=_CALL_RETRIES,
        )

        def call(index: int) -> Reply:
            messages = chat_prompt(task, requests[index], _ITEMS_PER_CHAT)
            text = self._complete(client, messages, sampling, sampling.seed + index)
            return Reply(text, parse_chat(text))

        with client, ThreadPoolExecutor(_CONCURRENT_CALLS) as pool:
            try:
                return list(pool.map(call, range(len(requests))))
            except openai.OpenAIError as error:
                pool.shutdown(cancel_futures=True)
                reason = " ".join(str(error).split())[:300]
                raise TeacherError(f"{self.name}: {type(error).__name__}: {reason}") from None

    def _complete(self, client: Any, messages: list[Message], sampling: Sampling, seed: int) -> str:
        answer = client.chat.completions.create(
            model=self.model,
            messages=messages,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=seed,
        )
        return answer.choices[0].message.content or "" if answer.choices else ""
