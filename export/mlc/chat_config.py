"""`mlc-chat-config.json`: what MLC's engine and apps know about a model, sizes, rope and text.

In: a base model's config object and tokenizer. Out: the file, in the form that mlc_llm 0.20 writes.
Rope values are taken from the config object: files of transformers 5 keep them under names that
MLC's own converter does not read, and it would then compute with 10,000 without a word.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.families import slides
from export.mlc.conversation import conv_template
from export.mlc.parameters import FAMILIES, mlc_name
from export.prompt_format import TOKENIZER_FILE, PromptFormat
from export.recipes import Recipe
from protos.artifacts import read_json, write_json
from protos.base_model import BaseModel
from protos.errors import UnsupportedError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

FILE = "mlc-chat-config.json"
VERSION = "0.1.0"
_PREFILL_CHUNK = 2048
_LLAMA3_ROPE = ("rope_type", "factor", "low_freq_factor", "high_freq_factor",
                "original_max_position_embeddings")  # fmt: skip
_SAMPLING = {"temperature": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
             "repetition_penalty": 1.0, "top_p": 1.0}  # fmt: skip


def check_mlc(base: BaseModel) -> None:
    """Refuse a base that MLC's model of its family would compute in another way.

    Raises:
        UnsupportedError: names everything at once.
    """
    config, problems = load_config(base), list[str]()
    family = FAMILIES.get(base.architecture)
    if family is None:
        known = ", ".join(FAMILIES)
        raise UnsupportedError(
            f"{base.directory}: {base.architecture} has no MLC export (known: {known})"
        )
    if slides(base.config):
        problems.append("sliding window attention")
    rope = dict(config.rope_parameters)
    kinds = ("default", "llama3") if family.model_type == "llama" else ("default",)
    if rope["rope_type"] not in kinds:
        problems.append(f"rope type {rope['rope_type']!r} (MLC has {' and '.join(kinds)})")
    if float(rope.get("partial_rotary_factor", 1.0)) != 1.0:
        problems.append("rotary embedding on a part of each head")
    if config.hidden_act != "silu":
        problems.append(f"activation {config.hidden_act!r} (MLC has silu)")
    if family.model_type == "llama" and (config.attention_bias or config.mlp_bias):
        problems.append("biases in Llama's linear layers")
    heads, width = config.num_attention_heads, _head_dim(config)
    if family.model_type == "qwen2" and heads * width != config.hidden_size:
        problems.append(f"{heads} heads of {width} in a hidden size of {config.hidden_size}")
    if problems:
        raise UnsupportedError(
            f"{base.directory}: MLC's {family.model_type} model cannot compute it: "
            f"{'; '.join(problems)}"
        )


def write_chat_config(
    directory: Path,
    base: BaseModel,
    tokenizer: PreTrainedTokenizerFast,
    asked: PromptFormat,
    recipe: Recipe,
    context_length: int,
) -> None:
    """Write `mlc-chat-config.json`; `tokenizer.json` is there already.

    Raises:
        UnsupportedError: the chat template has no form in MLC.
    """
    family = FAMILIES[base.architecture]
    chunk = min(context_length, _PREFILL_CHUNK)
    value = {
        "version": VERSION,
        "model_type": family.model_type,
        "quantization": mlc_name(recipe),
        "model_config": model_config(base, context_length, chunk),
        "vocab_size": base.config["vocab_size"],
        "active_vocab_size": len(tokenizer),
        "context_window_size": context_length,
        "sliding_window_size": -1,
        "prefill_chunk_size": chunk,
        "attention_sink_size": -1,
        "tensor_parallel_shards": 1,
        "pipeline_parallel_stages": 1,
        "disaggregation": False,
        **_SAMPLING,
        "tokenizer_files": [TOKENIZER_FILE],
        "tokenizer_info": tokenizer_info(directory / TOKENIZER_FILE),
        "conv_template": conv_template(tokenizer, asked),
        "pad_token_id": tokenizer.pad_token_id or 0,
        "bos_token_id": asked.bos_id if asked.bos_id is not None else asked.eos_ids[0],
        "eos_token_id": asked.eos_ids,
    }
    write_json(directory / FILE, value)


def with_lora(chat_config: Mapping[str, Any], ranks: Mapping[str, int]) -> dict[str, Any]:
    """The config of the same model with LoRA parameters: another model type, and its ranks."""
    model = {**chat_config["model_config"], "lora_ranks": dict(ranks)}
    return {**chat_config, "model_type": f"{chat_config['model_type']}_lora", "model_config": model}


def model_config(base: BaseModel, context_length: int, prefill_chunk: int) -> dict[str, Any]:
    """The fields of mlc_llm's own config class for this family, all of them given."""
    config, family = load_config(base), FAMILIES[base.architecture]
    rope = dict(config.rope_parameters)
    theta = rope["rope_theta"]
    common = {
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": config.num_hidden_layers,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": _head_dim(config),
        "rms_norm_eps": config.rms_norm_eps,
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": bool(config.tie_word_embeddings),
        "context_window_size": context_length,
        "prefill_chunk_size": prefill_chunk,
        "tensor_parallel_shards": 1,
        "max_batch_size": 1,
    }
    if family.model_type == "llama":
        scaling = {name: rope[name] for name in _LLAMA3_ROPE} if "factor" in rope else None
        return {**common, "position_embedding_base": theta, "rope_scaling": scaling,
                "pipeline_parallel_stages": 1, "disaggregation": False}  # fmt: skip
    qwen = {**common, "hidden_act": config.hidden_act, "rope_theta": theta, "dtype": "float32"}
    if family.model_type == "qwen3":
        return {**qwen, "attention_bias": bool(config.attention_bias), "weight_block_size": None}
    return qwen


def tokenizer_info(tokenizer_file: Path) -> dict[str, Any]:
    """How ids become text again, as MLC detects it in a `tokenizer.json`."""
    raw = read_json(tokenizer_file)
    decoders = _steps(raw.get("decoder"), "decoders")
    kinds = [decoder["type"] for decoder in decoders]
    prepends = {"type": "Prepend", "prepend": "\u2581"}
    strips = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    return {
        "token_postproc_method": "byte_level" if "ByteLevel" in kinds else "byte_fallback",
        "prepend_space_in_encode": prepends in _steps(raw.get("normalizer"), "normalizers"),
        "strip_space_in_decode": strips in decoders,
    }


def load_config(base: BaseModel) -> Any:
    """The config object of transformers, which fills in what the file leaves out."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(base.directory, local_files_only=True)


def read_chat_config(directory: Path) -> dict[str, Any]:
    """The config of an exported directory."""
    return read_json(directory / FILE)


def _head_dim(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _steps(part: Any, inner: str) -> list[dict[str, Any]]:
    """A step of a tokenizer, or the steps of its sequence."""
    if part is None:
        return []
    return list(part[inner]) if part["type"] == "Sequence" else [part]
