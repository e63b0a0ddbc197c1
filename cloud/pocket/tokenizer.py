"""The tokenizer of both pocket models: byte-level BPE, trained on the pocket world.

Any Unicode text encodes and decodes to itself, since all 256 bytes are tokens. The base's tokenizer
carries the chat template; the teacher's puts BOS in front by itself.
"""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from cloud.pocket.world import TRAIN_USERS, WORLDS, question_text, sample_items, sample_user
from cloud.tasks import TASKS

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PAD, BOS, EOS, USER, ASSISTANT = "<|pad|>", "<|bos|>", "<|end|>", "<|user|>", "<|assistant|>"
SPECIAL_TOKENS = [PAD, BOS, EOS, USER, ASSISTANT]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def corpus(users: int) -> Iterator[str]:
    """Texts of `users` train users, in all forms that the models see."""
    rng = random.Random("pocket tokenizer")
    for number in rng.sample(TRAIN_USERS, users):
        for name in WORLDS:
            task, user = TASKS[name], sample_user(name, number)
            for item in sample_items(user, 3):
                yield task.shot(item["input"], item["output"])
                yield item["output"]
            for item in sample_items(user, 1, "questions"):
                yield question_text(task, item["input"])
        yield TASKS[rng.choice(list(WORLDS))].query("")


def train_tokenizer(size: int, users: int) -> "Tokenizer":
    """Byte-level BPE with `size` tokens; special tokens have the ids 0 to 4."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(users), trainer)
    return tokenizer


def save_tokenizer(tokenizer: "Tokenizer", directory: Path, *, chat: bool) -> None:
    """Write tokenizer.json and tokenizer_config.json; `chat`: the base's form."""
    from tokenizers import Tokenizer, processors
    from transformers import PreTrainedTokenizerFast

    copy = Tokenizer.from_str(tokenizer.to_str())
    if not chat:
        copy.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", special_tokens=[(BOS, copy.token_to_id(BOS))]
        )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=copy,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        clean_up_tokenization_spaces=False,
    )
    if chat:
        fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(str(directory), save_jinja_files=False)
