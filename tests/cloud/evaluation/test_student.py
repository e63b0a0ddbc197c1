"""Batched greedy answers against PEFT and a plain loop without a cache, one prompt at a time."""

from pathlib import Path

import pytest
import torch

from cloud.evaluation.student import Answer, Student
from protos.artifacts import create, open_artifact
from protos.base_model import (
    BaseModel,
    completion_ids,
    load_model,
    load_tokenizer,
    open_base,
    prompt_ids,
)

ROOM = 12
TEXTS = ["The mayor opens a bridge", "News", "Snow " * 20, "300 guests came on Sunday, and more"]


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> BaseModel:
    return open_base(str(tiny_base))


@pytest.fixture(scope="module")
def adapter(base: BaseModel, tmp_path_factory: pytest.TempPathFactory):
    """A PEFT adapter that changes what is said."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(5)
    peft = get_peft_model(
        load_model(base, torch.float32), LoraConfig(r=4, target_modules=["q_proj", "down_proj"])
    )
    for name, parameter in peft.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    path = tmp_path_factory.mktemp("adapter") / "adapter"
    with create(path, "Adapter", {}, {}) as draft:
        peft.save_pretrained(str(draft.path))
    return open_artifact(path, "Adapter")


def reference(model: torch.nn.Module, tokenizer, ids: list[int]) -> Answer:
    """The likeliest token again and again, the whole text through the model each time."""
    made: list[int] = []
    while len(made) < ROOM:
        with torch.no_grad():
            token = int(model(torch.tensor([ids + made])).logits[0, -1].argmax())
        if token == tokenizer.eos_token_id:
            break
        made.append(token)
    text = tokenizer.decode(made, skip_special_tokens=True).strip()
    return Answer(text, cut=len(made) == ROOM)


def test_batches_say_what_each_prompt_says_alone_and_an_adapter_goes_as_it_came(
    base: BaseModel, adapter
) -> None:
    from peft import PeftModel

    tokenizer = load_tokenizer(base)
    prompts = [prompt_ids(tokenizer, text) for text in TEXTS]
    plain = load_model(base, torch.float32)
    bare = [reference(plain, tokenizer, ids) for ids in prompts]
    peft = PeftModel.from_pretrained(load_model(base, torch.float32), str(adapter.path)).eval()
    adapted = [reference(peft, tokenizer, ids) for ids in prompts]
    assert all(one != other for one, other in zip(bare, adapted, strict=True))

    student = Student(base, torch.float32, 1)
    assert student.answers(prompts, ROOM, None) == bare
    assert student.answers(prompts, ROOM, adapter) == adapted
    assert student.answers(prompts, ROOM, None) == bare


def test_where_labels_are_asked_for_the_likeliest_token_that_goes_on_to_one_is_taken(
    base: BaseModel, adapter
) -> None:
    from peft import PeftModel

    tokenizer = load_tokenizer(base)
    labels = ("sci-fi", "romance", "romance and snow")
    prompts = [prompt_ids(tokenizer, text) for text in TEXTS]
    peft = PeftModel.from_pretrained(load_model(base, torch.float32), str(adapter.path)).eval()
    wanted: list[str] = []
    for ids in prompts:
        left, said = {text: completion_ids(tokenizer, text) for text in labels}, list[int]()
        while said not in left.values():
            with torch.no_grad():
                logits = peft(torch.tensor([ids + said])).logits[0, -1]
            said.append(max((row[len(said)] for row in left.values()), key=lambda t: logits[t]))
            left = {text: row for text, row in left.items() if row[: len(said)] == said}
        wanted += [text for text, row in left.items() if row == said]
    student = Student(base, torch.float32, 1)
    found = student.answers(prompts, ROOM, adapter, labels)
    assert found == [Answer(text, cut=False) for text in wanted]
    assert not {answer.text for answer in student.answers(prompts, ROOM, adapter)} & {*labels}


def test_an_answer_ends_where_the_model_stops(base: BaseModel) -> None:
    student = Student(base, torch.float32, 1)
    student.answers([[5, 6]], 1, None)
    stop = student.tokenizer.eos_token_id
    word = student.tokenizer("news", add_special_tokens=False)["input_ids"]
    assert student._answer([*word, stop, *word]) == Answer("news", cut=False)
    assert student._answer([stop]) == Answer("", cut=False)
    assert student._answer([*word, stop]) == Answer("news", cut=False)
    assert student._answer(word) == Answer("news", cut=True)
