"""Tiny models of each family as MLC's directories, written here tensor by tensor, and what
transformers says about the very weights that stand in them.

The writer is the tests' own: it shares with the product only how a tensor cache and a group of 32
are laid out (`protos`), so that a mistake in the export cannot cancel one in the runtime.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protos.artifacts import create, open_artifact, write_json
from protos.group_quantization import dequantize, quantize
from protos.tensor_cache import read_shards, write_shards, write_tensor_cache

CONTEXT, CHUNK = 96, 24
RANK = 4
ROPE_LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
SHAPE: dict[str, Any] = {
    "vocab_size": 131, "hidden_size": 64, "intermediate_size": 100, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip
ADAPTED = ("self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.down_proj")
Weights = dict[str, np.ndarray]


@dataclass
class World:
    """A base with two users' adapters. models: transformers with the same weights."""

    family: str
    quantization: str
    layout: str
    base: Path
    adapters: dict[str, Path] = field(default_factory=dict)
    models: dict[str | None, Any] = field(default_factory=dict)

    def logits(self, user: str | None, ids: list[int]) -> np.ndarray:
        """[len(ids), vocab] of transformers, attention in its plain form."""
        import torch

        with torch.no_grad():
            return self.models[user](torch.tensor([ids])).logits[0].numpy()


def make_model(family: str, **shape: Any) -> Any:
    """A random model whose answers depend on every part of it."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    torch.manual_seed(len(family))
    config = CONFIG_MAPPING[family](**{**SHAPE, **shape}, attn_implementation="eager")
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                parameter.mul_(5.0)
            elif "norm" in name:
                parameter.uniform_(0.5, 1.5)
            else:  # biases begin as zeros
                parameter.normal_(0.0, 0.5)
    return model


class Writer:
    """One model in MLC's names and one recipe's numbers."""

    def __init__(self, family: str, quantization: str) -> None:
        self._qkv = "qkv_proj" if family == "llama" else "c_attn"
        self._q4 = quantization.startswith("q4")
        self._float = np.float16 if "f16" in quantization else np.float32

    def tensors(self, weights: Weights) -> Weights:
        """Under MLC's names, as they are stored."""
        stored: Weights = {}
        for name, array in self._fused(weights).items():
            if self._q4 and array.ndim == 2:
                stem = name.removesuffix(".weight")
                words, scales = quantize(array, self._float)
                stored |= {f"{stem}.q_weight": words, f"{stem}.q_scale": scales}
            else:
                stored[name] = array.astype(self._float)
        return stored

    def rounded(self, weights: Weights) -> Weights:
        """What is left of the weights once they were stored, under transformers' names."""
        kept: Weights = {}
        for name, array in weights.items():
            if self._q4 and array.ndim == 2:
                kept[name] = dequantize(*quantize(array, self._float), array.shape[1])
            else:
                kept[name] = array.astype(self._float).astype(np.float32)
        return kept

    def lora(self, factors: dict[str, tuple[np.ndarray, np.ndarray]]) -> Weights:
        """A and B of the fused projections: A stacked, B in blocks."""
        stored: Weights = {}
        for layer in range(SHAPE["num_hidden_layers"]):
            stem = f"model.layers.{layer}"
            q, v, o, down = (factors[f"{stem}.{name}"] for name in ADAPTED)
            k = (np.zeros_like(v[0]), np.zeros_like(v[1]))
            stored |= self._pair(f"{stem}.self_attn.{self._qkv}", [q, k, v])
            stored |= self._pair(f"{stem}.self_attn.o_proj", [o])
            stored |= self._pair(f"{stem}.mlp.down_proj", [down])
        return stored

    def _pair(self, name: str, parts: list[tuple[np.ndarray, np.ndarray]]) -> Weights:
        rows = [len(b) for _, b in parts]
        block = np.zeros((sum(rows), RANK * len(parts)))
        for n, (_, b) in enumerate(parts):
            block[sum(rows[:n]) : sum(rows[: n + 1]), n * RANK : (n + 1) * RANK] = b
        stacked = np.concatenate([a for a, _ in parts])
        pair = {f"{name}.lora_a": stacked, f"{name}.lora_b": block}
        return {key: array.astype(self._float) for key, array in pair.items()}

    def _fused(self, weights: Weights) -> Weights:
        fused: Weights = {}
        for name, array in weights.items():
            stem, _, kind = name.rpartition(".")
            if stem.endswith("q_proj"):
                parts = [name.replace("q_proj", f"{part}_proj") for part in "qkv"]
                fused[f"{stem.replace('q_proj', self._qkv)}.{kind}"] = np.concatenate(
                    [weights[part] for part in parts]
                )
            elif stem.endswith("gate_proj"):
                both = [array, weights[name.replace("gate_proj", "up_proj")]]
                fused[name.replace("gate_proj", "gate_up_proj")] = np.concatenate(both)
            elif not stem.endswith(("k_proj", "v_proj", "up_proj")):
                fused[name] = array
        return fused


def write_config(directory: Path, model: Any, family: str, quantization: str) -> None:
    config = model.config
    rope = config.rope_parameters
    theta = "position_embedding_base" if family == "llama" else "rope_theta"
    llama3 = {key: rope[key] for key in ROPE_LLAMA3} if rope["rope_type"] == "llama3" else None
    write_json(
        directory / "mlc-chat-config.json",
        {
            "model_type": family,
            "quantization": quantization,
            "model_config": {
                **{key: getattr(config, key) for key in SHAPE if key != "max_position_embeddings"},
                "head_dim": getattr(config, "head_dim", None) or 16,
                "rms_norm_eps": config.rms_norm_eps,
                theta: rope["rope_theta"],
                "rope_scaling": llama3,
                "tie_word_embeddings": config.tie_word_embeddings,
                "attention_bias": getattr(config, "attention_bias", False),
                "context_window_size": CONTEXT,
                "prefill_chunk_size": CHUNK,
            },
        },
    )


