# pyright: basic, reportArgumentType=false, reportAssignmentType=false
# pyright: reportAttributeAccessIssue=false, reportInvalidTypeForm=false, reportReturnType=false
# pyright: reportMissingModuleSource=false
# TVM's annotations say less than its functions take, and TVMScript is no Python to a type checker.
"""The matrix products of a decoder on a CPU: y = x W^T, with W in floats or in 4-bit words.

In: x [1, n, K] and W [N, K], as MLC stores it (`Weight`). Out: y [1, n, N]. Both operands are
contiguous along K, so vectors run along K and no transposed copy of W is ever made. Two kernels:

    vector  n = 1, a decoded token. Each word is unpacked in registers on its way into the sum; the
            scale of a group is applied once for its 32 products. Memory-bound, as it should be.
    matrix  any n, a chunk of a prompt. A panel of W's rows is unpacked into the L2 cache once, and
            meets all n rows of x in tiles whose sums stay in registers.

The kernels below are TVMScript: TVM parses them and never runs them as Python. `plain` is the same
product for targets whose schedules are TVM's own (GPUs).
"""

# No `from __future__ import annotations`: TVMScript reads the annotations.
import functools
from dataclasses import dataclass
from typing import Any

from tvm import te, tirx
from tvm.relax.frontend.nn import Tensor, op
from tvm.script import tirx as T  # noqa: N812 - as all TVMScript has it
from tvm.target import Target, codegen

GROUP = 32
"""Weights that share a scale."""
WORD = 8
"""Weights in a word."""
_ZERO = 7
_OPAQUE = 8  # TVM's mark of a kernel that no other is fused into
_COLUMNS = 4
_PANEL = 16 * _COLUMNS


@dataclass(frozen=True)
class Weight:
    """A matrix [rows, columns] in floats, or in words with scales."""

    rows: int
    columns: int
    tensors: tuple[Any, ...]

    @property
    def quantized(self) -> bool:
        return len(self.tensors) == 2


