"""Our convolutions and matrix products for tensor cores, on the CPU: against float64, on odd shapes, all fused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from cuda_emulation import run

from tamis.formats import TWO_FOUR, magnitude_mask
from tamis.formats.ampere import pack_ampere
from tamis.formats.dtype import DType
from tamis.formats.hopper import pack_hopper
from tamis.formats.steps import StepWeights
from tamis.kernels.cuda.implicit_gemm import (
    FILLING_TILES,
    TILES,
    Convolution,
    Epilogue,
    Tile,
    deepest,
    implicit_gemm_hopper,
)
from tamis.kernels.cuda.implicit_gemm_ampere import AMPERE_TILES, AmpereTile, deepest_ampere, implicit_gemm_ampere
from tamis.kernels.cuda.line_tiles import line_tiles
from tamis.kernels.cuda.pointwise import PointwiseStep
from tamis.kernels.cuda.specification import Kernel

PAIR, SPLIT = Tile(1, 1, 64, 2, 1, 2), Tile(1, 1, 64, 1, 2, 2)
ADD, RELU = PointwiseStep("add", operand=0), PointwiseStep("relu")


@dataclass(frozen=True)
class Family:
    """One of the kernels: its tiles and a small one, how weights are packed for a tile, and how it is made.

    ``rows`` are the filters of what packing calls a block.
    """

    name: str
    rows: int
    small: Any
    tiles: Sequence[tuple[int, ...]]
    deepest: Callable[..., Any]
    pack: Callable[..., StepWeights]
    make: Callable[..., Kernel]

    def __str__(self) -> str:
        return self.name


def hopper(
    shape: Convolution, tile: Tile, dtype: DType, epilogue: Epilogue, *, sparse: bool, multiprocessors: int = 2
) -> Kernel:
    return implicit_gemm_hopper(shape, tile, dtype, multiprocessors, epilogue, sparse=sparse)


HOPPER = Family("hopper", 64, Tile(1, 1, 64, 1, 1, 2), TILES + FILLING_TILES, deepest, pack_hopper, hopper)
AMPERE = Family(
    "ampere", 16, AmpereTile(2, 2, 2, 2, 2), AMPERE_TILES, deepest_ampere, pack_ampere, implicit_gemm_ampere
)
FAMILIES = pytest.mark.parametrize("family", [HOPPER, AMPERE], ids=str)


@dataclass(frozen=True)
class Data:
    """Random values in the type of the product, and the result in float64 without bias, residual and program."""

    image: np.ndarray
    weight: np.ndarray
    sums: np.ndarray


def data(shape: Convolution, dtype: DType, *, sparse: bool, seed: int = 0) -> Data:
    random = np.random.default_rng(seed)
    image = random.standard_normal((shape.batch, shape.height, shape.width, shape.channels)).astype(dtype.numpy)
    down, across = shape.kernel
    weight = random.standard_normal((shape.filters, down * across, shape.channels))
    weight = (weight / np.sqrt(down * across * shape.channels)).astype(dtype.numpy)
    if sparse:
        weight = np.where(magnitude_mask(weight.astype(np.float32), TWO_FOUR), weight, weight.dtype.type(0))
    return Data(image, weight, convolved(image, weight, shape))


def convolved(image: np.ndarray, weight: np.ndarray, shape: Convolution) -> np.ndarray:
    """[pixels, filters] in float64."""
    top, left, bottom, right = shape.pads
    padded = np.pad(image.astype(np.float64), ((0, 0), (top, bottom), (left, right), (0, 0)))
    (high, wide), (down, across) = shape.output, shape.kernel
    total = np.zeros((shape.batch, high, wide, shape.filters))
    for tap in range(down * across):
        y, x = tap // across * shape.dilations[0], tap % across * shape.dilations[1]
        seen = padded[:, y : y + (high - 1) * shape.strides[0] + 1 : shape.strides[0]]
        seen = seen[:, :, x : x + (wide - 1) * shape.strides[1] + 1 : shape.strides[1]]
        total += seen @ weight[:, tap].astype(np.float64).T
    return total.reshape(-1, shape.filters)


def check(
    family: Family, shape: Convolution, dtype: DType, *, sparse: bool, tile: Any = None, pitch: int | None = None,
    offset: int = 0, bias: bool = False, residual: bool = False, steps: tuple[PointwiseStep, ...] = (),
    out_dtype: DType | None = None, **launch: int,
) -> None:  # fmt: skip
    tile = tile or family.small
    given = data(shape, dtype, sparse=sparse)
    out = out_dtype or dtype
    random = np.random.default_rng(1)
    biases = random.standard_normal(shape.filters).astype(np.float32)
    residuals = random.standard_normal((shape.pixels, shape.filters)).astype(out.numpy)
    epilogue = Epilogue(steps, bias, residual, out, pitch, offset)
    kernel = family.make(shape, tile, dtype, epilogue, sparse=sparse, **launch)
    packed = family.pack(given.weight, tile.filters // family.rows, sparse=sparse)
    wide = pitch or shape.filters
    (result,) = run(kernel, [given.image, residuals], [packed.data, biases], [((shape.pixels, wide), out.numpy)])
    expected = given.sums + (biases if bias else 0.0)
    for step in steps:
        expected = expected + residuals.astype(np.float64) if step.kind == "add" else np.maximum(expected, 0.0)
    mine = result[:, offset : offset + shape.filters].astype(np.float64)
    tolerance = {DType.FLOAT16: 1e-3, DType.BFLOAT16: 8e-3, DType.FLOAT32: 1e-5}[out]
    np.testing.assert_allclose(mine, expected, rtol=tolerance, atol=tolerance)
    others = np.delete(result, np.s_[offset : offset + shape.filters], axis=1)
    assert np.isnan(others.astype(np.float32)).all(), "written beside its channels"


@FAMILIES
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "2:4"])
@pytest.mark.parametrize("dtype", [DType.FLOAT16, DType.BFLOAT16], ids=str)
def test_a_product(family: Family, dtype: DType, sparse: bool) -> None:
    check(family, Convolution(1, 1, 100, 128, 96), dtype, sparse=sparse)


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "2:4"])
@pytest.mark.parametrize(
    ("family", "sizes"), [(family, sizes) for family in (HOPPER, AMPERE) for sizes in family.tiles], ids=str
)
def test_every_tile(family: Family, sizes: tuple[int, ...], sparse: bool) -> None:
    tile = family.deepest(*sizes, sparse=sparse, most=3)
    shape = Convolution(1, 1, tile.pixels + 9, 64 * getattr(tile, "split", 1) + 8, tile.filters + 8)
    check(family, shape, DType.FLOAT16, sparse=sparse, tile=tile, bias=True, steps=(RELU,))


LINES = {
    "two images": Convolution(2, 6, 30, 72, 72, (3, 3), pads=(1, 1, 1, 1)),
    "a line at a time": Convolution(1, 3, 100, 16, 64, (3, 3), pads=(1, 1, 1, 1)),
    "uneven": Convolution(1, 9, 28, 128, 64, (3, 2), pads=(0, 1, 2, 0)),
    "dilated": Convolution(2, 14, 14, 64, 136, (3, 3), pads=(2, 2, 2, 2), dilations=(2, 2)),
    "tall": Convolution(1, 12, 5, 64, 64, (5, 1), pads=(2, 0, 2, 0)),
}


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "2:4"])
@pytest.mark.parametrize("name", LINES)
def test_whole_lines(name: str, sparse: bool) -> None:
    shape = LINES[name]
    tiles = line_tiles(shape, sparse=sparse, residual=True)
    assert tiles
    for tile in tiles[:: 3 if sparse else 4]:
        check(HOPPER, shape, DType.FLOAT16, sparse=sparse, tile=tile, bias=True, residual=True, steps=(ADD, RELU))


CONVOLUTIONS = {
    "same": Convolution(2, 5, 7, 64, 64, (3, 3), pads=(1, 1, 1, 1)),
    "strided": Convolution(2, 8, 7, 72, 64, (3, 3), (2, 2), (1, 1, 1, 1)),
    "valid": Convolution(1, 6, 9, 16, 72, (3, 3)),
    "uneven pads": Convolution(3, 6, 5, 24, 8, (3, 2), (1, 2), (0, 1, 2, 0)),
    "dilated": Convolution(1, 9, 9, 32, 64, (3, 3), pads=(2, 2, 2, 2), dilations=(2, 2)),
    "strided 1x1": Convolution(2, 7, 6, 64, 128, (1, 1), (2, 2)),
    "5x5": Convolution(1, 7, 7, 8, 20, (5, 5), pads=(2, 2, 2, 2)),
    "7x7 map": Convolution(2, 7, 7, 132 // 4 * 8, 64, (3, 3), pads=(1, 1, 1, 1)),
}


@FAMILIES
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "2:4"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(family: Family, name: str, sparse: bool) -> None:
    check(family, CONVOLUTIONS[name], DType.FLOAT16, sparse=sparse, bias=True)


@FAMILIES
@pytest.mark.parametrize("filters", [64, 70], ids=["vectors", "elements"])
def test_bias_residual_and_activation(family: Family, filters: int) -> None:
    shape = Convolution(2, 5, 5, 64, filters, (3, 3), pads=(1, 1, 1, 1))
    check(family, shape, DType.FLOAT16, sparse=True, bias=True, residual=True, steps=(ADD, RELU))
    check(family, shape, DType.BFLOAT16, sparse=False, residual=True, steps=(RELU, ADD))


@FAMILIES
@pytest.mark.parametrize(("pitch", "offset"), [(160, 64), (101, 3)])
def test_the_result_lands_within_a_concat(family: Family, pitch: int, offset: int) -> None:
    check(family, Convolution(1, 4, 4, 64, 72), DType.FLOAT16, sparse=True, pitch=pitch, offset=offset)


@FAMILIES
def test_float32_results(family: Family) -> None:
    check(family, Convolution(1, 1, 64, 64, 64), DType.FLOAT16, sparse=True, out_dtype=DType.FLOAT32, bias=True)


@pytest.mark.parametrize("tile", [HOPPER.small, PAIR, SPLIT], ids=["alone", "pair", "split"])
def test_many_tiles_on_one_multiprocessor(tile: Tile) -> None:
    check(HOPPER, Convolution(1, 1, 300, 192, 200), DType.FLOAT16, sparse=True, tile=tile, multiprocessors=1)


@pytest.mark.parametrize("multiprocessors", [2, 8], ids=["by turns", "at once"])
@pytest.mark.parametrize(("groups", "pixels", "split"), [(1, 64, 2), (1, 64, 4), (2, 64, 2), (1, 72, 4), (1, 72, 8)])
def test_blocks_divide_the_steps_of_a_tile(groups: int, pixels: int, split: int, multiprocessors: int) -> None:
    shape = Convolution(2, 9, 7, 72, 70, (3, 3), pads=(1, 1, 1, 1))
    fused = {"bias": True, "residual": True, "steps": (ADD, RELU)}
    tile = Tile(1, groups, pixels, 1, split, 2)
    check(HOPPER, shape, DType.FLOAT16, sparse=True, tile=tile, multiprocessors=multiprocessors, **fused)


@pytest.mark.parametrize("filters", [64, 128, 130], ids=["one is idle", "both", "two pairs"])
def test_a_pair_of_blocks_shares_its_pixels(filters: int) -> None:
    shape = Convolution(2, 6, 7, 72, filters, (3, 3), pads=(1, 1, 1, 1))
    fused = {"bias": True, "residual": True, "steps": (ADD, RELU)}
    check(HOPPER, shape, DType.FLOAT16, sparse=True, tile=PAIR, multiprocessors=4, **fused)


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_fewer_and_more_steps_than_stages(steps: int) -> None:
    tile = AmpereTile(2, 2, 2, 2, 3)
    check(AMPERE, Convolution(1, 1, 40, 64 * steps, 64), DType.FLOAT16, sparse=True, tile=tile)


def test_tiles_for_consumer_gpus() -> None:
    """A block may have 99 KiB on these."""
    for sparse in (False, True):
        for tile in (deepest_ampere(*tile, sparse=sparse) for tile in AMPERE_TILES):
            assert tile.stages >= 2
            assert tile.shared_bytes(sparse=sparse) <= 99 * 1024


@FAMILIES
def test_what_cannot_run_is_refused(family: Family) -> None:
    with pytest.raises(ValueError, match="multiple of 8"):
        family.make(Convolution(1, 1, 64, 12, 64), family.small, DType.FLOAT16, Epilogue(), sparse=True)


def test_tiles_and_images_that_are_too_large() -> None:
    with pytest.raises(ValueError, match="1 steps cannot be split among 2"):
        implicit_gemm_hopper(Convolution(1, 1, 64, 64, 64), SPLIT, DType.FLOAT16, 8, Epilogue(), sparse=True)
    with pytest.raises(ValueError, match="products of int8 have a multiple of 16"):
        implicit_gemm_hopper(Convolution(1, 1, 64, 64, 64), deepest(1, 1, 72, sparse=True), DType.INT8, 8, Epilogue(),
                             sparse=True)  # fmt: skip
    with pytest.raises(ValueError, match="do not fit"):
        deepest(4, 4, 256, sparse=False)
    with pytest.raises(ValueError, match="do not fit"):
        deepest_ampere(4, 8, 4, 4, sparse=False)
    wide = Convolution(1, 1, 32766, 8, 64, (1, 3), pads=(0, 1, 0, 1))
    with pytest.raises(ValueError, match="32767 pixels a side"):
        implicit_gemm_ampere(wide, AMPERE.small, DType.FLOAT16, Epilogue(), sparse=True)
