"""Text to token ids and back, from the two files that a phone gets: tokenizer.json, prompt.json.

In: what the user says. Out: the ids that the model was trained to see, and text from ids as they
come. Templates run in a Jinja sandbox set up as Hugging Face's chat templates expect; transformers
itself is not needed. The goldens show whether both agree.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from protos.artifacts import read_json
from protos.errors import ArtifactError, InputError

if TYPE_CHECKING:
    from jinja2 import Template
    from tokenizers import Tokenizer

TOKENIZER_FILE = "tokenizer.json"
PROMPT_FILE = "prompt.json"
_KINDS = ("chat", "plain")
_BROKEN = "\ufffd"


@dataclass(frozen=True)
class PromptConfig:
    """What prompt.json says.

    template: Jinja source for `chat`; for `plain`, text in which {content} is replaced.
    special_tokens: names that a chat template may use, such as bos_token.
    add_special_tokens: whether the tokenizer adds its own, as it does for plain text.
    """

    kind: str
    template: str
    special_tokens: dict[str, str]
    add_special_tokens: bool
    bos_id: int | None
    eos_ids: frozenset[int]


class Prompt:
    """A bundle's tokenizer and template."""

    def __init__(self, tokenizer: Tokenizer, config: PromptConfig) -> None:
        self._tokenizer = tokenizer
        self._chat = _compile(config.template) if config.kind == "chat" else None
        self.config = config

    @property
    def eos_ids(self) -> frozenset[int]:
        """Ids that end an answer."""
        return self.config.eos_ids

    @property
    def vocab_size(self) -> int:
        """Ids that the tokenizer knows, added ones included."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def knows(self, token: int) -> bool:
        """Whether the tokenizer has this id."""
        return self._tokenizer.id_to_token(token) is not None

    def render(self, content: str, now: datetime | None = None) -> str:
        """What the model reads when the user says `content`.

        now: what a template that prints the date takes for it; None for this moment.

        Raises:
            InputError: the template refuses it.
        """
        if self._chat is None:
            return self.config.template.replace("{content}", content)
        from jinja2 import TemplateError

        def strftime_now(form: str) -> str:
            return (now or datetime.now()).strftime(form)

        given: dict[str, Any] = {
            "strftime_now": strftime_now,
            "messages": [{"role": "user", "content": content}],
            "tools": None,
            "documents": None,
            "add_generation_prompt": True,
        }
        try:
            return self._chat.render(**self.config.special_tokens | given)
        except (TemplateError, TypeError, ValueError) as error:
            raise InputError(f"{PROMPT_FILE}: the template refuses this prompt: {error}") from None

    def encode(self, content: str, now: datetime | None = None) -> list[int]:
        """`render(content, now)` as token ids."""
        return self._ids(self.render(content, now), self.config.add_special_tokens)

    def encode_raw(self, text: str) -> list[int]:
        """`text` without the template, with the special tokens that the tokenizer adds itself."""
        return self._ids(text, add_special_tokens=True)

    def encode_answer(self, text: str) -> list[int]:
        """`text` as the model was trained to say it, without the id that ends it."""
        return self._ids(text, add_special_tokens=False)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens left out."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    def stream(self) -> TextStream:
        """A decoder for ids that come one by one."""
        return TextStream(self)

    def _ids(self, text: str, add_special_tokens: bool) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"the prompt is not valid Unicode ({error.reason})") from None
        return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)


class TextStream:
    """Text of ids as they come, in pieces that never hold half a character.

    One character may take several tokens, and a token's text may depend on the one before it (some
    tokenizers drop a leading space). So the text since the last emitted token is decoded together
    with that token, and held back while it ends in a broken character.
    """

    def __init__(self, prompt: Prompt) -> None:
        self._prompt = prompt
        self._ids: list[int] = []
        self._emitted_ids = 0
        self._context = 0

    def push(self, token: int) -> str:
        """The text that `token` completes; empty while a character is unfinished."""
        self._ids.append(token)
        text = self._pending()
        if not text or text.endswith(_BROKEN):
            return ""
        self._context, self._emitted_ids = self._emitted_ids, len(self._ids)
        return text

    def finish(self) -> str:
        """What was held back, without the bytes of a character that never ended."""
        text = self._pending().rstrip(_BROKEN)
        self._context = self._emitted_ids = len(self._ids)
        return text

    def _pending(self) -> str:
        before = self._prompt.decode(self._ids[self._context : self._emitted_ids])
        return self._prompt.decode(self._ids[self._context :])[len(before) :]


def open_prompt(directory: Path) -> Prompt:
    """The tokenizer and template of a bundle's directory.

    Raises:
        ArtifactError: a file is missing or malformed.
    """
    from tokenizers import Tokenizer

    source = directory / TOKENIZER_FILE
    try:
        tokenizer = Tokenizer.from_str(source.read_text(encoding="utf-8"))
    except Exception as error:  # the tokenizers library raises plain Exception
        raise ArtifactError(f"{source}: unreadable tokenizer: {error}") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return Prompt(tokenizer, _read_config(directory / PROMPT_FILE))


def _read_config(source: Path) -> PromptConfig:
    try:
        raw = read_json(source)
        if raw["kind"] not in _KINDS:
            raise ValueError(f"kind is {raw['kind']!r}, expected chat or plain")
        return PromptConfig(
            kind=raw["kind"],
            template=str(raw["template"]),
            special_tokens={str(k): str(v) for k, v in raw["special_tokens"].items()},
            add_special_tokens=bool(raw["add_special_tokens"]),
            bos_id=None if raw["bos_id"] is None else int(raw["bos_id"]),
            eos_ids=frozenset(int(token) for token in raw["eos_ids"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError, InputError) as error:
        raise ArtifactError(f"{source}: malformed prompt file ({error})") from None


def _compile(source: str) -> Template:
    """A chat template; a bundle is data, so it runs in the sandbox.

    Raises:
        ArtifactError: it is not Jinja.
    """
    from jinja2 import TemplateError, TemplateSyntaxError, nodes
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks what is trained on; here its body is simply text."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            return nodes.If(nodes.Const(True), body, [], []).set_lineno(line)

    def refuse(message: str) -> NoReturn:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[Generation, "jinja2.ext.loopcontrols"],
    )
    environment.filters["tojson"] = _tojson
    functions: dict[str, Any] = {"raise_exception": refuse}
    environment.globals.update(functions)
    try:
        return environment.from_string(source)
    except TemplateSyntaxError as error:
        raise ArtifactError(f"{PROMPT_FILE}, template line {error.lineno}: {error}") from None


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as chat templates expect it: unlike Jinja's own filter, without HTML escapes."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
