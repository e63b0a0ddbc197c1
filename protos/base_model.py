"""The base model: any Hugging Face causal LM, from a local directory or a hub id.

In: `--base`. Out: its checked directory and digest, and the one way to load it and its tokenizer,
and to turn what a user says into token ids. Training and export load through here, so they see the
same model. The phone's side does not: the reference runtime renders and tokenizes on its own, and
the goldens show whether both agree.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging as python_logging
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protos.artifacts import digest_file, digest_json, read_json, refuse_withdrawn
from protos.errors import InputError, MismatchError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

PLAIN_TEMPLATE = "{content}\n"
"""How a base model without a chat template is asked: the content and a line break."""
_MODEL_FILES = ("config.json", "generation_config.json")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
_OLDER_ROPES = {"su": "longrope", "yarn": "longrope"}
"""What Phi 3's first files call their rope -> what transformers makes of it."""
_ORIGINAL = "original_max_position_embeddings"
_ORIGINAL_OF_PHI3 = 4096
"""What transformers takes where a Phi 3's config has no such key of its own."""
_HUB_PATTERNS = ("*.json", "*.safetensors", "*.jinja", "tokenizer.model")


@dataclass(frozen=True)
class BaseModel:
    """A checked Hugging Face directory.

    name: what the caller called it; never a path of this machine. digest: over weights, config and
    tokenizer, 64 hex characters; an adapter is bound to it.
    """

    directory: Path
    name: str
    digest: str
    config: dict[str, Any]

    @property
    def architecture(self) -> str:
        return self.config["architectures"][0]

    @property
    def max_positions(self) -> int:
        """The most positions that the model was made for."""
        return int(self.config.get("max_position_embeddings", 2048))

    @property
    def max_context(self) -> int:
        """The most positions that one KV cache can hold: with longrope, its original length.

        A longer text is rotated by other factors from its first position on, so that the keys which
        a cache has from before would be wrong.
        """
        named = self.config.get(_ORIGINAL, _ORIGINAL_OF_PHI3 if self._is_phi3 else None)
        lengths = [
            int(named or rope.get(_ORIGINAL) or self.max_positions)
            for rope in self.ropes
            if rope["rope_type"] == "longrope"
        ]
        return min([self.max_positions, *lengths])

    @property
    def ropes(self) -> list[dict[str, Any]]:
        """Parameters of its rotary embeddings, one for all layers or for each type of them, with
        `rope_type` as transformers understands it.

        In transformers 5 they are `rope_parameters`, before they were `rope_scaling` with `type`.
        """
        older = _OLDER_ROPES if self._is_phi3 else {}
        found: list[dict[str, Any]] = []
        for rope in (self.config.get("rope_parameters"), self.config.get("rope_scaling")):
            layered = [part for part in (rope or {}).values() if isinstance(part, dict)]
            for part in layered or [rope or {}]:
                name: Any = part.get("rope_type", part.get("type"))
                found.append(part | {"rope_type": older.get(name, name)})
        return found

    @property
    def _is_phi3(self) -> bool:
        return self.config.get("model_type") == "phi3"


def open_base(base: str) -> BaseModel:
    """Find a base model and check that it is a causal LM with a tokenizer.

    Raises:
        InputError: nothing is there, it is no Hugging Face causal LM in safetensors, or it was
            trained on the items of somebody who has withdrawn them.
    """
    directory = Path(base)
    if not directory.is_dir():
        directory = _from_hub(base)
    refuse_withdrawn(directory)
    if (directory / "adapter_config.json").is_file():
        raise InputError(f"{base}: this is a PEFT adapter, expected the base model that it adapts")
    config = read_json(directory / "config.json")
    architectures = config.get("architectures") if isinstance(config, dict) else None
    if not architectures or not str(architectures[0]).endswith("ForCausalLM"):
        raise InputError(
            f"{directory / 'config.json'}: architectures is {architectures!r}, expected a causal "
            "language model (…ForCausalLM)"
        )
    weights = sorted(directory.glob("*.safetensors"))
    if not weights:
        raise InputError(f"{directory}: no *.safetensors weights in it (pickled ones are not read)")
    if not (directory / "tokenizer.json").is_file():
        raise InputError(f"{directory}: no tokenizer.json in it; save a fast tokenizer there")
    names = [name for name in (*_MODEL_FILES, *TOKENIZER_FILES) if (directory / name).is_file()]
    digests = [(p.name, digest_file(p)) for p in (*(directory / n for n in names), *weights)]
    return BaseModel(directory, directory.resolve().name, digest_json(digests), config)


def compute_dtype() -> torch.dtype:
    """bfloat16 where this machine multiplies it in hardware, else float32."""
    import torch

    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    fast = torch.ops.mkldnn._is_mkldnn_bf16_supported()  # no public way to ask
    return torch.bfloat16 if fast else torch.float32


