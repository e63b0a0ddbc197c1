"""MLC's `conv_template`, derived from a model's own chat template by asking it.

MLC renders with a fixed scheme, not with Jinja: roles, separators and a system text. The template
is rendered with marks in place of the messages, the scheme is read off between them, and then held
against the template on several conversations. What the scheme cannot express is refused, since a
model that is asked in another form answers in another form.

    text = system + (user + message + seps[0] + assistant + message + seps[1])* + user + message
         + seps[0] + assistant + role_empty_sep
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from export.prompt_format import PromptFormat
from protos.errors import UnsupportedError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Messages = Sequence[tuple[str, str]]
"""(role, content) with the roles `user` and `assistant`, or `system` in the first place."""
_MARKS = ("\u2020one\u2020", "\u2020two\u2020", "\u2020three\u2020")
_PROBES: Sequence[Messages] = (
    [("user", "Hello!")],
    [("user", "What is 2 + 2?"), ("assistant", "4"), ("user", "And twice that?")],
    [
        ("user", "Read: a\nb"), ("assistant", "Yes, I did."), ("user", "Über \u4f60\u597d?"),
        ("assistant", "{braces} and \u201cquotes\u201d"), ("user", "x" * 50),
    ],
)  # fmt: skip


def conv_template(tokenizer: PreTrainedTokenizerFast, asked: PromptFormat) -> dict[str, Any]:
    """The `conv_template` object of `mlc-chat-config.json`.

    Raises:
        UnsupportedError: the chat template cannot be written in MLC's scheme, or the tokenizer puts
            special tokens at a prompt's end.
    """
    derived = _plain(tokenizer, asked) if asked.kind == "plain" else _chat(tokenizer)
    template = {
        "name": "pocketune",
        "add_role_after_system_message": True,
        "role_content_sep": "",
        "stop_str": [],
        "stop_token_ids": list(asked.eos_ids),
        "function_string": "",
        "use_function_calling": False,
        **derived,
    }
    _check(template, tokenizer, asked)
    return template


def conversation_ids(
    template: Mapping[str, Any], tokenizer: PreTrainedTokenizerFast, messages: Messages
) -> list[int]:
    """Token ids of a conversation as MLC makes them; the last message is the user's."""
    text = rendered(template, messages)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]  # pyright: ignore[reportAssignmentType]
    return [*(template.get("system_prefix_token_ids") or []), *ids]


def rendered(template: Mapping[str, Any], messages: Messages) -> str:
    """The text of a conversation in MLC's scheme, ready for the assistant's answer."""
    system = template["system_message"]
    if messages and messages[0][0] == "system":
        system, messages = messages[0][1], messages[1:]
    separators = {"user": template["seps"][0], "assistant": template["seps"][-1]}
    turns = [f"{template['roles'][role]}{text}{separators[role]}" for role, text in messages]
    start = template["system_template"].replace("{system_message}", system)
    return start + "".join(turns) + template["roles"]["assistant"] + template["role_empty_sep"]


def _plain(tokenizer: PreTrainedTokenizerFast, asked: PromptFormat) -> dict[str, Any]:
    """A base model is asked with `{content}` in a fixed text, and whatever its tokenizer adds."""
    before, _, after = asked.template.partition("{content}")
    added: list[int] = tokenizer("", add_special_tokens=True)["input_ids"]  # pyright: ignore[reportAssignmentType]
    start = {"system_prefix_token_ids": added} if added else {}
    return {
        **start,
        "system_template": "{system_message}",
        "system_message": "",
        "roles": {"user": before, "assistant": ""},
        "role_templates": _ROLE_TEMPLATES,
        "role_empty_sep": "",
        "seps": [after, "\n"],
    }


_ROLE_TEMPLATES = {"user": "{user_message}", "assistant": "{assistant_message}",
                   "tool": "{tool_message}"}  # fmt: skip


def _chat(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    one, two, three = _MARKS
    once = _ask(tokenizer, [("user", one)])
    twice = _ask(tokenizer, [("user", one), ("assistant", two), ("user", three)])
    before, last = _between(once, one)
    _, middle = _between(twice, one)
    answer, again = _between(middle, two)
    again, _ = _between(again, three)
    if not last.startswith(answer):
        raise _refusal("what stands before an answer differs between earlier turns and the last")
    # `last` is seps[0] + assistant + role_empty_sep and `answer` seps[0] + assistant: where one
    # ends and the other begins makes no difference to the text, so seps[0] stays empty.
    user = _common_end(before, again)
    return {
        **_system(tokenizer, before.removesuffix(user), user),
        "roles": {"user": user, "assistant": answer},
        "role_templates": _ROLE_TEMPLATES,
        "role_empty_sep": last.removeprefix(answer),
        "seps": ["", again.removesuffix(user)],
    }


def _common_end(first: str, second: str) -> str:
    length = 0
    while length < min(len(first), len(second)) and first[-1 - length] == second[-1 - length]:
        length += 1
    return first[len(first) - length :]


def _system(tokenizer: PreTrainedTokenizerFast, start: str, user: str) -> dict[str, str]:
    """How a system message is written, if leaving it out is the same as some default message."""
    one, two, _ = _MARKS
    fixed = {"system_template": "{system_message}", "system_message": start}
    try:
        given, _ = _between(_ask(tokenizer, [("system", one), ("user", two)]), two)
        before, after = _between(given, one)
    except UnsupportedError:
        return fixed
    after = after.removesuffix(user)
    if not (start.startswith(before) and start.endswith(after)) or len(start) < len(before + after):
        return fixed
    default = start[len(before) : len(start) - len(after)]
    return {"system_template": before + "{system_message}" + after, "system_message": default}


def _ask(tokenizer: PreTrainedTokenizerFast, messages: Messages) -> str:
    from jinja2 import TemplateError

    turns = [{"role": role, "content": content} for role, content in messages]
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    except TemplateError as error:
        roles = ", ".join(role for role, _ in messages)
        raise _refusal(f"it refuses a conversation of {roles} ({error})") from None


def _between(text: str, mark: str) -> tuple[str, str]:
    before, found, after = text.partition(mark)
    if not found or mark in after:
        raise _refusal("it changes, drops or repeats a message")
    return before, after


def _check(
    template: Mapping[str, Any], tokenizer: PreTrainedTokenizerFast, asked: PromptFormat
) -> None:
    """The same ids as the model's own template gives, on several conversations."""
    probes = _PROBES[:1] if asked.kind == "plain" else _PROBES
    for messages in probes:
        if asked.kind == "plain":
            text = asked.template.replace("{content}", messages[0][1])
            wanted = tokenizer(text, add_special_tokens=True)["input_ids"]
        else:
            wanted = tokenizer(_ask(tokenizer, messages), add_special_tokens=False)["input_ids"]
        if conversation_ids(template, tokenizer, messages) != wanted:
            raise _refusal(f"MLC would read other ids for a conversation of {len(messages)} turns")


def _refusal(reason: str) -> UnsupportedError:
    return UnsupportedError(f"the chat template has no form in MLC: {reason}")
