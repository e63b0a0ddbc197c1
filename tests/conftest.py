"""Fixtures that every stage's tests share: a tiny random base model with a real tokenizer."""

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # before torch loads; see pocketune.py
# A shell ignores it for what it starts in the background, and every child inherits that.
signal.signal(signal.SIGINT, signal.default_int_handler)

POSTGRESQL_BINS = sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin")), reverse=True)
TEXTS = [
    "The quick brown fox jumps over the lazy dog. Generate a headline for the following article:",
    "What is the score of the following review on a scale of 1 to 5? 0 1 2 3 4 5 6 7 8 9",
    "Mayor opens new bridge in Vienna; 300 guests came on Sunday, and the news spread fast.",
]
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """What shares lowered bases and servers, a folder below `tests/`, stays in one process.

    xdist's own groups, which are marks, do not reach its scheduler under pytest 9.2.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFolder(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "/".join(nodeid.partition("::")[0].split("/")[1:-1][:2])

    return ByFolder(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """No slow test begins after `POCKETUNE_SLOW_UNTIL`, in seconds since 1970: CI has a limit."""
    until = os.environ.get("POCKETUNE_SLOW_UNTIL")
    if until and time.time() > float(until) and item.get_closest_marker("slow"):
        pytest.skip("CI has no time left for slow tests")


@pytest.fixture(scope="session", autouse=True)
def _lowerings_of_this_session(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What commands lower is kept for this session only, never the person's own cache.

    CI has one for its whole run.
    """
    if not {"CI", "POCKETUNE_CACHE_DIR"} <= os.environ.keys():
        os.environ["POCKETUNE_CACHE_DIR"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def program() -> Callable[[str, str], str]:
    """`program(name, advice)`: its path; a missing one fails in CI and skips elsewhere."""

    def find(name: str, advice: str) -> str:
        found = shutil.which(name, path=os.pathsep.join([*POSTGRESQL_BINS, os.environ["PATH"]]))
        if not found:
            (pytest.fail if os.environ.get("CI") else pytest.skip)(f"no {name} here: {advice}")
        return str(found)

    return find


def make_tokenizer(directory: Path, chat: bool) -> int:
    """A byte-level BPE of a few hundred tokens; returns the size of its vocabulary."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=352,
        special_tokens=["<pad>", "<s>", "<|end|>", "<|user|>", "<|assistant|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="<|end|>"
    )
    if chat:
        fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(directory)
    return len(fast)


def make_base(directory: Path, chat: bool = True, seed: int = 0, context: int = 256) -> Path:
    """A random two-layer Llama in Hugging Face form."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=make_tokenizer(directory, chat), hidden_size=64, intermediate_size=128,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=context, tie_word_embeddings=False, eos_token_id=2, bos_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def chatty_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with room for a teacher's long prompts."""
    return make_base(tmp_path_factory.mktemp("models") / "chatty", context=2048)


@pytest.fixture(scope="session")
def plain_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without a chat template."""
    return make_base(tmp_path_factory.mktemp("models") / "plain", chat=False, seed=1)
