"""The base model as it answers users' questions, with an adapter or without, greedily, in batches.

In: prompts, an Adapter. Out: answers. The weights load at the first question. A batch holds
questions of one user only, so that nobody's answer depends on who else is evaluated.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from protos.artifacts import Artifact
from protos.base_model import BaseModel, completion_ids, load_model, load_tokenizer
from protos.choices import following

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

_BATCH = 32


@dataclass(frozen=True)
class Answer:
    """What the model said. cut: it was not at its end when the room for it was."""

    text: str
    cut: bool


class Student:
    """A base model. tokenizer: its own."""

    def __init__(self, base: BaseModel, dtype: torch.dtype, threads: int) -> None:
        self.base, self.dtype = base, dtype
        self.tokenizer: PreTrainedTokenizerFast = load_tokenizer(base)
        self._threads = threads
        self._model: PreTrainedModel | None = None

    def answers(
        self,
        prompts: Sequence[Sequence[int]],
        room: int,
        adapter: Artifact | None,
        choices: Sequence[str] = (),
    ) -> list[Answer]:
        """What the model says to each prompt, in at most `room` tokens; one of `choices`, if any:
        greedily, token by token, among what goes on to one of them.
        """
        by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        said: dict[int, Answer] = {}
        with self._adapted(adapter) as model:
            for start in range(0, len(by_length), _BATCH):
                batch = by_length[start : start + _BATCH]
                made = self._generate(model, [prompts[i] for i in batch], room, choices)
                said.update(zip(batch, made, strict=True))
        return [said[index] for index in range(len(prompts))]

    @contextmanager
    def _adapted(self, adapter: Artifact | None) -> Generator[Any]:
        """The model with an adapter's layers; afterwards it is as it was."""
        model: Any = self._weights()
        if adapter is None:
            yield model
            return
        from peft import PeftModel

        adapted = PeftModel.from_pretrained(model, str(adapter.path))
        try:
            yield adapted.eval()
        finally:
            adapted.unload()

    def _generate(
        self, model: Any, prompts: Sequence[Sequence[int]], room: int, choices: Sequence[str]
    ) -> list[Answer]:
        import torch

        pad = self._stops[0]
        longest = max(map(len, prompts))
        rows = [[pad] * (longest - len(ids)) + list(ids) for ids in prompts]
        mask = [[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts]
        with torch.inference_mode():
            output = model.generate(
                input_ids=torch.tensor(rows, device=model.device),
                attention_mask=torch.tensor(mask, device=model.device),
                max_new_tokens=room,
                prefix_allowed_tokens_fn=self._allowed(choices, longest) if choices else None,
            )[:, longest:].tolist()
        return [self._answer(ids) for ids in output]

    def _allowed(self, choices: Sequence[str], prompt: int) -> Callable[[int, Any], list[int]]:
        """What may follow the tokens of a row whose prompt takes `prompt` places."""
        then = following(completion_ids(self.tokenizer, text) for text in choices)

        def allowed(_: int, row: Any) -> list[int]:
            said: tuple[int, ...] = tuple(row[prompt:].tolist())
            return list(then.get(said, self._stops))  # one that has ended is filled up

        return allowed

    def _answer(self, ids: list[int]) -> Answer:
        """What ids say up to the first one that stops the model; cut if there is none."""
        end = next((place for place, one in enumerate(ids) if one in self._stops), len(ids))
        text = str(self.tokenizer.decode(ids[:end], skip_special_tokens=True)).strip()
        return Answer(text, cut=end == len(ids))

    def _weights(self) -> PreTrainedModel:
        if self._model is None:
            import torch
            from transformers import GenerationConfig

            from cloud.attention import decode_fast

            torch.set_num_threads(self._threads)
            model: Any = load_model(self.base, self.dtype)
            said: Any = model.generation_config.eos_token_id
            also = said if isinstance(said, list) else [said]
            stops: list[Any] = [
                self.tokenizer.eos_token_id,
                *(one for one in also if one is not None),
            ]
            self._stops: list[int] = list(dict.fromkeys(stops))
            # the hub's own settings (penalties, sampling) are not what a phone's greedy loop does
            model.generation_config = GenerationConfig(
                do_sample=False, eos_token_id=self._stops, pad_token_id=self._stops[0]
            )
            self._model = model.to("cuda" if torch.cuda.is_available() else "cpu")
            decode_fast(model)
        return cast("PreTrainedModel", self._model)