def with_weights(model: Any, weights: Weights) -> Any:
    """A copy of a model with other weights."""
    import copy

    import torch

    other = copy.deepcopy(model)
    tensors = {name: torch.from_numpy(np.ascontiguousarray(w)) for name, w in weights.items()}
    other.load_state_dict(tensors, strict=False)
    return other


def make_world(
    home: Path, family: str, quantization: str, layout: str = "lora-parameters", **shape: Any
) -> World:
    """Write a base and two adapters, "ada" and "bo"."""
    model, writer = make_model(family, **shape), Writer(family, quantization)
    weights = {name: w.numpy() for name, w in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del weights["lm_head.weight"]
    world = World(family, quantization, layout, home / "base")
    tensors = writer.tensors(weights)
    touched = [name for name in tensors if any(part in name for part in ("attn", "down"))]
    with create(world.base, "BaseBundle", {"base_model": family}, {}) as draft:
        write_config(draft.path, model, family, quantization)
        write_json(
            draft.path / "layout.json",
            {"format": 1, "backend": "mlc", "context_length": CONTEXT, "vocab_size": 131},
        )
        rest = [(name, array) for name, array in tensors.items() if name not in touched]
        shards = write_shards(draft.path, "params_shared", rest)
        shards += write_shards(draft.path, "params_base", [(n, tensors[n]) for n in touched])
        write_tensor_cache(draft.path, shards)
    world.models[None] = with_weights(model, writer.rounded(weights))
    for seed, user in enumerate(("ada", "bo")):
        factors = make_factors(weights, seed)
        world.adapters[user] = home / user
        merged = {**weights, **{f"{n}.weight": weights[f"{n}.weight"] + b @ a
                                for n, (a, b) in factors.items()}}  # fmt: skip
        if layout == "lora-parameters":
            mine = writer.lora(factors)
            base = writer.rounded(weights)
            exact = {f"{n}.weight": base[f"{n}.weight"] + b.astype(writer._float).astype(np.float32)
                     @ a.astype(writer._float).astype(np.float32)
                     for n, (a, b) in factors.items()}  # fmt: skip
            world.models[user] = with_weights(model, {**base, **exact})
        else:
            mine = writer.tensors(merged)
            world.models[user] = with_weights(model, writer.rounded(merged))
        write_adapter(world, world.adapters[user], mine, touched, model)
    return world


def make_factors(weights: Weights, seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """A [r, K] and B [N, r] of each adapted projection."""
    rng = np.random.default_rng(seed)
    factors: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name, array in weights.items():
        if name.removesuffix(".weight").endswith(ADAPTED) and array.ndim == 2:
            a = rng.standard_normal((RANK, array.shape[1]), dtype=np.float32) * 0.3
            b = rng.standard_normal((len(array), RANK), dtype=np.float32) * 0.1
            factors[name.removesuffix(".weight")] = (a, b)
    return factors


def write_adapter(world: World, out: Path, mine: Weights, touched: list[str], model: Any) -> None:
    base = open_artifact(world.base)
    shared = read_shards(world.base / "tensor-cache.json")
    parents = {"base_model": world.family}
    raw: dict[str, Any] = {"format": 1, "layout": world.layout, "rank": RANK}
    if world.layout == "merged":
        shared = []
    else:
        parents["base_bundle"] = raw["base_bundle"] = base.id
    if world.layout == "delta-shards":
        mine = {name: array for name, array in mine.items() if name in touched}
        shared = [shard for shard in shared if shard.dataPath.startswith("params_shared")]
    with create(out, "AdapterBundle", parents, {}) as draft:
        write_json(draft.path / "adapter.json", raw)
        write_config(draft.path, model, world.family, world.quantization)
        shards = write_shards(draft.path, f"params_{out.name}", mine.items())
        write_tensor_cache(draft.path, [*shared, *shards])


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder of compiled libraries for all tests."""
    return tmp_path_factory.mktemp("libraries")


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Llama 3's rotation, grouped heads, a head of its own, in float32, A and B as parameters."""
    rope = {"rope_theta": 500.0, **ROPE_LLAMA3}
    return make_world(tmp_path_factory.mktemp("llama"), "llama", "q0f32", rope_parameters=rope)


@pytest.fixture(scope="session")
def delta(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Llama in 4 bits, head tied to the embedding, users' own shards beside shared ones."""
    home = tmp_path_factory.mktemp("delta")
    return make_world(home, "llama", "q4f32_1", "delta-shards", tie_word_embeddings=True)


@pytest.fixture(scope="session")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Bias on queries, keys and values; 4 bits with scales in halves; merged bundles."""
    return make_world(tmp_path_factory.mktemp("qwen2"), "qwen2", "q4f16_1", "merged")


@pytest.fixture(scope="session")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Norms of queries and keys, bias everywhere, wide heads; halves; A and B as parameters."""
    return make_world(
        tmp_path_factory.mktemp("qwen3"), "qwen3", "q0f16", attention_bias=True, head_dim=32
    )


@pytest.fixture(params=["llama", "delta", "qwen2", "qwen3"])
def world(request: pytest.FixtureRequest) -> World:
    return request.getfixturevalue(request.param)


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
