"""Pooling in emulation against the operators' NumPy meaning in float64."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_emulation import assert_close, from_memory, in_memory, memory_shape, run

from tamis.compiler.ir.evaluate_spatial import SPATIAL
from tamis.compiler.ir.infer_spatial import pooled_size
from tamis.compiler.ir.ops import Pool
from tamis.formats.dtype import DType
from tamis.kernels.cuda.pool import pool, reduce_pixels

F32, F16, BF16 = DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16
# Name, shape, then kernel, strides, pads, dilations, ceil.
WINDOWS = [
    ("stem", (2, 16, 11, 9), (3, 3), (2, 2), (1, 1, 1, 1), (1, 1), False),
    ("2x2", (1, 8, 8, 6), (2, 2), (2, 2), (0, 0, 0, 0), (1, 1), False),
    ("ceil", (2, 5, 7, 10), (3, 2), (2, 3), (0, 1, 1, 0), (1, 1), True),
    ("ceil over padding", (1, 3, 6, 6), (3, 3), (2, 2), (1, 1, 1, 1), (1, 1), True),
    ("dilated", (1, 12, 13, 15), (3, 2), (1, 2), (2, 0, 1, 1), (2, 3), False),
    ("one column", (3, 1, 9, 1), (4, 1), (3, 1), (1, 0, 2, 0), (1, 1), True),
    ("wide", (1, 4, 10, 40), (9, 13), (1, 5), (4, 6, 4, 6), (1, 1), False),
    ("whole", (2, 24, 7, 7), (7, 7), (1, 1), (0, 0, 0, 0), (1, 1), False),
    ("windows in the padding", (1, 4, 2, 2), (2, 2), (2, 2), (3, 3, 3, 3), (1, 1), False),
]
KINDS = [("max", False), ("average", False), ("average", True)]


@pytest.mark.parametrize("case", WINDOWS, ids=[case[0] for case in WINDOWS])
@pytest.mark.parametrize(("kind", "count_pads"), KINDS, ids=["max", "average", "average with padding"])
@pytest.mark.parametrize("dtype", [F32, F16], ids=str)
def test_pool(case, kind, count_pads, dtype):
    _, shape, kernel, strides, pads, dilations, ceil = case
    op = Pool(kind, kernel, strides, pads, dilations, ceil, count_pads)
    output = (*shape[:2], *(pooled_size(op, axis, size) for axis, size in enumerate(shape[2:])))
    x = in_memory(np.random.default_rng(4).standard_normal(shape) - 1, dtype.numpy, True)
    built = pool(
        shape, output, dtype, average=kind == "average", kernel=kernel, strides=strides, pads=pads,
        dilations=dilations, count_pads=count_pads,
    )  # fmt: skip
    (result,) = run(built, [x], [], [(memory_shape(output, True), dtype.numpy)])
    expected = SPATIAL[Pool](op, [from_memory(x, True)])
    assert expected.shape == output
    assert_close(from_memory(result, True), expected, dtype, 8.0)


def test_pool_hands_nan_on():
    x = np.zeros((1, 4, 4, 8), np.float32)
    x[0, 1, 1, 3] = np.nan
    x[0, 2, 2, 5] = -np.inf
    built = pool((1, 8, 4, 4), (1, 8, 2, 2), F32, average=False, kernel=(2, 2), strides=(2, 2), pads=(0,) * 4,
                 dilations=(1, 1))  # fmt: skip
    (result,) = run(built, [x], [], [((1, 2, 2, 8), F32.numpy)])
    assert np.argwhere(np.isnan(result)).tolist() == [[0, 0, 0, 3]]
    assert result[0, 1, 1, 5] == 0


REDUCED = [(2, 2048, 7, 7), (1, 5, 3, 3), (3, 1, 1, 1), (2, 96, 1, 2), (1, 72, 40, 33), (1, 1000, 2, 2)]


@pytest.mark.parametrize("shape", REDUCED, ids=str)
@pytest.mark.parametrize("kind", ["mean", "sum", "max"])
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_reduce_pixels(shape, kind, dtype):
    x = in_memory(np.random.default_rng(4).standard_normal(shape) + 1, dtype.numpy, True)
    (result,) = run(reduce_pixels(shape, dtype, kind), [x], [], [(shape[:2], dtype.numpy)])
    expected = getattr(np, kind)(from_memory(x, True), axis=(2, 3))
    assert_close(result.astype(np.float64), expected, dtype, 512.0)
