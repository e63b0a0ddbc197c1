"""llama.cpp as a peer of benchmarks/inference.py, in the Python that benchmarks/peers.py made.

`PYTHON -m benchmarks.llama convert JSON` writes, from a Llama in safetensors (float32) and a PEFT
adapter on it, what llama.cpp reads: the base as GGUF with all matrices in Q4_0, and the adapter as
GGUF in float32, as llama.cpp's own converter does by default; and the weights that Q4_0 stands for
under Hugging Face's names, so that its answers can be checked. `PYTHON -m benchmarks.llama llama
JSON` reads tokens, see benchmarks/runners.py. The vocabulary has no tokenizer: ids go in.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.quants import dequantize, quantize
from llama_cpp import llama_cpp
from safetensors.numpy import load_file, save_file

from benchmarks.runners import serve

CONTEXT = 512
_ARCHITECTURE = gguf.MODEL_ARCH.LLAMA
_Q4_0 = gguf.GGMLQuantizationType.Q4_0
_PEFT_PREFIX = "base_model.model."
_ERROR = 4
"""llama.cpp's log level."""


def convert(base: str, adapter: str, out: str) -> None:
    """Write `base.gguf`, `adapter.gguf` and `dequantized.safetensors` into the folder `out`."""
    config = json.loads((Path(base) / "config.json").read_text("utf-8"))
    weights = load_file(Path(base) / "model.safetensors")
    home = Path(out)
    home.mkdir(parents=True)
    writer = gguf.GGUFWriter(home / "base.gguf", gguf.MODEL_ARCH_NAMES[_ARCHITECTURE])
    _write_facts(writer, config)
    shipped: dict[str, np.ndarray] = {}
    for name, array in weights.items():
        shipped[name] = _write_weight(writer, name, array.astype(np.float32), config)
    _finish(writer)
    save_file(shipped, home / "dequantized.safetensors")
    _write_adapter(Path(adapter), home / "adapter.gguf", config)


def _write_facts(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(hidden)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config.get("head_dim") or hidden // heads)
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    writer.add_tokenizer_model("none")


def _write_weight(
    writer: gguf.GGUFWriter, name: str, array: np.ndarray, config: dict[str, Any]
) -> np.ndarray:
    """Write one tensor of the base; gives back what it stands for there."""
    theirs = _their_name(name, config)
    if array.ndim == 1:
        writer.add_tensor(theirs, array)
        return array
    packed = quantize(_permuted(name, array, config), _Q4_0)
    writer.add_tensor(theirs, packed, raw_dtype=_Q4_0)
    return np.ascontiguousarray(_permuted(name, dequantize(packed, _Q4_0), config, back=True))


def _write_adapter(adapter: Path, out: Path, config: dict[str, Any]) -> None:
    chosen = json.loads((adapter / "adapter_config.json").read_text("utf-8"))
    writer = gguf.GGUFWriter(out, gguf.MODEL_ARCH_NAMES[_ARCHITECTURE])
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(chosen["lora_alpha"]))
    for name, array in load_file(adapter / "adapter_model.safetensors").items():
        module, _, half = name.removeprefix(_PEFT_PREFIX).partition(".lora_")
        weight = f"{module}.weight"
        values = array.astype(np.float32)
        if half.startswith("B"):
            values = np.ascontiguousarray(_permuted(weight, values, config))
        writer.add_tensor(f"{_their_name(weight, config)}.lora_{half[0].lower()}", values)
    _finish(writer)


def _their_name(name: str, config: dict[str, Any]) -> str:
    names = gguf.get_tensor_name_map(_ARCHITECTURE, config["num_hidden_layers"])
    found = names.get_name(name, try_suffixes=(".weight",))
    if found is None:
        raise SystemExit(f"GGUF has no name for {name}")
    return found


def _permuted(
    name: str, array: np.ndarray, config: dict[str, Any], *, back: bool = False
) -> np.ndarray:
    """Rows of q and k as GGUF's rotary embedding pairs them: neighbours instead of halves."""
    heads = {
        "q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"],
    }.get(name.split(".")[-2])  # fmt: skip
    if heads is None:
        return array
    half = array.shape[0] // heads // 2
    pairs = (heads, half, 2) if back else (heads, 2, half)
    return array.reshape(*pairs, -1).swapaxes(1, 2).reshape(array.shape)


def _finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@llama_cpp.llama_log_callback
def _log(level: int, text: bytes, _: object) -> None:
    """Errors only: the rest is hundreds of lines for each model."""
    if level == _ERROR:
        sys.stderr.write(text.decode("utf-8", "replace"))


class Llama:
    """A GGUF model with a cache; `adapter`: the path of a GGUF adapter, applied as it runs."""

    def __init__(self, threads: int, base: str, adapter: str | None = None) -> None:
        options = llama_cpp.llama_model_default_params()
        self._model = llama_cpp.llama_model_load_from_file(base.encode(), options)
        given = llama_cpp.llama_context_default_params()
        given.n_ctx = given.n_batch = given.n_ubatch = CONTEXT
        given.n_threads = given.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(self._model, given)
        if not self._context:
            raise SystemExit(f"{base}: llama.cpp cannot load it, see above")
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        if adapter:
            self._apply(adapter)

    def _apply(self, adapter: str) -> None:
        loaded = llama_cpp.llama_adapter_lora_init(self._model, adapter.encode())
        if not loaded:
            raise SystemExit(f"{adapter}: llama.cpp cannot load it, see above")
        one = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(loaded)
        llama_cpp.llama_set_adapters_lora(self._context, one, 1, (ctypes.c_float * 1)(1.0))

    def prefill(self, ids: list[int]) -> np.ndarray:
        llama_cpp.llama_memory_clear(self._memory, True)
        return self._read(ids)

    def decode(self, token: int) -> np.ndarray:
        return self._read([token])

    def _read(self, ids: list[int]) -> np.ndarray:
        tokens = (llama_cpp.llama_token * len(ids))(*ids)
        batch = llama_cpp.llama_batch_get_one(tokens, len(ids))
        failed = llama_cpp.llama_decode(self._context, batch)
        if failed:
            raise SystemExit(f"llama_decode ended with {failed}")
        logits = llama_cpp.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(logits, (self._vocab,)).copy()


if __name__ == "__main__":
    task, given = sys.argv[1], json.loads(sys.argv[2])
    if task == "convert":
        convert(**given)
    else:
        llama_cpp.llama_log_set(_log, None)
        llama_cpp.llama_backend_init()
        serve(Llama, given)