def vector_lanes(target: Target) -> int:
    """Floats in a vector register of the target: 16 with AVX-512, 8 with AVX2, 4 with NEON."""
    return max(4, codegen.llvm_get_vector_width(target) // 32)


def multiply(x: Tensor, weight: Weight, target: Target) -> Tensor:
    """The product y [1, n, N] of x [1, n, K]."""
    if target.kind.name != "llvm":
        return plain(x, weight)
    n = x.shape[1]
    one = isinstance(n, int) and n == 1
    name = f"{'vector' if one else 'matrix'}_{'q4' if weight.quantized else 'float'}"
    return op.tensor_ir_op(
        kernel_for(weight, x.dtype, target, one),
        f"{name}_{weight.rows}x{weight.columns}",
        [x, *weight.tensors],
        Tensor.placeholder((1, n, weight.rows), x.dtype),
    )


def kernel_for(weight: Weight, dtype: str, target: Target, one: bool) -> Any:
    """The kernel of this shape for one row of x, or for any number."""
    shape = (weight.rows, weight.columns, dtype)
    if one:
        return _vector_q4(*shape) if weight.quantized else _vector_float(*shape)
    lanes = vector_lanes(target)
    tile = 3 if lanes == 8 else 4  # AVX2 has 16 registers, the others 32
    make = _matrix_q4 if weight.quantized else _matrix_float
    return make(*shape, lanes, tile)


def plain(x: Tensor, weight: Weight) -> Tensor:
    """The same as one reduction, for TVM to schedule."""

    def product(x: te.Tensor, *stored: te.Tensor) -> te.Tensor:
        k = te.reduce_axis((0, weight.columns), "k")
        return te.compute(
            (1, x.shape[1], weight.rows),
            lambda _, i, j: te.sum(x[0, i, k] * element(stored, j, k, x.dtype), axis=k),
            name="nt_matmul",
        )

    return op.tensor_expr_op(product, "nt_matmul", [x, *weight.tensors])


def element(stored: Any, row: Any, column: Any, dtype: str) -> Any:
    """W[row, column] from a float matrix, or from words and scales."""
    if len(stored) == 1:
        return stored[0][row, column]
    words, scales = stored
    return unpacked(words[row, column // WORD], column % WORD, dtype) * scales[row, column // GROUP]


def unpacked(word: Any, place: Any, dtype: str) -> Any:
    """The `place`-th of a word's eight numbers, -7 to 7."""
    shift = tirx.Cast("uint32", place * 4)
    nibble = tirx.bitwise_and(tirx.shift_right(word, shift), tirx.const(15, "uint32"))
    return tirx.Cast(dtype, nibble) - tirx.const(_ZERO, dtype)


def _padded(columns: int) -> int:
    """Whole groups, which are whole vectors too."""
    return -(-columns // GROUP) * GROUP


@functools.cache  # one kernel of each shape, however many layers have it
def _vector_float(rows: int, columns: int, dtype: str) -> Any:
    """LLVM's own vectors do for a plain dot product."""

    @T.prim_func(s_tir=True, private=True)
    def kernel(
        x: T.Buffer((1, 1, columns), dtype),
        w: T.Buffer((rows, columns), dtype),
        y: T.Buffer((1, 1, rows), dtype),
    ):
        T.func_attr({"tirx.noalias": True, "op_pattern": _OPAQUE})
        for j in T.parallel(rows):
            with T.sblock("row"):
                total = T.sblock_alloc_buffer((1,), dtype, scope="local")
                total[0] = 0.0
                for k in range(columns):
                    total[0] = total[0] + x[0, 0, k] * w[j, k]
                y[0, 0, j] = total[0]

    return kernel


@functools.cache
def _vector_q4(rows: int, columns: int, dtype: str) -> Any:  # noqa: C901 - a kernel is loops
    """Four rows at once; a word of eight weights is a vector."""
    groups, tile = -(-columns // GROUP), 4

    @T.prim_func(s_tir=True, private=True)
    def kernel(  # noqa: C901
        x: T.Buffer((1, 1, columns), dtype),
        words: T.Buffer((rows, groups * 4), "uint32"),
        scales: T.Buffer((rows, groups), dtype),
        y: T.Buffer((1, 1, rows), dtype),
    ):
        T.func_attr({"tirx.noalias": True, "op_pattern": _OPAQUE})
        with T.sblock("product"):
            whole = T.sblock_alloc_buffer((groups * GROUP,), dtype)
            for k in range(columns):
                whole[k] = x[0, 0, k]
            for k in range(groups * GROUP - columns):
                whole[columns + k] = 0.0
            for jo in T.parallel(T.ceildiv(rows, tile)):
                with T.sblock("rows"):
                    sums = T.sblock_alloc_buffer((tile, WORD), dtype, scope="local")
                    group = T.sblock_alloc_buffer((tile, WORD), dtype, scope="local")
                    for r in T.unroll(tile):
                        for lane in T.vectorized(WORD):
                            sums[r, lane] = 0.0
                    for g in range(groups):
                        for r in T.unroll(tile):
                            for lane in T.vectorized(WORD):
                                group[r, lane] = 0.0
                        for k in T.unroll(GROUP // WORD):
                            for r in T.unroll(tile):
                                for lane in T.vectorized(WORD):
                                    group[r, lane] = group[r, lane] + whole[
                                        g * GROUP + k * WORD + lane
                                    ] * unpacked(
                                        words[T.min(jo * tile + r, rows - 1), g * 4 + k],
                                        lane,
                                        dtype,
                                    )
                        for r in T.unroll(tile):
                            for lane in T.vectorized(WORD):
                                sums[r, lane] = (
                                    sums[r, lane]
                                    + group[r, lane] * scales[T.min(jo * tile + r, rows - 1), g]
                                )
                    for r in T.unroll(tile):
                        if jo * tile + r < rows:
                            y[0, 0, jo * tile + r] = 0.0
                            for lane in T.unroll(WORD):
                                y[0, 0, jo * tile + r] = y[0, 0, jo * tile + r] + sums[r, lane]

    return kernel


@functools.cache
def _matrix_float(rows: int, columns: int, dtype: str, lanes: int, tile: int) -> Any:
    @T.prim_func(s_tir=True, private=True)
    def kernel(var_x: T.handle, w: T.Buffer((rows, columns), dtype), var_y: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": _OPAQUE})
        n = T.int64()
        x = T.match_buffer(var_x, (1, n, columns), dtype)
        y = T.match_buffer(var_y, (1, n, rows), dtype)
        for p in T.parallel(T.ceildiv(rows, _PANEL)):
            with T.sblock("panel"):
                panel = T.sblock_alloc_buffer((_PANEL, _padded(columns)), dtype)
                for c in range(_PANEL):
                    for k in range(columns):
                        panel[c, k] = w[T.min(p * _PANEL + c, rows - 1), k]
                    for k in range(_padded(columns) - columns):
                        panel[c, columns + k] = 0.0
                _multiply_panel(x, panel, y, p * _PANEL, n, rows, columns, lanes, tile)

    return kernel


@functools.cache
def _matrix_q4(rows: int, columns: int, dtype: str, lanes: int, tile: int) -> Any:
    groups = -(-columns // GROUP)

    @T.prim_func(s_tir=True, private=True)
    def kernel(
        var_x: T.handle,
        words: T.Buffer((rows, groups * 4), "uint32"),
        scales: T.Buffer((rows, groups), dtype),
        var_y: T.handle,
    ):
        T.func_attr({"tirx.noalias": True, "op_pattern": _OPAQUE})
        n = T.int64()
        x = T.match_buffer(var_x, (1, n, columns), dtype)
        y = T.match_buffer(var_y, (1, n, rows), dtype)
        for p in T.parallel(T.ceildiv(rows, _PANEL)):
            with T.sblock("panel"):
                panel = T.sblock_alloc_buffer((_PANEL, _padded(columns)), dtype)
                for c in range(_PANEL):
                    for k in range(groups * 4):
                        for lane in T.vectorized(WORD):
                            panel[c, k * WORD + lane] = (
                                unpacked(words[T.min(p * _PANEL + c, rows - 1), k], lane, dtype)
                                * scales[T.min(p * _PANEL + c, rows - 1), k // 4]
                            )
                _multiply_panel(x, panel, y, p * _PANEL, n, rows, columns, lanes, tile)

    return kernel


@T.macro
def _multiply_panel(x, panel, y, first, n, rows, columns, lanes, tile):  # noqa: C901
    """y[0, :, first : first + _PANEL] = x panel^T, `tile` rows of x at a time.

    The last tile of rows, and the last panel, may stand out: they read the last row again and write
    nothing for it.
    """
    for io in range(T.ceildiv(n, tile)):
        with T.sblock("rows"):
            some = T.sblock_alloc_buffer((tile, panel.shape[1]), panel.dtype)
            for r in range(tile):
                for k in range(columns):
                    some[r, k] = x[0, T.min(io * tile + r, n - 1), k]
                for k in range(panel.shape[1] - columns):
                    some[r, columns + k] = 0.0
            for jo in range(_PANEL // _COLUMNS):
                with T.sblock("tile"):
                    sums = T.sblock_alloc_buffer(
                        (tile, _COLUMNS, lanes), panel.dtype, scope="local"
                    )
                    for r in T.unroll(tile):
                        for c in T.unroll(_COLUMNS):
                            for lane in T.vectorized(lanes):
                                sums[r, c, lane] = 0.0
                    for ko in range(panel.shape[1] // lanes):
                        for c in T.unroll(_COLUMNS):
                            for r in T.unroll(tile):
                                for lane in T.vectorized(lanes):
                                    sums[r, c, lane] = (
                                        sums[r, c, lane]
                                        + some[r, ko * lanes + lane]
                                        * panel[jo * _COLUMNS + c, ko * lanes + lane]
                                    )
                    for r in T.unroll(tile):
                        for c in T.unroll(_COLUMNS):
                            i: T.let[T.int64] = io * tile + r
                            j: T.let[T.int64] = T.int64(first + jo * _COLUMNS + c)
                            if i < n and j < rows:
                                y[0, i, j] = 0.0
                                for lane in T.unroll(lanes):
                                    y[0, i, j] = y[0, i, j] + sums[r, c, lane]
