"""Tokenizers: those whose added tokens go beyond the model are cut down, wrong ones are refused.

Contexts: with longrope they end where transformers changes its factors.
"""

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from protos.base_model import BaseModel, load_tokenizer, open_base, prompt_ids, skeleton
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


FACTORS = {"short_factor": [1.1] * 8, "long_factor": [2.0] * 8}


def longrope(model_type: str, key: str, top: int | None, **rope) -> dict:
    """A config that names its original length beside its rope's parameters (`top`), or in them."""
    config = {
        "model_type": model_type, "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 32,
        "num_hidden_layers": 1, "max_position_embeddings": 8192, "pad_token_id": 0,
        "rope_theta": 10000.0, key: FACTORS | rope,
    }  # fmt: skip
    return config | ({"original_max_position_embeddings": top} if top else {})


@pytest.mark.parametrize(
    "config",
    [
        longrope("phi3", "rope_scaling", 2048, type="longrope"),
        longrope("phi3", "rope_scaling", 2048, type="yarn"),
        longrope("phi3", "rope_scaling", 2048, type="su", original_max_position_embeddings=2048),
        longrope("phi3", "rope_parameters", 2048, rope_type="longrope"),
        longrope("phi3", "rope_parameters", None, rope_type="longrope"),
        longrope("llama", "rope_scaling", 2048, type="longrope"),
        longrope(
            "llama", "rope_parameters", None, rope_type="longrope",
            original_max_position_embeddings=1024,
        ),
        longrope("llama", "rope_parameters", None, rope_type="longrope"),
    ],
)  # fmt: skip
def test_a_context_ends_where_transformers_changes_longropes_factors(tmp_path, config) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    base = BaseModel(tmp_path, "base", "0" * 64, config)
    understood = skeleton(base).config.rope_parameters
    assert understood["rope_type"] == "longrope"
    assert [rope["rope_type"] for rope in base.ropes if rope["rope_type"]] == ["longrope"]
    assert base.max_context == understood["original_max_position_embeddings"]
    assert base.max_positions == 8192


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
