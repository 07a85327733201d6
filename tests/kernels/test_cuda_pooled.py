"""Max pooling within the convolution, in emulation: exactly what convolution and pooling give one after the other."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from cuda_emulation import run
from test_cuda_implicit_gemm import RELU, Data, data
from test_cuda_stem import rearranged

from conv_layers import conv, conv_layer
from tamis.compiler.ir.evaluate_spatial import SPATIAL
from tamis.compiler.ir.infer_spatial import pooled_size
from tamis.compiler.ir.ops import Pool
from tamis.compiler.tactics.precision import to_precision
from tamis.compiler.tactics.stem import windows_of, windows_weight
from tamis.formats.dtype import DType
from tamis.formats.hopper import pack_hopper
from tamis.kernels.cuda.convolution import Convolution
from tamis.kernels.cuda.implicit_gemm import Epilogue, implicit_gemm_hopper
from tamis.kernels.cuda.line_tiles import line_tiles
from tamis.kernels.cuda.pointwise import PointwiseStep
from tamis.kernels.cuda.pool import pool
from tamis.kernels.cuda.pooled import (
    PooledTile,
    Pooling,
    implicit_gemm_pooled,
    pooled_tiles,
)

F16, BF16 = DType.FLOAT16, DType.BFLOAT16
SILU = PointwiseStep("silu")


@dataclass(frozen=True)
class Window:
    """A pooling layer of stride 2; ``pads`` are (top, left, bottom, right)."""

    size: int
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    ceil: bool = False

    def op(self) -> Pool:
        return Pool("max", (self.size,) * 2, (2, 2), self.pads, (1, 1), self.ceil)

    def behind(self, shape: Convolution) -> Pooling:
        output = tuple(pooled_size(self.op(), axis, size) for axis, size in enumerate(shape.output))
        return Pooling(self.size, *self.pads[:2], output)  # type: ignore[arg-type]


STEM, HALVES = Window(3, (1, 1, 1, 1)), Window(2)


def check(
    given: Data, shape: Convolution, window: Window, tile: PooledTile, dtype: DType = F16, *, sparse: bool = False,
    steps: tuple[PointwiseStep, ...] = (RELU,), bias: bool = True, multiprocessors: int = 1, pitch: int | None = None,
    offset: int = 0,
) -> np.ndarray:  # fmt: skip
    """Pooled in the kernel, and by the kernel for pooling behind that for convolutions; the result [n, h, w, filters]."""
    pooling, (high, wide) = window.behind(shape), shape.output
    biases = np.random.default_rng(1).standard_normal(shape.filters).astype(np.float32)
    epilogue = Epilogue(steps, bias)
    apart_tile = next(
        each for each in line_tiles(shape, sparse=sparse) if each.filters == tile.filters or tile.filters > 64
    )
    apart = implicit_gemm_hopper(shape, apart_tile, dtype, 4, epilogue, sparse=sparse)
    packed = pack_hopper(given.weight, apart_tile.filters // 64, sparse=sparse).data
    outputs = [((shape.batch, high, wide, shape.filters), dtype.numpy)]
    (convolved,) = run(apart, [given.image], [packed, biases], outputs)
    expected = given.sums + (biases if bias else 0.0)
    for step in steps:
        expected = np.maximum(expected, 0.0) if step.kind == "relu" else expected / (1 + np.exp(-expected))
    expected = expected.reshape(convolved.shape)
    tolerance = {F16: 2e-3, BF16: 1.6e-2}[dtype]
    np.testing.assert_allclose(convolved.astype(np.float64), expected, rtol=tolerance, atol=tolerance)
    wanted = pooled(convolved.astype(np.float64), window)
    (behind,) = run(
        pool((shape.batch, shape.filters, high, wide), (shape.batch, shape.filters, *pooling.output), dtype,
             average=False, kernel=(window.size,) * 2, strides=(2, 2), pads=window.pads, dilations=(1, 1)),
        [convolved], [], [(wanted.shape, dtype.numpy)],
    )  # fmt: skip
    np.testing.assert_array_equal(behind.astype(np.float64), wanted)
    kernel = implicit_gemm_pooled(
        shape, pooling, tile, dtype, multiprocessors, replace(epilogue, pitch=pitch, offset=offset), sparse=sparse
    )
    packed = pack_hopper(given.weight, tile.filters // 64, sparse=sparse).data
    (result,) = run(
        kernel, [given.image], [packed, biases], [((*wanted.shape[:3], pitch or shape.filters), dtype.numpy)]
    )
    mine = result[..., offset : offset + shape.filters]
    np.testing.assert_array_equal(mine.astype(np.float64), wanted)
    others = np.delete(result, np.s_[offset : offset + shape.filters], axis=3)
    assert np.isnan(others.astype(np.float32)).all(), "written beside its channels"
    return mine


def pooled(image: np.ndarray, window: Window) -> np.ndarray:
    """Pixels [n, h, w, c] in float64, pooled as the operator says."""
    return SPATIAL[Pool](window.op(), [image.transpose(0, 3, 1, 2)]).transpose(0, 2, 3, 1)


def stem(image: tuple[int, ...], filters: int, taps: int, dtype: DType = F16) -> tuple[Data, Convolution]:
    """The windows of a first layer of stride 2, and its sums in float64."""
    layer, arrays = conv_layer(conv(stride=2, pads=taps // 2), image, (filters, 3, taps, taps))
    made, shape = windows_of(layer)
    pixels = rearranged(layer, arrays["x"], (DType.FLOAT32, False), dtype)
    weight = to_precision(windows_weight(layer, made), dtype)
    seen = np.lib.stride_tricks.as_strided(
        pixels, (shape.batch, shape.height, shape.width, shape.channels),
        [2 * apart for apart in ((*shape.apart[::-1], 1) if shape.apart else ())], writeable=False,
    ).astype(np.float64)  # fmt: skip
    high, down = shape.output[0], shape.kernel[0]
    sums = sum(seen[:, y : y + high] @ weight[:, y].astype(np.float64).T for y in range(down))
    return Data(pixels, weight, sums.reshape(-1, filters)), shape


STEMS = {
    "even": ((2, 3, 32, 28), 64, 7),
    "odd lines": ((1, 3, 22, 36), 24, 7),
    "odd lines and columns": ((3, 3, 29, 33), 64, 7),
    "one line": ((2, 3, 2, 40), 72, 3),
    "3x3": ((2, 3, 24, 30), 32, 3),
}
POOLINGS = {
    "3x3 with padding": STEM, "3x3": Window(3), "3x3 up": Window(3, ceil=True), "2x2": HALVES,
    "2x2 with padding": Window(2, (1, 1, 0, 1)), "3x3 one-sided": Window(3, (0, 1, 1, 0)),
    "3x3 deep in padding": Window(3, (2, 2, 2, 2)),
}  # fmt: skip


@pytest.mark.parametrize("name", STEMS)
@pytest.mark.parametrize("dtype", [F16, BF16], ids=str)
def test_first_layers(name: str, dtype: DType) -> None:
    given, shape = stem(*STEMS[name], dtype)
    tiles = pooled_tiles(shape, STEM.behind(shape), sparse=False)
    assert any(tile.weights_stay for tile in tiles)
    check(given, shape, STEM, tiles[0], dtype)


@pytest.mark.parametrize("name", POOLINGS)
def test_windows_and_padding(name: str) -> None:
    window = POOLINGS[name]
    for image in ((2, 3, 27, 30), (1, 3, 26, 21)):
        given, shape = stem(image, 16, 3)
        check(given, shape, window, pooled_tiles(shape, window.behind(shape), sparse=False)[0], steps=())


LAYERS = {
    "vgg": Convolution(2, 12, 20, 64, 72, (3, 3), pads=(1, 1, 1, 1)),
    "two runs of channels": Convolution(1, 9, 28, 128, 64, (3, 2), pads=(0, 1, 2, 0)),
    "dilated": Convolution(2, 14, 14, 64, 136, (3, 3), pads=(2, 2, 2, 2), dilations=(2, 2)),
}


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "2:4"])
@pytest.mark.parametrize("name", LAYERS)
def test_plain_convolutions(name: str, sparse: bool) -> None:
    shape = LAYERS[name]
    given = data(shape, F16, sparse=sparse)
    window = HALVES if sparse else STEM
    tiles = pooled_tiles(shape, window.behind(shape), sparse=sparse)
    assert tiles
    for tile in tiles[:: 3 if sparse else 2]:
        check(given, shape, window, tile, sparse=sparse, multiprocessors=2)
