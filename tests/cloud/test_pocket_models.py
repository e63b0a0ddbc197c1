"""The bundled models: small, whole, able to encode any text, and better than simple guesses."""

import json
from collections import Counter
from typing import Any

import pytest

from cloud.pocket import measure
from cloud.pocket.world import BUNDLED, DEV_USERS, TRAIN_USERS, sample_items, sample_user
from cloud.tasks import TASKS

MODELS = measure.MODELS
tasks = pytest.mark.parametrize("task", BUNDLED)
both = pytest.mark.parametrize("name", ["base", "teacher"])
TEXTS = [
    "Plain words.",
    "  two  spaces\tand a tab\nand a line ",
    "个性化的小模型在手机上运行。",
    "نموذج لغوي صغير على الهاتف",
    "Naïve café 👩‍👩‍👧 🏳️‍🌈 e\u0301",
    'def f(x: int) -> str:\n    return f"{x!r:>10}"\n',
    "\x00\x7f\u200b\U0010ffff",
]


@pytest.fixture(scope="module")
def models() -> measure.Models:
    return measure.load_models()


def _held_out(task: str, count: int) -> list[dict[str, str]]:
    """One held-out item of each of the first `count` development users."""
    return [sample_items(sample_user(task, n), 1, "questions")[0] for n in DEV_USERS[:count]]


def _mean(task: str, answers: list[str], items: list[dict[str, str]]) -> float:
    scored = measure.item_scores(task, answers, [item["output"] for item in items])
    return sum(row["main"] for row in scored) / len(scored)


def test_weights_stay_small_and_are_bfloat16() -> None:
    from safetensors.torch import load_file

    files = [MODELS / name / "model.safetensors" for name in ("base", "teacher")]
    assert sum(file.stat().st_size for file in files) <= 36e6
    for file, limit in zip(files, (4e6, 12e6), strict=True):
        loaded = load_file(file).values()
        assert {str(tensor.dtype) for tensor in loaded} == {"torch.bfloat16"}
        assert sum(tensor.numel() for tensor in loaded) <= limit


@both
def test_any_text_comes_back_from_the_tokenizer(models: measure.Models, name: str) -> None:
    tokenizer = getattr(models, f"{name}_tokenizer")
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_teacher_prompts_begin_with_bos_and_chats_do_not(models: measure.Models) -> None:
    teacher, base = models.teacher_tokenizer, models.base_tokenizer
    assert teacher("a")["input_ids"][0] == teacher.bos_token_id
    assert base("a")["input_ids"] == base("a", add_special_tokens=False)["input_ids"]
    assert teacher.get_vocab() == base.get_vocab()


def test_the_generation_prompt_is_a_strict_prefix_of_the_chat(models: measure.Models) -> None:
    tokenizer = models.base_tokenizer
    question = {"role": "user", "content": "A question?"}
    chat = [question, {"role": "assistant", "content": "An answer."}]
    prompt = tokenizer.apply_chat_template([question], add_generation_prompt=True, tokenize=False)
    whole = tokenizer.apply_chat_template(chat, tokenize=False)
    assert whole == f"{prompt}An answer.<|end|>"
    prompt_ids = tokenizer(prompt)["input_ids"]
    whole_ids = tokenizer(whole)["input_ids"]
    assert whole_ids[: len(prompt_ids)] == prompt_ids
    assert whole_ids[-1] == tokenizer.eos_token_id


@both
def test_configs_agree_with_the_tokenizer(models: measure.Models, name: str) -> None:
    model: Any = getattr(models, name)
    tokenizer = getattr(models, f"{name}_tokenizer")
    saved = json.loads((MODELS / name / "generation_config.json").read_text("utf-8"))
    assert model.config.vocab_size == len(tokenizer)
    assert saved["eos_token_id"] == model.config.eos_token_id == tokenizer.eos_token_id
    assert saved["pad_token_id"] == model.config.pad_token_id == tokenizer.pad_token_id
    assert not saved.get("do_sample", False)


def test_the_base_scores_reviews_better_than_any_constant(models: measure.Models) -> None:
    items = _held_out("LaMP_3", 150)
    answers = measure.ask_base(models, models.base, "LaMP_3", [item["input"] for item in items])
    assert set(answers) <= set("12345")
    constants = [_mean("LaMP_3", [score] * len(items), items) for score in "12345"]
    assert _mean("LaMP_3", answers, items) > max(constants) + 0.1


def test_the_base_writes_better_headlines_than_simple_guesses(models: measure.Models) -> None:
    """Against the most common headline words, and against the article's first ten words."""
    items = _held_out("LaMP_4", 60)
    answers = measure.ask_base(models, models.base, "LaMP_4", [item["input"] for item in items])
    words: Counter[str] = Counter()
    for number in TRAIN_USERS[:500]:
        words.update(sample_items(sample_user("LaMP_4", number), 1)[0]["output"].lower().split())
    common = " ".join(word for word, _ in words.most_common(7))
    first = [" ".join(item["input"].split()[:10]) for item in items]
    ours = _mean("LaMP_4", answers, items)
    assert ours > _mean("LaMP_4", [common] * len(items), items) + 0.1
    assert ours > _mean("LaMP_4", first, items) + 0.1


@tasks
def test_the_teacher_in_context_knows_the_user_better_than_the_base(
    models: measure.Models, task: str
) -> None:
    base: list[float] = []
    teacher: list[float] = []
    for number in DEV_USERS[:6]:
        user = sample_user(task, number)
        items = sample_items(user, 10, "questions")
        texts = [item["input"] for item in items]
        profile = sample_items(user, 12)
        base.append(_mean(task, measure.ask_base(models, models.base, task, texts), items))
        teacher.append(_mean(task, measure.ask_teacher(models, task, profile, texts), items))
    assert sum(teacher) / 6 > sum(base) / 6 + 0.1


@tasks
def test_the_teacher_writes_new_items_that_parse(models: measure.Models, task: str) -> None:
    user = sample_user(task, DEV_USERS[0])
    items = sample_items(user, 12)
    made = measure.sample_teacher(models, task, items, 12, seed=3)
    assert len(made) >= 10
    assert not {item["input"] for item in made} & {item["input"] for item in items}
    assert TASKS[task].labels == () or {item["output"] for item in made} <= set("12345")


@pytest.mark.parametrize(
    "text",
    [
        "Review: Fine.\nScore: 6\n\n",
        "Review: Fine.\nScore: 4",
        "Review: \nScore: 4\n\n",
        "Article: Fine.\nHeadline: 4\n\n",
    ],
)
def test_a_shot_of_the_wrong_form_is_refused(text: str) -> None:
    assert measure.parse_shot("LaMP_3", text) is None


def test_a_shot_is_parsed_back() -> None:
    shot = TASKS["LaMP_4"].shot("Some news.", "A headline")
    assert measure.parse_shot("LaMP_4", shot + "Article: more") == {
        "input": "Some news.",
        "output": "A headline",
    }
