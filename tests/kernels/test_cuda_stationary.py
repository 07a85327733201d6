"""Weights that stay in registers, on the CPU: against float64, on odd shapes, at the limits of the registers."""

from __future__ import annotations

import dataclasses

import pytest
from cuda_emulation import run
from test_cuda_implicit_gemm import ADD, CONVOLUTIONS, LINES, RELU, Family, check, convolved

from eight_bit_products import Quantised, assert_rounded, random_values
from tamis.formats.dtype import DType
from tamis.formats.hopper import pack_stationary
from tamis.kernels.cuda.implicit_gemm import Convolution, Epilogue, Tile
from tamis.kernels.cuda.specification import Kernel
from tamis.kernels.cuda.stationary import (
    STATIONARY_TILES,
    blocks_of,
    held_registers,
    implicit_gemm_stationary,
    most_steps,
    no_stationary_tiles,
    stationary_tiles,
)

FORMS = pytest.mark.parametrize("sparse", [False, True], ids=["dense", "2:4"])
SMALL = Tile(1, 1, 64, 1, 1, 2, 2, stationary=True)
FUSED = {"bias": True, "residual": True, "steps": (ADD, RELU)}


def stationary(
    shape: Convolution, tile: Tile, dtype: DType, epilogue: Epilogue, *, sparse: bool, multiprocessors: int = 1
) -> Kernel:
    return implicit_gemm_stationary(shape, tile, dtype, multiprocessors, epilogue, sparse=sparse)


STATIONARY = Family("stationary", 64, SMALL, STATIONARY_TILES, lambda: None, pack_stationary, stationary)


@FORMS
@pytest.mark.parametrize("dtype", [DType.FLOAT16, DType.BFLOAT16], ids=str)
def test_a_product_of_many_tiles(dtype: DType, sparse: bool) -> None:
    """Two blocks of three tiles of filters, each of which walks over several of pixels."""
    check(STATIONARY, Convolution(1, 1, 300, 136, 130), dtype, sparse=sparse, bias=True)


@FORMS
@pytest.mark.parametrize("place", range(len(STATIONARY_TILES)))
def test_every_tile_as_full_as_may_be(place: int, sparse: bool) -> None:
    blocks, groups, resident, pixels = STATIONARY_TILES[place]
    tile = Tile(blocks, groups, pixels, 1, 1, 3, resident, stationary=True)
    steps = most_steps(tile, sparse=sparse)
    assert steps >= 1
    assert most_steps(tile, sparse=sparse, packed=False) <= steps
    shape = Convolution(1, 1, pixels + 9, 64 * steps, tile.filters - 8)
    check(STATIONARY, shape, DType.FLOAT16, sparse=sparse, tile=tile, bias=True, steps=(RELU,))


@FORMS
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name: str, sparse: bool) -> None:
    shape = CONVOLUTIONS[name]
    steps, most = shape.steps, most_steps(SMALL, sparse=sparse, packed=shape.filters % 8 == 0)
    if steps > most:
        with pytest.raises(
            ValueError, match=f"weights of {steps} steps do not stay in registers; the tile holds {most}"
        ):
            stationary(shape, SMALL, DType.FLOAT16, Epilogue(), sparse=sparse)
        return
    check(STATIONARY, shape, DType.FLOAT16, sparse=sparse, **FUSED)


MORE_LINES = {
    **{name: LINES[name] for name in ("a line at a time", "dilated", "tall")},
    "7x7 map": Convolution(3, 7, 7, 64, 64, (3, 3), pads=(1, 1, 1, 1)),
    "two runs of channels": Convolution(2, 9, 11, 128, 72, (3, 3), pads=(1, 1, 1, 1)),
    "taps below each other": Convolution(2, 9, 6, 64, 64, (4, 1)),
}


@FORMS
@pytest.mark.parametrize("name", MORE_LINES)
def test_whole_lines(name: str, sparse: bool) -> None:
    shape = MORE_LINES[name]
    tiles = [tile for tile in stationary_tiles(shape, sparse=sparse, residual=True) if tile.lines]
    assert tiles or not sparse, "dense weights leave no room for lines of 100 pixels, nor for 18 steps"
    for tile in tiles[::3]:
        check(STATIONARY, shape, DType.FLOAT16, sparse=sparse, tile=tile, **FUSED)


@pytest.mark.parametrize("filters", [64, 70], ids=["vectors", "elements"])
def test_results_of_other_types_and_places(filters: int) -> None:
    shape = Convolution(2, 5, 5, 64, filters, (2, 3), pads=(1, 1, 0, 1))
    check(STATIONARY, shape, DType.BFLOAT16, sparse=False, residual=True, steps=(RELU, ADD))
    check(STATIONARY, shape, DType.FLOAT16, sparse=True, out_dtype=DType.FLOAT32, **FUSED)
    check(STATIONARY, shape, DType.FLOAT16, sparse=True, pitch=160, offset=filters, **FUSED)


def test_residuals_that_come_in_many_strips() -> None:
    for strips in (2, 3):
        tile = Tile(1, 1, 192, 1, 1, 2, 2, strips=strips, stationary=True)
        check(STATIONARY, Convolution(1, 1, 500, 72, 64), DType.FLOAT16, sparse=True, tile=tile, **FUSED)