def load_tokenizer(base: BaseModel) -> PreTrainedTokenizerFast:
    """The tokenizer, checked against the model's vocabulary.

    Added tokens that the model has no embedding of are taken out, so that a text which names one is
    read as any other text: Gemma 3's text models come with the tokenizer of those that see, too.

    Raises:
        InputError: it cannot be read. MismatchError: it makes ids that the model does not have.
    """
    from transformers import AutoTokenizer

    with _quiet_transformers():
        try:
            tokenizer = AutoTokenizer.from_pretrained(base.directory, local_files_only=True)
        except Exception as error:  # the readers of tokenizer files raise plain Exception
            raise InputError(f"{base.directory}: unreadable tokenizer: {_line(error)}") from None
    _keep_to_rows(base, tokenizer)
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"{base.directory}: the tokenizer names no eos_token, so nothing would stop"
        )
    return tokenizer


def _keep_to_rows(base: BaseModel, tokenizer: Any) -> None:
    """Take added tokens without an embedding out of a tokenizer.

    Raises:
        MismatchError: a token of the vocabulary itself has none, or one that prompts are made of.
    """
    rows = base.config.get("vocab_size", 0)
    beyond = {token for token in tokenizer.get_vocab().values() if token >= rows}
    if not beyond:
        return
    named = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id")
    needed = {*prompt_ids(tokenizer, "a"), *(getattr(tokenizer, name) for name in named)}
    wrong = (beyond - tokenizer.added_tokens_decoder.keys()) | (beyond & needed)
    if wrong:
        raise MismatchError(
            f"{base.directory}: the tokenizer goes up to id {max(wrong)}, but the model has {rows} "
            "embeddings; it belongs to another model"
        )
    backend = tokenizer.backend_tokenizer
    state = json.loads(backend.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["id"] < rows]
    words = state["model"]["vocab"]
    if isinstance(words, dict):  # id by word; else the words with their scores, in order
        state["model"]["vocab"] = {word: token for word, token in words.items() if token < rows}
    else:
        state["model"]["vocab"] = words[:rows]
    tokenizer._tokenizer = type(backend).from_str(json.dumps(state))


def load_model(base: BaseModel, dtype: torch.dtype) -> PreTrainedModel:
    """The model in evaluation mode, on the CPU.

    Raises:
        InputError: the weights cannot be read or do not fit the config.
    """
    from transformers import AutoModelForCausalLM

    with _quiet_transformers():
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                base.directory,
                dtype=dtype,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
            )
        except Exception as error:  # safetensors, config and model code each raise their own
            raise InputError(f"{base.directory}: unreadable model: {_line(error)}") from None
    model, report = loaded
    wrong = sorted(report["missing_keys"]) + sorted(str(k) for k in report["mismatched_keys"])
    if wrong:
        raise InputError(f"{base.directory}: weights missing or of another shape: {wrong[:5]}")
    return model.eval()


def skeleton(base: BaseModel) -> PreTrainedModel:
    """The model without its weights, from the config alone: names and shapes of its modules."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        config = AutoConfig.from_pretrained(base.directory, local_files_only=True)
        return AutoModelForCausalLM.from_config(config)


def render(tokenizer: PreTrainedTokenizerFast, content: str) -> str:
    """What the model reads when a user says `content`: the chat template, else `PLAIN_TEMPLATE`."""
    if tokenizer.chat_template is None:
        return PLAIN_TEMPLATE.replace("{content}", content)
    turn = [{"role": "user", "content": content}]
    return str(tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))


def prompt_ids(tokenizer: PreTrainedTokenizerFast, content: str) -> list[int]:
    """`render(content)` as token ids; a chat template brings its own special tokens."""
    special = tokenizer.chat_template is None
    return list(tokenizer(render(tokenizer, content), add_special_tokens=special)["input_ids"])


def completion_ids(tokenizer: PreTrainedTokenizerFast, completion: str) -> list[int]:
    """An answer as token ids, with the end-of-turn token that stops the model."""
    ids = list(tokenizer(completion, add_special_tokens=False)["input_ids"])
    end: Any = tokenizer.eos_token_id
    return [*ids, int(end)]


@functools.cache
def _from_hub(base: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    if base.startswith((".", "/", "~")):
        raise InputError(f"{base}: no such directory")
    try:
        return Path(snapshot_download(base, allow_patterns=list(_HUB_PATTERNS)))
    except HFValidationError:
        raise InputError(f"{base}: no such directory, and not a hub id either") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(
            f"{base}: no such directory, and the hub did not give it: {_line(error)}"
        ) from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


@contextlib.contextmanager
def _quiet_transformers() -> Generator[None]:
    """No bars and no advice from transformers while it loads: our commands print their own."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torchao = python_logging.getLogger("torchao")  # tells at import which kernels it lacks
    torchao_level = torchao.level
    torchao.setLevel(python_logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(level)
        torchao.setLevel(torchao_level)
        if bars:
            logging.enable_progress_bar()
