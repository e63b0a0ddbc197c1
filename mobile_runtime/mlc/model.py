# pyright: basic, reportArgumentType=false, reportAssignmentType=false
# pyright: reportAttributeAccessIssue=false, reportReturnType=false
# TVM's annotations say less than its functions take, and its tensors tell a type checker little.
"""The decoder: Llama, Qwen2 and Qwen3 as MLC builds them, on the paged KV cache.

In: a `ModelConfig`, and which projections an adapter adds to. Out: TVM's intermediate form of the
functions that a library has, and the parameters that it takes. The parameters' names are those of
MLC's tensor cache: Hugging Face's, but for the fused `qkv_proj` (Qwen: `c_attn`; rows of queries,
keys, values) and `gate_up_proj`.

    embed(ids)                    [n] -> [1, n, hidden]
    prefill(embeddings, cache)    [1, n, hidden] -> logits [1, 1, vocab] after the last
    decode(embeddings, cache)     the same for n = 1
    create_paged_kv_cache(...)    a cache

An adapter's A and B are parameters like any other, y = W x + B (A x), so one library serves every
user whose adapter has the same shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tvm import relax, te
from tvm.ir import IRModule
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import Tensor, op
from tvm.relax.frontend.nn.llm.kv_cache import PagedKVCache, RopeMode, TIRPagedKVCache
from tvm.target import Target
from tvm.tirx import Var

from mobile_runtime.mlc.config import LoraRanks, ModelConfig
from mobile_runtime.mlc.matmul import GROUP, WORD, Weight, element, multiply

PAGE = 16
"""Tokens in a page of the cache; TVM's attention kernels are made for it."""
_CACHE_SIZES = (
    "max_batch_size", "max_total_seq_len", "prefill_chunk_size", "page_size",
    "support_sliding_window",
)  # fmt: skip


