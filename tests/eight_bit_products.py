"""Products and convolutions of 8-bit types, quantised and with all that is fused, for tests in emulation and on a GPU."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tamis.formats import TWO_FOUR, magnitude_mask
from tamis.formats.dtype import DType
from tamis.formats.hopper import pack_hopper
from tamis.kernels.cuda.implicit_gemm import Convolution, Epilogue, Tile, channel_constants, implicit_gemm_hopper
from tamis.kernels.cuda.pointwise import PointwiseStep
from tamis.kernels.cuda.specification import Kernel

ADD, RELU = PointwiseStep("add", operand=0), PointwiseStep("relu")
FUSED = (ADD, RELU)


@dataclass(frozen=True)
class Quantised:
    """A layer: its types, whether its weights are in 2:4, and what follows.

    ``fused``: a bias, a residual of the output's type, and ReLU.
    """

    shape: Convolution
    dtype: DType
    out: DType
    sparse: bool
    fused: bool = True
    pitch: int | None = None
    offset: int = 0

    @property
    def epilogue(self) -> Epilogue:
        steps = FUSED if self.fused else ()
        return Epilogue(steps, self.fused, self.fused, self.out, self.pitch, self.offset, scaled=True)

    def kernel(self, tile: Tile, multiprocessors: int) -> Kernel:
        return implicit_gemm_hopper(self.shape, tile, self.dtype, multiprocessors, self.epilogue, sparse=self.sparse)


@dataclass(frozen=True)
class Values:
    """What a layer is given: all of it as it lies in memory, the weight [filters, taps, channels] not packed."""

    image: np.ndarray
    weight: np.ndarray
    scale: np.ndarray
    bias: np.ndarray | None
    residual: np.ndarray
    out_scale: float
    residual_scale: float

    @property
    def constants(self) -> np.ndarray:
        return channel_constants(self.scale, self.bias, self.out_scale, self.residual_scale)

    def packed(self, tile: Tile, *, sparse: bool) -> np.ndarray:
        return pack_hopper(self.weight, tile.blocks * tile.groups, sparse=sparse).data

    def results(self, sums: np.ndarray) -> np.ndarray:
        """Float64 results [pixels, filters] in units of the output, before they are rounded to its type."""
        values = sums * self.scale.astype(np.float64)
        if self.bias is not None:
            values = np.maximum(values + self.bias + self.residual.astype(np.float64) * self.residual_scale, 0.0)
        return values / self.out_scale


def random_values(layer: Quantised, seed: int = 0) -> Values:
    """The whole range of int8, e4m3 of any size; results of about unit variance, some of which saturate."""
    random = np.random.default_rng(seed)
    shape, taps = layer.shape, layer.shape.kernel[0] * layer.shape.kernel[1]
    image = _random((shape.batch, shape.height, shape.width, shape.channels), layer.dtype, random)
    weight = _random((shape.filters, taps, shape.channels), layer.dtype, random)
    if layer.sparse:
        weight = np.where(magnitude_mask(weight.astype(np.float32), TWO_FOUR), weight, weight.dtype.type(0))
    spread = image.astype(np.float64).std() * np.sqrt((weight.astype(np.float64) ** 2).sum(axis=(1, 2)).mean())
    scale = (random.uniform(0.5, 1.5, shape.filters) / spread).astype(np.float32)
    bias = random.standard_normal(shape.filters).astype(np.float32) if layer.fused else None
    out_scale = {DType.INT8: 1 / 60, DType.FLOAT8_E4M3: 1 / 200}.get(layer.out, 1.0)
    residual = _random((shape.pixels, shape.filters), layer.out, random)
    residual_scale = 1 / 64 if layer.out.size_bytes == 1 else 1.0
    return Values(image, weight, scale, bias, residual, out_scale, residual_scale)


def _random(shape: tuple[int, ...], dtype: DType, random: np.random.Generator) -> np.ndarray:
    if dtype == DType.INT8:
        return random.integers(-128, 128, shape).astype(np.int8)
    return random.standard_normal(shape).astype(dtype.numpy)


def assert_rounded(result: np.ndarray, exact: np.ndarray, out: DType, error: float | np.ndarray = 1e-5) -> None:
    """``result`` is ``exact`` rounded to the output's type, or its neighbour if ``error`` lies between them.

    ``error`` is how far the values may be off before they are rounded, relative to the largest or absolute by element.
    """
    mine = result.astype(np.float64)
    assert np.isfinite(mine).all(), "not finite"
    largest = max(1.0, float(np.abs(exact).max()))
    allowed = error if isinstance(error, np.ndarray) else np.full(exact.shape, error * largest)
    if out == DType.INT8:
        exact, unit = np.clip(exact, -128, 127), np.ones(exact.shape)
    else:
        limit, bits, least = {
            DType.FLOAT8_E4M3: (448.0, 3, -9), DType.FLOAT16: (65504.0, 10, -24),
            DType.BFLOAT16: (3e38, 7, -133), DType.FLOAT32: (3e38, 23, -149),
        }[out]  # fmt: skip
        exact = np.clip(exact, -limit, limit)
        size = np.floor(np.log2(np.maximum(np.abs(exact) + allowed, 2.0**-126)))
        unit = 2.0 ** np.maximum(size - bits, least)
    wrong = ~(np.abs(mine - exact) <= unit / 2 + allowed)
    if wrong.any():
        first = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise AssertionError(f"{wrong.sum()} of {wrong.size} differ; at {first}: {mine[first]} not {exact[first]}")
