"""The kernels against numpy, at sizes that fill no tile, no vector and no group."""

import numpy as np
import pytest
import tvm

from mobile_runtime.mlc.library import host_target
from mobile_runtime.mlc.matmul import Weight, kernel_for
from protos.group_quantization import dequantize, quantize


@pytest.mark.parametrize("quantized", [False, True], ids=["float", "q4"])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (13, 7), (70, 65), (131, 96)])
def test_products_equal_numpys(rows, columns, quantized) -> None:
    rng, target = np.random.default_rng(rows), host_target()
    w = rng.standard_normal((rows, columns), dtype=np.float32)
    stored = quantize(w, np.float32) if quantized else (w,)
    if quantized:
        w = dequantize(*stored, columns)
    weight = Weight(rows, columns, stored)
    for n in (1, 2, 5, 9):
        x = rng.standard_normal((1, n, columns), dtype=np.float32)
        for one in {n == 1, False}:  # the kernel of chunks takes a single row as well
            kernel = kernel_for(weight, "float32", target, one).with_attr("global_symbol", "f")
            y = tvm.runtime.tensor(np.full((1, n, rows), np.nan, np.float32))
            given = (np.ascontiguousarray(array) for array in (x, *stored))
            tvm.compile(kernel, target=target)["f"](*map(tvm.runtime.tensor, given), y)
            assert np.abs(y.numpy()[0] - x[0] @ w.T).max() < 1e-4
