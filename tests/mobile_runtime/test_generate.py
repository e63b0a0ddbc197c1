"""Answers equal transformers' greedy ones; sampling follows the softmax; every stop rule stops."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cloud.profiles import write_rows
from mobile_runtime.engine import SwapCost, open_engine
from mobile_runtime.generate import Finish, Sampling, choose, complete, generate
from mobile_runtime.parity import measure_parity
from mobile_runtime.prompt import open_prompt
from protos.artifacts import create, open_artifact
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


def test_a_base_whose_tokenizer_has_a_token_too_many_is_trained_exported_and_run(
    tiny_base, tmp_path, cache_dir
) -> None:
    """As Gemma 3's text models; what the user says may even name the token."""
    from transformers import AutoTokenizer

    from cloud.train import TrainConfig, train
    from export.adapter import export_adapter
    from export.base import export_base
    from protos.base_model import open_base

    image = "<image_soft_token>"
    base, said = tmp_path / "base", f"a headline for {image} please"
    shutil.copytree(tiny_base, base)
    own = AutoTokenizer.from_pretrained(base)
    more = AutoTokenizer.from_pretrained(base)
    more.add_special_tokens({"additional_special_tokens": [image]})
    more.save_pretrained(base)
    with create(tmp_path / "dataset", "Dataset", {"profile": "p"}, {}) as draft:
        for name in ("train.jsonl", "valid.jsonl"):
            write_rows(draft.path / name, [{"prompt": said, "completion": f"{image} opens"}] * 2)
    config = TrainConfig(epochs=1, batch_size=2, dtype="float32", rank=2)
    dataset = open_artifact(tmp_path / "dataset")
    adapter = train(dataset, open_base(str(base)), tmp_path / "adapter", config, threads=1)
    lowered = export_base(
        str(base), tmp_path / "lowered", "executorch-xnnpack-fp32", rank=2, context_length=128,
        prompts=[said], threads=1,
    )  # fmt: skip
    bundle = export_adapter(
        adapter.path, lowered.path, tmp_path / "bundle", base=str(base), prompts=[said], threads=1
    )  # fmt: skip
    asked = open_prompt(lowered.path)
    ids = asked.encode(said)
    assert ids == own(f"<|user|>{said}<|assistant|>", add_special_tokens=False)["input_ids"]
    engine = open_engine(lowered.path, bundle.path, 1, cache_dir)
    assert complete(engine, asked, ids, Sampling(max_new_tokens=4))[1].ids
    assert measure_parity(lowered.path, bundle.path, 1, cache_dir=cache_dir).passed


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


CHOICES = ("a bridge", "a bridge opens", "snow")


@pytest.mark.parametrize("user", [None, "ada", "bo"])
def test_among_choices_it_goes_on_with_the_likeliest_token_of_one(
    world, references, cache_dir, prompt, user
) -> None:
    engine = open_engine(world.base, world.adapters.get(user), 1, cache_dir)
    ids = prompt.encode("What is it about?")
    assert complete(engine, prompt, ids, Sampling(max_new_tokens=20))[0] not in CHOICES
    text, finish = complete(engine, prompt, ids, Sampling(choices=CHOICES))
    left, said = [[*prompt.encode_answer(choice), 2] for choice in CHOICES], list[int]()
    while said not in left:
        logits = references[user].logits([*ids, *said])[-1]
        said.append(max({row[len(said)] for row in left}, key=lambda token: logits[token]))
        left = [row for row in left if row[: len(said)] == said]
    assert (finish.ids, finish.reason) == (said, "eos")
    assert text in CHOICES


def test_choices_are_also_drawn(world, cache_dir, prompt) -> None:
    engine = open_engine(world.base, None, 1, cache_dir)
    ids = prompt.encode("What is it about?")
    drawn = {
        complete(engine, prompt, ids, Sampling(temperature=2.0, seed=seed, choices=CHOICES))[0]
        for seed in range(20)
    }
    assert drawn <= set(CHOICES)
    assert len(drawn) > 1


def test_a_choice_that_does_not_fit_the_answer_is_refused(prompt) -> None:
    count = len(prompt.encode_answer("snow"))
    with pytest.raises(InputError, match=f"'snow' has {count} tokens and an end"):
        say(prompt, SENTENCE, choices=("snow",), max_new_tokens=count)
    text, finish = say(prompt, SENTENCE, choices=("snow",), max_new_tokens=count + 1)
    assert (text, finish.reason) == ("snow", "eos")


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
    with pytest.raises(InputError, match=r"temperature.*top-p.*top-k.*seed.*max-new.*stop.*choice"):
        Sampling(-1, 0, -1, -1, 0, ("",), ("",))
