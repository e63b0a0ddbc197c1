"""What a phone needs to turn words into token ids: `tokenizer.json` and `prompt.json`.

They are written from the tokenizer as it was loaded, not copied: a runtime that reads them has
everything, and `check_ids` proves with the very file that it makes the same ids.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from protos.artifacts import read_json, write_json
from protos.base_model import PLAIN_TEMPLATE, BaseModel
from protos.errors import MismatchError, UnsupportedError
from protos.golden import GoldenPrompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TOKENIZER_FILE = "tokenizer.json"
PROMPT_FILE = "prompt.json"


@dataclass(frozen=True)
class PromptFormat:
    """The content of `prompt.json`.

    kind: "chat" (`template` is Jinja source) or "plain" (it holds `{content}`).
    add_special_tokens: whether the tokenizer adds its own; a chat template writes them itself.
    eos_ids: every id after which generation stops.
    """

    kind: str
    template: str
    special_tokens: Mapping[str, str]
    add_special_tokens: bool
    bos_id: int | None
    eos_ids: list[int]


def prompt_format(base: BaseModel, tokenizer: PreTrainedTokenizerFast) -> PromptFormat:
    """How this base is asked, as `protos.base_model.render` does it."""
    template = _chat_template(tokenizer)
    return PromptFormat(
        kind="plain" if template is None else "chat",
        template=PLAIN_TEMPLATE if template is None else template,
        special_tokens={n: str(token) for n, token in tokenizer.special_tokens_map.items()},
        add_special_tokens=template is None,
        bos_id=cast("int | None", tokenizer.bos_token_id),
        eos_ids=_eos_ids(base, tokenizer),
    )


def write_prompt_format(
    directory: Path, tokenizer: PreTrainedTokenizerFast, prompt: PromptFormat
) -> None:
    """Write `tokenizer.json` and `prompt.json` into `directory`."""
    text = tokenizer.backend_tokenizer.to_str()
    (directory / TOKENIZER_FILE).write_text(text, encoding="utf-8")
    write_json(
        directory / PROMPT_FILE, {**vars(prompt), "special_tokens": dict(prompt.special_tokens)}
    )


def check_ids(
    directory: Path, prompts: Iterable[GoldenPrompt], *, add_special_tokens: bool
) -> None:
    """Read the written tokenizer as a phone does and hold it against the goldens' ids.

    Raises:
        MismatchError: it makes other ids than transformers does; the message names the prompt.
    """
    from tokenizers import Tokenizer

    written = Tokenizer.from_file(str(directory / TOKENIZER_FILE))
    for prompt in prompts:
        ids = written.encode(prompt.rendered, add_special_tokens=add_special_tokens).ids
        if ids != prompt.ids:
            raise MismatchError(
                f"{TOKENIZER_FILE} gives {len(ids)} ids for prompt {prompt.name!r}, transformers "
                f"gives {len(prompt.ids)} other ones: the tokenizer needs more than its file holds"
            )


def _chat_template(tokenizer: PreTrainedTokenizerFast) -> str | None:
    template: Any = tokenizer.chat_template
    if isinstance(template, dict):
        if "default" not in template:
            raise UnsupportedError(f"several chat templates and none called default: {[*template]}")
        return template["default"]
    return template


def _eos_ids(base: BaseModel, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """From generation_config.json, config.json and the tokenizer: each may know one more."""
    generation = base.directory / "generation_config.json"
    sources = [read_json(generation)] if generation.is_file() else []
    ids = {cast("int", tokenizer.eos_token_id)}
    for source in (*sources, base.config):
        value = source.get("eos_token_id")
        ids |= {int(i) for i in (value if isinstance(value, list) else [value]) if i is not None}
    return sorted(ids)
