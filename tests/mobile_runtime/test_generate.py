"""Answers equal transformers' greedy ones; sampling follows the softmax; every stop rule stops."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mobile_runtime.engine import SwapCost, open_engine
from mobile_runtime.generate import Finish, Sampling, choose, complete, generate
from mobile_runtime.prompt import open_prompt
from protos.errors import InputError


class Scripted:
    """An engine that says a given text, whatever it reads."""

    cost = SwapCost(0, 0, 0, 0, 0, 0)
    vocab_size = 400

    def __init__(self, script: Sequence[int], context_length: int = 200) -> None:
        self.script, self.context_length = list(script), context_length
        self.reset()

    def prefill(self, ids: Sequence[int]) -> np.ndarray:
        self.position += len(ids)
        return self._say()

    def decode(self, token: int) -> np.ndarray:
        self.position += 1
        return self._say()

    def reset(self) -> None:
        self.position, self._said = 0, 0

    def set_adapter(self, adapter: Path | None) -> SwapCost:
        raise NotImplementedError

    def _say(self) -> np.ndarray:
        logits = np.zeros(self.vocab_size, np.float32)
        logits[self.script[self._said % len(self.script)]] = 9.0
        self._said += 1
        return logits


@pytest.fixture(scope="module")
def prompt(world):
    return open_prompt(world.base)


@pytest.mark.parametrize("user", [None, "ada", "bo"])
def test_greedy_text_and_ids_equal_transformers(world, references, cache_dir, prompt, user) -> None:
    engine = open_engine(world.base, world.adapters.get(user), 1, cache_dir)
    ids = prompt.encode("Generate a headline: the mayor opens a bridge")
    text, finish = complete(engine, prompt, ids, Sampling(max_new_tokens=40))
    wanted = references[user].greedy(ids, 40)
    if 2 in wanted:
        wanted = wanted[: wanted.index(2) + 1]
    assert finish.ids == wanted
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(world.base_model)
    assert text == tokenizer.decode(wanted, skip_special_tokens=True).rstrip("\ufffd")


def test_the_same_seed_gives_the_same_text_and_another_one_another(
    world, cache_dir, prompt
) -> None:
    engine = open_engine(world.base, world.adapters["ada"], 1, cache_dir)
    ids = prompt.encode("a headline")

    def text(seed: int) -> str:
        config = Sampling(temperature=1.0, top_p=0.95, seed=seed, max_new_tokens=30)
        return complete(engine, prompt, ids, config)[0]

    assert text(3) == text(3)
    assert len({text(seed) for seed in range(4)}) > 1


@pytest.mark.parametrize(
    ("config", "kept"),
    [
        (Sampling(temperature=1.0), 6),
        (Sampling(temperature=0.5), 6),
        (Sampling(temperature=1.0, top_k=3), 3),
        (Sampling(temperature=1.0, top_p=0.6), 2),
        (Sampling(temperature=1.0, top_p=1e-9), 1),
    ],
)
def test_sampled_shares_equal_the_softmax(config, kept) -> None:
    logits = np.array([0.1, 2.0, -1.0, 1.5, 0.7, -0.3], np.float32)
    shares = np.exp(logits / config.temperature)
    shares[np.argsort(-shares)[kept:]] = 0
    shares /= shares.sum()
    rng = np.random.default_rng(0)
    draws = 4000
    counts = np.bincount([choose(logits, config, rng) for _ in range(draws)], minlength=6)
    assert np.abs(counts / draws - shares).max() < 0.025
    assert counts[shares == 0].sum() == 0


def test_temperature_zero_takes_the_likeliest() -> None:
    rng = np.random.default_rng(0)
    assert choose(np.array([0.0, 3.0, 2.9], np.float32), Sampling(), rng) == 1


SENTENCE = "one two three, STOP four"


def say(prompt, text: str, **config: Any) -> tuple[str, Finish]:
    engine = Scripted([*prompt.encode_raw(text), 2], config.pop("context_length", 200))
    return complete(engine, prompt, [5, 6], Sampling(**config))


def test_an_end_token_ends_it(prompt) -> None:
    text, finish = say(prompt, SENTENCE)
    assert (text, finish.reason, finish.ids[-1]) == (SENTENCE, "eos", 2)


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        (("STOP",), "one two three, "),
        (("two", "one two"), ""),
        ((" fou",), "one two three, STOP"),
        (("nowhere", "STOPX"), SENTENCE),
    ],
)
def test_a_stop_string_ends_it_and_is_left_out(prompt, stop, text) -> None:
    found, finish = say(prompt, SENTENCE, stop=stop)
    assert found == text
    assert finish.reason == ("eos" if text == SENTENCE else "stop")


def test_no_piece_ever_shows_the_beginning_of_a_stop_string(prompt) -> None:
    engine = Scripted([*prompt.encode_raw("ab STO STOP"), 2])
    parts = list(generate(engine, prompt, [5], Sampling(stop=("STOP",))))
    shown = ""
    for part in parts[:-1]:
        assert isinstance(part, str)
        shown += part
        assert not shown.endswith(("S", "ST")) or "STO " in shown
    assert shown == "ab STO "


def test_the_token_limit_ends_it(prompt) -> None:
    text, finish = say(prompt, SENTENCE, max_new_tokens=3)
    assert (finish.reason, finish.new_tokens) == ("length", 3)
    assert SENTENCE.startswith(text)


def test_the_end_of_the_context_ends_it(prompt) -> None:
    _, finish = say(prompt, SENTENCE, context_length=6)
    assert finish.reason == "context"
    assert finish.new_tokens == 5  # two prompt tokens, four read, and one that needs no room


def test_pieces_of_split_characters_are_whole(prompt) -> None:
    engine = Scripted([*prompt.encode_raw("你好 🙂!"), 2])
    parts = list(generate(engine, prompt, [5], Sampling()))
    assert "".join(p for p in parts if isinstance(p, str)) == "你好 🙂!"
    assert not any("\ufffd" in p for p in parts if isinstance(p, str))


def test_all_wrong_settings_are_named_at_once() -> None:
    with pytest.raises(InputError, match=r"temperature.*top-p.*top-k.*seed.*max-new.*stop string"):
        Sampling(-1, 0, -1, -1, 0, ("",))
