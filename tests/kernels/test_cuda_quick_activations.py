"""Activations at the end of products in 16 bits, which take fewer instructions there: against float64, value by value."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_emulation import run

from tamis.compiler.ir.evaluate_pointwise import apply_program
from tamis.compiler.ir.ops import Pointwise
from tamis.formats.ampere import pack_ampere
from tamis.formats.dtype import DType
from tamis.kernels.cuda.convolution import Convolution
from tamis.kernels.cuda.implicit_gemm import Epilogue
from tamis.kernels.cuda.implicit_gemm_ampere import AmpereTile, implicit_gemm_ampere
from tamis.kernels.cuda.pointwise import PointwiseStep

# Of the result, and of nothing: as pointwise_steps.h says.
RELATIVE, ABSOLUTE = 9e-5, 1e-8


def halves(every: int) -> np.ndarray:
    """Numbers of float16 of all sizes and signs, infinities and NaN among them."""
    bits = np.arange(0, 1 << 16, every, dtype=np.uint16)
    special = np.array([np.inf, -np.inf, np.nan, 0.0, -0.0, 20, -20, 65504, -65504], np.float16)
    return np.concatenate([bits.view(np.float16), special])


@pytest.mark.parametrize("kind", ["sigmoid", "silu", "gelu", "gelu_tanh", "mish", "tanh", "softplus"])
def test_what_leaves_is_the_activation_rounded(kind: str) -> None:
    """A product that hands its pixels on: one channel is not zero, and its weights are one."""
    values = halves(29)
    shape = Convolution(1, 1, len(values), 16, 8)
    image = np.zeros((1, 1, len(values), 16), np.float16)
    image[..., 0] = values
    weight = np.zeros((8, 1, 16), np.float16)
    weight[..., 0] = 1
    tile = AmpereTile(2, 2, 2, 2, 2)
    kernel = implicit_gemm_ampere(shape, tile, DType.FLOAT16, Epilogue((PointwiseStep(kind),)), sparse=False)
    packed = pack_ampere(weight, tile.filters // 16, sparse=False)
    (result,) = run(kernel, [image], [packed.data], [((len(values), 8), np.dtype(np.float16))])
    with np.errstate(all="ignore"):
        expected = apply_program((Pointwise(kind),), values.astype(np.float64), ())
        rounded = expected.astype(np.float16)
        half_step = np.spacing(np.abs(rounded)).astype(np.float64) / 2
        error = np.abs(result.astype(np.float64) - expected[:, None])
    finite = np.isfinite(expected)
    limit = np.maximum(half_step, 2**-25) + RELATIVE * np.abs(expected) + ABSOLUTE
    assert (error[finite] <= limit[finite, None]).all(), values[finite][(error > limit[:, None])[finite].any(1)]
    np.testing.assert_array_equal(result[~finite], np.repeat(rounded[~finite, None], 8, 1))
