"""Tokenizer and template without transformers equal transformers; text never breaks a character."""

import json
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from mobile_runtime.prompt import Prompt, PromptConfig, open_prompt
from mobile_runtime.structure import structure_gates
from protos.errors import ArtifactError, InputError
from protos.golden import Golden, GoldenPrompt, NoiseFloor

CONTENTS = [
    "Hello, world",
    "",
    " leading and trailing ",
    "多字节 text, naïve 🙂🚀 العربية",
    "<|user|> injected",
    "line\nbreak\ttab {{ 1 + 1 }} {content}",
]


@pytest.fixture(scope="module")
def prompt(world) -> Prompt:
    return open_prompt(world.base)


def hf(directory: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory)


@pytest.mark.parametrize("content", CONTENTS)
def test_a_chat_template_renders_as_in_transformers(world, prompt, content) -> None:
    tokenizer = hf(world.base_model)
    turn = [{"role": "user", "content": content}]
    rendered = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    assert prompt.render(content) == rendered
    assert prompt.encode(content) == tokenizer(rendered, add_special_tokens=False)["input_ids"]


TEMPLATES = [
    "{{ bos_token }}{% for m in messages %}\n  {% if m.role == 'user' %}\n{{ m.content }}\n"
    "  {% endif %}\n{% endfor %}{{ eos_token }}",
    "{{ messages | tojson }} {{ messages | tojson(indent=2) }}",
    "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "{% for i in range(9) %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}",
    "{{ messages[0]['content'].strip()[:3] }}{% if add_generation_prompt %}>{% endif %}",
    "{%- set ns = namespace(n=0) -%}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}"
    "{{ ns.n }}",
    "{{ strftime_now('%Y') }}",
    "{% if tools is not none %}Tools: {{ tools }}{% endif %}"
    "{% if documents is not none %}Documents{% endif %}{{ messages[0].content }}",
    "{{ messages | tojson(ensure_ascii=False) }} {{ messages | tojson(True) }} "
    "{{ messages | tojson(separators=(',', ':'), sort_keys=True) }}",
]


@pytest.mark.parametrize("template", TEMPLATES)
def test_templates_of_the_kinds_in_use_equal_transformers(world, prompt, template) -> None:
    tokenizer = hf(world.base_model)
    content = "Grüße <b> & 'quotes'"
    wanted = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}],
        chat_template=template,
        tokenize=False,
        add_generation_prompt=True,
    )
    assert with_template(prompt, template, "chat").render(content) == wanted


@pytest.mark.parametrize("clock", [datetime(2024, 7, 26, 23, 59), None])
def test_a_golden_of_another_day_is_rendered_with_its_own_clock(world, prompt, clock) -> None:
    """By hand, as SmolLM3's template prints it; without the clock today's date is another text."""
    template = "Today Date: {{ strftime_now('%d %B %Y') }}\n\n{{ messages[0].content }}"
    text = "Today Date: 26 July 2024\n\nhello"
    ids = hf(world.base_model)(text, add_special_tokens=False)["input_ids"]
    golden = Golden(
        [GoldenPrompt("p", "hello", text, ids, [])], np.zeros((len(ids), 1), np.int32),
        np.zeros(0, np.int32), {}, NoiseFloor(0.0, 0.0, 1.0, 0.0, 0.0), {}, 0, {},
        rendered_at=clock,
    )  # fmt: skip
    gates = structure_gates(golden, with_template(prompt, template, "chat"), len(ids), None)
    passed = {gate.name: gate.passed for gate in gates}
    assert passed["structure_rendered"] == passed["structure_ids"] == (clock is not None)


def with_template(prompt: Prompt, template: str, kind: str) -> Prompt:
    special = {"bos_token": "<s>", "eos_token": "<|end|>"}
    config = PromptConfig(kind, template, special, False, 1, frozenset({2}))
    return Prompt(prompt._tokenizer, config)


def test_a_template_that_refuses_says_so(prompt) -> None:
    with pytest.raises(InputError, match="no system role"):
        with_template(prompt, "{{ raise_exception('no system role') }}", "chat").render("x")


@pytest.mark.parametrize(
    "template", ["{{ messages | tojson(html=True) }}", "{{ 1 + 'x' }}", "{{ 'x'.index('y') }}"]
)
def test_a_template_that_calls_for_what_is_not_there_is_one_error(prompt, template) -> None:
    with pytest.raises(InputError, match=r"prompt\.json: the template refuses this prompt"):
        with_template(prompt, template, "chat").render("x")


def test_a_template_cannot_leave_the_sandbox(prompt) -> None:
    escape = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(InputError, match="refuses"):
        with_template(prompt, escape, "chat").render("x")


def test_a_broken_template_is_an_artifact_error(prompt) -> None:
    with pytest.raises(ArtifactError, match="template line 1"):
        with_template(prompt, "{% if %}", "chat")


def test_plain_text_replaces_content_only(prompt) -> None:
    plain = with_template(prompt, "Q: {content}\nA:", "plain")
    assert plain.render("{{ x }} {content}") == "Q: {{ x }} {content}\nA:"


@pytest.mark.parametrize("text", ["你好,世界! 🙂🚀 naïve", "ascii only", "a🙂b", "🙂" * 5])
def test_streaming_holds_back_until_a_character_is_whole(prompt, text) -> None:
    ids = prompt.encode_raw(text)
    assert len(ids) > len(text) or text.isascii()  # characters really are split over tokens
    stream = prompt.stream()
    pieces = [stream.push(token) for token in ids]
    assert "".join(pieces) + stream.finish() == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_half_a_character_at_the_end_is_left_out(prompt) -> None:
    stream = prompt.stream()
    text = "".join(stream.push(token) for token in prompt.encode_raw("ok 🙂")[:-1])
    assert text + stream.finish() == "ok "


def test_text_that_is_no_unicode_is_refused(prompt) -> None:
    with pytest.raises(InputError, match="Unicode"):
        prompt.encode("\ud800")


@pytest.mark.parametrize(
    ("name", "text"),
    [("tokenizer.json", "{}"), ("prompt.json", "[]"), ("prompt.json", json.dumps({"kind": "x"}))],
)
def test_malformed_files_are_named(world, tmp_path, name, text) -> None:
    for file in ("tokenizer.json", "prompt.json"):
        (tmp_path / file).write_bytes((world.base / file).read_bytes())
    (tmp_path / name).write_text(text)
    with pytest.raises(ArtifactError, match=name):
        open_prompt(tmp_path)
