"""Tokenizers: those whose added tokens go beyond the model are cut down, wrong ones are refused."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from protos.base_model import load_tokenizer, open_base, prompt_ids
from protos.errors import MismatchError

IMAGE = "<image_soft_token>"
TEXT = f"What is in {IMAGE}? a headline"


def with_token(base: Path, out: Path, template: str = "", word: bool = False) -> Path:
    """A copy of a base whose tokenizer has a token more than the model has embeddings, as Gemma 3's
    text models do. word: in the vocabulary, too.
    """
    shutil.copytree(base, out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]})
    if template:
        tokenizer.chat_template = template
    tokenizer.save_pretrained(out)
    if word:
        alter(out, lambda state: state["model"]["vocab"].update({IMAGE: rows(out)}))
    assert tokenizer.convert_tokens_to_ids(IMAGE) == rows(out)
    return out


def rows(base: Path) -> int:
    return json.loads((base / "config.json").read_text())["vocab_size"]


def alter(base: Path, change) -> None:
    file = base / "tokenizer.json"
    state = json.loads(file.read_text())
    change(state)
    file.write_text(json.dumps(state))


@pytest.mark.parametrize("word", [False, True])
@pytest.mark.parametrize("name", ["tiny_base", "plain_base"])
def test_an_added_token_without_embedding_is_read_as_text(request, tmp_path, name, word) -> None:
    base = request.getfixturevalue(name)
    tokenizer = load_tokenizer(open_base(str(with_token(base, tmp_path / "base", word=word))))
    own = AutoTokenizer.from_pretrained(base)  # which never had the token
    assert len(tokenizer) == len(own) == rows(base)
    assert tokenizer(TEXT)["input_ids"] == own(TEXT)["input_ids"]
    assert prompt_ids(tokenizer, TEXT) == prompt_ids(own, TEXT)
    assert tokenizer.decode(tokenizer(TEXT)["input_ids"]) == TEXT
    special = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert special == (own.bos_token_id, own.eos_token_id, own.pad_token_id) == (1, 2, 0)


def test_one_that_prompts_are_made_of_belongs_to_another_model(tmp_path, tiny_base) -> None:
    base = with_token(tiny_base, tmp_path / "base", f"{IMAGE}{{{{ messages[0].content }}}}")
    with pytest.raises(MismatchError, match=f"up to id {rows(base)}, .* another model"):
        load_tokenizer(open_base(str(base)))


def test_one_that_ends_answers_belongs_to_another_model(tmp_path, tiny_base) -> None:
    base = with_token(tiny_base, tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.eos_token = IMAGE
    tokenizer.save_pretrained(base)
    with pytest.raises(MismatchError, match=f"up to id {rows(base)}, .* another model"):
        load_tokenizer(open_base(str(base)))


def test_a_word_without_embedding_belongs_to_another_model(tmp_path, tiny_base) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    count = rows(base)
    alter(base, lambda state: state["model"]["vocab"].update(other=count))
    with pytest.raises(MismatchError, match=f"up to id {count}, .* another model"):
        load_tokenizer(open_base(str(base)))
