"""MLC's conversation template, held against the chat templates of several families."""

import pytest
from transformers import PreTrainedTokenizerFast

from export.mlc.conversation import conv_template, conversation_ids, rendered
from export.prompt_format import PromptFormat
from protos.base_model import PLAIN_TEMPLATE
from protos.errors import UnsupportedError

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHATML_DEFAULT_SYSTEM = (
    "{% if messages[0].role != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}" + CHATML
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}"
    "{{ m.content | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
THINKING_OFF = CHATML.replace(
    "{{ '<|im_start|>assistant\n' }}", "{{ '<|im_start|>assistant\n<think>\n\n</think>\n\n' }}"
)
TEMPLATES = {
    "chatml": CHATML,
    "chatml-default-system": CHATML_DEFAULT_SYSTEM,
    "llama3": LLAMA3,
    "thinking-off": THINKING_OFF,
}
CONVERSATIONS = [
    [("user", "Hi")],
    [("user", "One?"), ("assistant", "Two."), ("user", "Three?")],
    [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "e {x} %")],
    [("user", "日本語で答えて 🙂")],
]


@pytest.fixture(scope="module")
def tokenizer(tiny_base) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(tiny_base)


def chat(tokenizer, template: str) -> PromptFormat:
    tokenizer.chat_template = template
    return PromptFormat("chat", template, {}, add_special_tokens=False, bos_id=1, eos_ids=[2])


def as_transformers(tokenizer, messages) -> list[int]:
    turns = [{"role": role, "content": content} for role, content in messages]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("messages", CONVERSATIONS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_same_ids_as_the_models_own_template(tokenizer, name, messages):
    template = conv_template(tokenizer, chat(tokenizer, TEMPLATES[name]))
    assert conversation_ids(template, tokenizer, messages) == as_transformers(tokenizer, messages)


@pytest.mark.parametrize("name", ["chatml-default-system"])
def test_a_system_message_takes_the_place_of_the_default_one(tokenizer, name):
    messages = [("system", "Answer in verse."), ("user", "Hi")]
    template = conv_template(tokenizer, chat(tokenizer, TEMPLATES[name]))
    assert template["system_message"] == "You are a helpful assistant."
    assert conversation_ids(template, tokenizer, messages) == as_transformers(tokenizer, messages)


def test_a_plain_base_is_asked_with_what_its_tokenizer_adds(tokenizer, tmp_path):
    from tokenizers.processors import TemplateProcessing

    tokenizer.chat_template = None
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    asked = PromptFormat(
        "plain", PLAIN_TEMPLATE, {}, add_special_tokens=True, bos_id=1, eos_ids=[2]
    )
    template = conv_template(tokenizer, asked)
    assert template["system_prefix_token_ids"] == [1]
    ids = conversation_ids(template, tokenizer, [("user", "Hello")])
    assert ids == tokenizer("Hello\n")["input_ids"]
    assert ids[0] == 1
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A <|end|>", special_tokens=[("<s>", 1), ("<|end|>", 2)]
    )
    with pytest.raises(UnsupportedError, match="other ids"):
        conv_template(tokenizer, asked)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (CHATML.replace("m.content +", "m.content | upper +"), "changes, drops or repeats"),
        (CHATML.replace("m.role + '\n' + m.content", "loop.index ~ m.role + '\n' + m.content"),
         "stands before an answer differs"),
        ("{% if messages | length > 1 %}{{ raise_exception('one turn only') }}{% endif %}" + CHATML,
         "refuses a conversation of user, assistant, user"),
    ],
)  # fmt: skip
def test_what_the_scheme_cannot_express_is_refused(tokenizer, template, reason):
    with pytest.raises(UnsupportedError, match=reason):
        conv_template(tokenizer, chat(tokenizer, template))


def test_rendering_follows_mlcs_scheme():
    """Worked by hand after the docstring of MLC's Conversation."""
    template = {
        "system_template": "<sys>{system_message}</sys>", "system_message": "S",
        "roles": {"user": "U:", "assistant": "A:"}, "seps": ["|", "#"], "role_empty_sep": "?",
    }  # fmt: skip
    text = rendered(template, [("user", "1"), ("assistant", "2"), ("user", "3")])
    assert text == "<sys>S</sys>U:1|A:2#U:3|A:?"