@FORMS
@pytest.mark.parametrize("dtype", [DType.INT8, DType.FLOAT8_E4M3], ids=str)
def test_eight_bits(dtype: DType, sparse: bool) -> None:
    shape = Convolution(2, 5, 7, 144, 72, (2, 2), pads=(1, 0, 0, 1))
    layer = Quantised(shape, dtype, dtype, sparse, pitch=96, offset=16)
    values = random_values(layer)
    kernel = stationary(shape, SMALL, dtype, layer.epilogue, sparse=sparse)
    packed = pack_stationary(values.weight, 1, sparse=sparse).data
    outputs = [((shape.pixels, 96), dtype.numpy)]
    (result,) = run(kernel, [values.image, values.residual], [packed, values.constants], outputs)
    sums = convolved(values.image, values.weight, shape)
    assert_rounded(result[:, 16:88], values.results(sums), dtype)


def test_more_tiles_of_filters_than_blocks() -> None:
    """As many blocks as there are tiles of filters, also where fewer stay at a time."""
    shape = Convolution(1, 1, 70, 64, 64 * 5)
    assert blocks_of(shape, SMALL, 1) == 5
    assert blocks_of(dataclasses.replace(shape, width=6400), SMALL, 8) == 15
    assert blocks_of(dataclasses.replace(shape, filters=64), SMALL, 132) == 2, "no block without pixels"
    check(STATIONARY, shape, DType.FLOAT16, sparse=True)


def test_registers_of_weights() -> None:
    """A step of 64 channels: 64 x 64 values in 16 bits over 128 threads, or half of them and a word of places."""
    assert held_registers(9, 1, sparse=True) == 81
    assert held_registers(9, 2, sparse=False) == 288
    assert held_registers(1, 1, sparse=True, itemsize=1) == 10


LONG = {
    "five runs of channels": Convolution(2, 9, 11, 312, 72, (3, 3), pads=(1, 1, 1, 1)),
    "a line of taps": Convolution(2, 6, 20, 448, 136, (1, 3), pads=(0, 1, 0, 1), dilations=(1, 2)),
    "more taps at a time": Convolution(2, 9, 12, 136, 64, (5, 5), pads=(2, 2, 2, 2)),
    "7x7 map": Convolution(5, 7, 7, 256, 64, (3, 3), pads=(1, 1, 1, 1)),
}


@FORMS
@pytest.mark.parametrize("name", LONG)
def test_weights_that_are_streamed(name: str, sparse: bool) -> None:
    """Each block has several tiles of pixels, so the first weights come again."""
    shape = LONG[name]
    tiles = [tile for tile in stationary_tiles(shape, sparse=sparse, residual=True) if tile.streamed]
    assert tiles
    for tile in tiles[:: 1 if name == "five runs of channels" else 2]:
        assert tile.streamed == min(n for n in range(3, 26) if shape.kernel[0] * shape.kernel[1] % n == 0)
        check(STATIONARY, shape, DType.FLOAT16, sparse=sparse, tile=tile, **FUSED)


@pytest.mark.parametrize("dtype", [DType.INT8, DType.FLOAT8_E4M3], ids=str)
def test_streamed_in_eight_bits(dtype: DType) -> None:
    shape = Convolution(2, 9, 9, 272, 72, (3, 3), pads=(1, 1, 1, 1))
    layer = Quantised(shape, dtype, dtype, True, pitch=96, offset=16)
    values = random_values(layer)
    tile = next(tile for tile in stationary_tiles(shape, sparse=True, itemsize=1, residual=True) if tile.streamed)
    kernel = stationary(shape, tile, dtype, layer.epilogue, sparse=True)
    packed = pack_stationary(values.weight, tile.filters // 64, sparse=True).data
    outputs = [((shape.pixels, 96), dtype.numpy)]
    (result,) = run(kernel, [values.image, values.residual], [packed, values.constants], outputs)
    sums = convolved(values.image, values.weight, shape)
    assert_rounded(result[:, 16:88], values.results(sums), dtype)


@FORMS
def test_what_does_not_fit_is_told(sparse: bool) -> None:
    long = Convolution(8, 14, 14, 256, 256, (3, 3), pads=(1, 1, 1, 1))
    assert all(tile.streamed for tile in stationary_tiles(long, sparse=sparse))
    assert (
        stationary_tiles(dataclasses.replace(long, kernel=(1, 1), pads=(0, 0, 0, 0), channels=2304), sparse=sparse)
        == []
    )
    streamed = Tile(1, 2, 64, 1, 1, 2, stationary=True, streamed=3)
    with pytest.raises(ValueError, match="weights are streamed by whole lines, and so that 3 steps divide the taps"):
        stationary(long, streamed, DType.FLOAT16, Epilogue(), sparse=sparse)
    full = next(tile for tile in stationary_tiles(long, sparse=sparse) if tile.groups == 2)
    with pytest.raises(ValueError, match=r"9 steps do not fit into registers; the tile holds \d"):
        stationary(long, dataclasses.replace(full, streamed=9), DType.FLOAT16, Epilogue(), sparse=sparse)
    words = no_stationary_tiles(long, sparse=sparse)
    assert words == f"weights of 36 steps do not stay in registers; those of {18 if sparse else 10} would"
    short = dataclasses.replace(long, channels=64)
    assert no_stationary_tiles(short, sparse=sparse) is None
    for tile in stationary_tiles(short, sparse=sparse):
        assert tile.shared_bytes(sparse=sparse) <= 232448 // tile.resident - (tile.resident > 1) * 512
        assert tile.stages >= 2
        steps = tile.streamed or 9
        assert held_registers(steps, tile.blocks, sparse=sparse) + tile.blocks * tile.pixels // 2 <= 240 - 38
    with pytest.raises(ValueError, match="is that of one block"):
        stationary(short, dataclasses.replace(SMALL, cluster=2), DType.FLOAT16, Epilogue(), sparse=sparse)