@dataclass(frozen=True)
class Parameter:
    """What the library takes; `model.layers.0.self_attn.o_proj.q_weight`, for one."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class _Build:
    """What every module of one decoder is made for."""

    config: ModelConfig
    ranks: LoraRanks
    dtype: str
    target: Target


def parameters(config: ModelConfig, ranks: LoraRanks, dtype: str = "float32") -> list[Parameter]:
    """What a library takes, in the order in which it is passed."""
    decoder = _Decoder(_Build(config, ranks, dtype, Target("llvm")))
    return [
        Parameter(name, tuple(int(size) for size in each.shape), str(each.dtype))
        for name, each in decoder.named_parameters()
    ]


def lower(
    config: ModelConfig, ranks: LoraRanks, target: Target, dtype: str = "float32"
) -> IRModule:
    """The library's functions in TVM's intermediate form.

    dtype: what it computes in; stored halves are widened when they are loaded.
    """
    decoder = _Decoder(_Build(config, ranks, dtype, target))
    module, taken = decoder.export_tvm(spec=decoder.spec())
    assert [name for name, _ in taken] == [each.name for each in parameters(config, ranks, dtype)]
    return module


class _Matrix(nn.Module):
    """A weight [rows, columns] under MLC's names: `weight`, or `q_weight` and `q_scale`."""

    def __init__(self, build: _Build, rows: int, columns: int) -> None:
        self._build, self._shape = build, (rows, columns)
        if build.config.quantized:
            groups = -(-columns // GROUP)
            self.q_weight = nn.Parameter((rows, groups * GROUP // WORD), "uint32")
            self.q_scale = nn.Parameter((rows, groups), build.dtype)
        else:
            self.weight = nn.Parameter((rows, columns), build.dtype)

    def _stored(self) -> tuple[Tensor, ...]:
        if self._build.config.quantized:
            return (self.q_weight, self.q_scale)
        return (self.weight,)

    def multiply(self, x: Tensor) -> Tensor:
        """The product x W^T."""
        return multiply(x, Weight(*self._shape, self._stored()), self._build.target)

    def take(self, ids: Tensor) -> Tensor:
        """Rows [1, n, columns] of the ids [n]."""
        columns, dtype = self._shape[1], self._build.dtype

        def rows(ids: te.Tensor, *stored: te.Tensor) -> te.Tensor:
            return te.compute(
                (1, ids.shape[0], columns),
                lambda _, i, k: element(stored, ids[i], k, dtype),
                name="take",
            )

        return op.tensor_expr_op(rows, "take", [ids, *self._stored()])


class _Projection(_Matrix):
    """A linear layer, with its bias and its part of the adapter if there are such."""

    def __init__(
        self, build: _Build, name: str, rows: int, columns: int, bias: bool = False
    ) -> None:
        super().__init__(build, rows, columns)
        self.bias = nn.Parameter((rows,), build.dtype) if bias else None
        self._rank = build.ranks.get(name, 0)
        if self._rank:
            self.lora_a = nn.Parameter((self._rank, columns), build.dtype)
            self.lora_b = nn.Parameter((rows, self._rank), build.dtype)

    def forward(self, x: Tensor) -> Tensor:
        y = self.multiply(x)
        if self.bias is not None:
            y = y + self.bias
        if self._rank:
            (rows, columns), target = self._shape, self._build.target
            inner = multiply(x, Weight(self._rank, columns, (self.lora_a,)), target)
            y = y + multiply(inner, Weight(rows, self._rank, (self.lora_b,)), target)
        return y


class _Attention(nn.Module):
    def __init__(self, build: _Build, name: str) -> None:
        c = self._config = build.config
        self._heads = c.heads + 2 * c.kv_heads
        fused = _Projection(
            build, f"{name}.{c.fused_qkv}", self._heads * c.head_dim, c.hidden_size, c.qkv_bias
        )
        setattr(self, c.fused_qkv, fused)
        self.o_proj = _Projection(
            build, f"{name}.o_proj", c.hidden_size, c.heads * c.head_dim, c.output_bias
        )
        if c.qk_norm:
            self.q_norm = _norm(build, c.head_dim)
            self.k_norm = _norm(build, c.head_dim)

    def forward(self, x: Tensor, cache: PagedKVCache, layer: int) -> Tensor:
        c = self._config
        n = x.shape[1]
        qkv = op.reshape(getattr(self, c.fused_qkv)(x), (1, n, self._heads, c.head_dim))
        if c.qk_norm:
            q, k, v = op.split(qkv, [c.heads, c.heads + c.kv_heads], axis=2)
            qkv = op.concat([self.q_norm(q), self.k_norm(k), v], dim=2)
        read = cache.attention_with_fused_qkv(layer, qkv, c.heads, sm_scale=c.head_dim**-0.5)
        return self.o_proj(op.reshape(read, (1, n, c.heads * c.head_dim)))


class _MLP(nn.Module):
    def __init__(self, build: _Build, name: str) -> None:
        hidden, inner = build.config.hidden_size, build.config.intermediate_size
        self.gate_up_proj = _Projection(build, f"{name}.gate_up_proj", 2 * inner, hidden)
        self.down_proj = _Projection(build, f"{name}.down_proj", hidden, inner)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(op.tensor_expr_op(_gated, "gated", [self.gate_up_proj(x)]))


class _Layer(nn.Module):
    def __init__(self, build: _Build, name: str) -> None:
        self.self_attn = _Attention(build, f"{name}.self_attn")
        self.mlp = _MLP(build, f"{name}.mlp")
        self.input_layernorm = _norm(build, build.config.hidden_size)
        self.post_attention_layernorm = _norm(build, build.config.hidden_size)

    def forward(self, x: Tensor, cache: PagedKVCache, layer: int) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cache, layer)
        return x + self.mlp(self.post_attention_layernorm(x))


class _Body(nn.Module):
    def __init__(self, build: _Build) -> None:
        c = build.config
        self.embed_tokens = _Matrix(build, c.vocab_size, c.hidden_size)
        self.layers = nn.ModuleList([_Layer(build, f"model.layers.{i}") for i in range(c.layers)])
        self.norm = _norm(build, c.hidden_size)

    def forward(self, x: Tensor, cache: PagedKVCache) -> Tensor:
        for number, layer in enumerate(self.layers):
            x = layer(x, cache, number)
        return self.norm(x)


class _Decoder(nn.Module):
    def __init__(self, build: _Build) -> None:
        self._build = build
        self.model = _Body(build)
        if not build.config.tied:
            self.lm_head = _Matrix(build, build.config.vocab_size, build.config.hidden_size)

    def embed(self, ids: Tensor) -> Tensor:
        return self.model.embed_tokens.take(ids)

    def prefill(self, embeddings: Tensor, cache: PagedKVCache) -> Tensor:
        return self._logits(op.tensor_expr_op(_last, "last", [self.model(embeddings, cache)]))

    def decode(self, embeddings: Tensor, cache: PagedKVCache) -> Tensor:
        return self._logits(self.model(embeddings, cache))

    def _logits(self, x: Tensor) -> Tensor:
        head = self.model.embed_tokens if self._build.config.tied else self.lm_head
        return head.multiply(x).astype("float32")

    def create_paged_kv_cache(
        self,
        max_batch_size: Var,
        max_total_seq_len: Var,
        prefill_chunk_size: Var,
        page_size: Var,
        support_sliding_window: Var,
    ) -> PagedKVCache:
        c = self._build.config
        return TIRPagedKVCache(
            attn_kind="mha",
            max_batch_size=max_batch_size,
            max_total_seq_len=max_total_seq_len,
            prefill_chunk_size=prefill_chunk_size,
            page_size=page_size,
            support_sliding_window=support_sliding_window,
            layer_partition=relax.ShapeExpr([0, c.layers]),
            num_hidden_layers=c.layers,
            num_attention_heads=c.heads,
            num_key_value_heads=c.kv_heads,
            qk_head_dim=c.head_dim,
            v_head_dim=c.head_dim,
            mla_original_qk_head_dim=0,
            mla_original_v_head_dim=0,
            rope_mode=RopeMode.NORMAL,
            rope_scale=1,
            rope_theta=c.rope_theta,
            rope_scaling=rope_scaling(c),
            rope_ext_factors=relax.prim_value(0),
            rotary_dim=c.head_dim,
            enable_disaggregation=False,
            dtype=self._build.dtype,
            target=self._build.target,
        )

    def spec(self) -> dict[str, Any]:
        """What `export_tvm` is to make: each function's arguments, and that it takes parameters."""
        hidden, dtype = self._build.config.hidden_size, self._build.dtype
        packed = {"param_mode": "packed", "effect_mode": "none"}

        def reads(n: int | str) -> dict[str, Any]:
            cache = nn.spec.Object(object_type=PagedKVCache)
            return {
                "embeddings": nn.spec.Tensor([1, n, hidden], dtype), "cache": cache, "$": packed
            }  # fmt: skip

        return {
            "embed": {"ids": nn.spec.Tensor(["n"], "int32"), "$": packed},
            "prefill": reads("n"),
            "decode": reads(1),
            "create_paged_kv_cache": {
                **dict.fromkeys(_CACHE_SIZES, int),
                "$": {"param_mode": "none", "effect_mode": "none"},
            },
        }


def _norm(build: _Build, size: int) -> nn.RMSNorm:
    return nn.RMSNorm(size, -1, build.config.norm_eps, bias=False, dtype=build.dtype)


def _gated(x: te.Tensor) -> te.Tensor:
    """silu(gate) * up of rows that hold both, without taking them apart."""
    inner = x.shape[2] // 2
    return te.compute(
        (1, x.shape[1], inner),
        lambda _, i, k: x[0, i, k] * te.sigmoid(x[0, i, k]) * x[0, i, inner + k],
        name="gated",
    )


def _last(x: te.Tensor) -> te.Tensor:
    return te.compute((1, 1, x.shape[2]), lambda _, __, k: x[0, x.shape[1] - 1, k], name="last")


def rope_scaling(config: ModelConfig) -> Mapping[str, Any]:
    """In TVM's words."""
    return {"rope_type": "llama3", **dict(config.rope_llama3)} if config.rope_llama3 else {}
