"""Normalisation and softmax of rows in emulation against the operators' NumPy meaning in float64."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_emulation import assert_close, run

from tamis.compiler.ir.evaluate_normalization import NORMALIZATION
from tamis.compiler.ir.ops import LayerNorm, Softmax
from tamis.formats.dtype import DType
from tamis.kernels.cuda.rows import NOTHING, layer_norm, softmax
from tamis.kernels.cuda.specification import Argument

F32, F16, BF16 = DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16
# One warp a row, several, rows that no vector divides, one column, and rows too long for registers.
SHAPES = [
    (3, 768),
    (5, 64),
    (2, 1000),
    (4, 49),
    (3, 1),
    (2, 2),
    (1, 4096),
    (2, 1026),
    (1, 33000),
    (1, 32771),
    (1030, 40),
]


def data(shape, dtype, scale=1.0, offset=0.0, seed=0):
    return (np.random.default_rng(seed).standard_normal(shape) * scale + offset).astype(dtype.numpy)


@pytest.mark.parametrize(("shape", "dtype", "log"), [
    *((shape, dtype, log) for shape in SHAPES for dtype, log in ((F32, True), (F16, False))), ((3, 768), BF16, True),
], ids=str)  # fmt: skip
def test_softmax(shape, dtype, log):
    x = data(shape, dtype, 5)
    (result,) = run(softmax(*shape, dtype, log), [x], [], [(shape, dtype.numpy)])
    expected = NORMALIZATION[Softmax](Softmax(-1, log), [x.astype(np.float64)])
    assert_close(result.astype(np.float64), expected, dtype, 64.0)


def test_softmax_of_extremes():
    inf, nan = np.inf, np.nan
    x = np.zeros((8, 40), np.float32)
    x[0, 3] = nan
    x[1, 39] = inf
    x[2] = -inf
    x[3, :39] = -inf
    x[4] = 1e38
    x[5, 0] = 3e38
    x[6] = -3e38
    (result,) = run(softmax(8, 40, F32), [x], [], [(x.shape, F32.numpy)])
    with np.errstate(all="ignore"):
        assert_close(result, NORMALIZATION[Softmax](Softmax(-1), [x.astype(np.float64)]), F32)


NORMS = {
    "plain": {"scale": False, "bias": False},
    "scale and bias": {},
    "bias only": {"scale": False},
    "residual": {"residual": True},
    "residual, sum": {"residual": True, "sum": True},
    "rms": {"rms": True, "bias": False},
    "rms residual": {"rms": True, "residual": True, "sum": True, "bias": False},
}


@pytest.mark.parametrize(("shape", "case", "dtype", "rows_each"), [
    *((shape, "scale and bias", dtype, 1) for shape in SHAPES for dtype in (F32, F16)),
    *(((3, 768), case, dtype, 1) for case in NORMS for dtype in (F32, BF16)),
    *(((9, 768), case, F16, 4) for case in NORMS),
    ((2, 33000), "rms residual", F16, 1), ((2, 1026), "residual, sum", F16, 1), ((3, 33000), "scale and bias", F16, 2),
], ids=str)  # fmt: skip
def test_layer_norm(shape, case, dtype, rows_each):
    options = dict(NORMS[case])
    with_sum = options.pop("sum", False)
    op = LayerNorm(-1, 1e-5, **options)
    rows, columns = shape
    x, residual = data(shape, dtype, 2, 3), data(shape, dtype, 1, -1, seed=1)
    scale, bias = data((columns,), F32, 1, 1, seed=2), data((columns,), F32, seed=3)
    kernel = layer_norm(
        rows, columns, dtype, op.epsilon, rms=op.rms,
        residual=Argument("in", 1) if op.residual else NOTHING,
        scale=Argument("const", 0) if op.scale else NOTHING,
        bias=Argument("const", 1) if op.bias else NOTHING,
        total=Argument("out", 1) if with_sum else NOTHING,
        rows_each=rows_each,
    )  # fmt: skip
    results = run(kernel, [x, residual], [scale, bias], [(shape, dtype.numpy)] * (1 + with_sum))
    inputs = [x] + [scale] * op.scale + [bias] * op.bias + [residual] * op.residual
    expected = NORMALIZATION[LayerNorm](op, [array.astype(np.float64) for array in inputs])
    assert_close(results[0].astype(np.float64), expected[0], dtype, 256.0)
    if with_sum:
        assert_close(results[1].astype(np.float64), expected[1], dtype)


def test_layer_norm_far_from_zero():
    """The variance is that of the centred values: a mean a thousand times the spread costs no accuracy in it."""
    x = data((4, 512), F32, 1.0, 1000.0)
    (result,) = run(layer_norm(4, 512, F32, 1e-5), [x], [], [(x.shape, F32.numpy)])
    expected = NORMALIZATION[LayerNorm](LayerNorm(-1, 1e-5, False, False), [x.astype(np.float64)])[0]
    np.testing.assert_allclose(result, expected, atol=2e-4)


def test_how_rows_are_spread():
    def spread(rows, columns, dtype=F16):
        kernel = softmax(rows, columns, dtype)
        return kernel.defines["WARPS"], kernel.defines["CACHED"], kernel.block[1], kernel.grid[0]

    assert spread(4096, 768) == (1, 1, 4, 1024)
    assert spread(197, 768)[0] > 1
    assert spread(1, 100_000) == (32, 0, 1, 1)
