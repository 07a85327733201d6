"""Grouped convolutions on tensor cores, on the CPU: against float64, bundles of groups, infinities beside them."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cuda_emulation import assert_close, run
from test_cuda_implicit_gemm import ADD, AMPERE, FAMILIES, HOPPER, RELU, Family, convolved

from tamis.formats import TWO_FOUR, magnitude_mask
from tamis.formats.bundles import bundle_weight
from tamis.formats.dtype import DType
from tamis.kernels.cuda.convolution import Convolution
from tamis.kernels.cuda.implicit_gemm import Epilogue, Tile, implicit_gemm_hopper
from tamis.kernels.cuda.line_tiles import line_tiles
from tamis.kernels.cuda.pointwise import PointwiseStep

SPARSITY = pytest.mark.parametrize("sparse", [False, True], ids=["dense", "2:4"])


def grouped_sums(image: np.ndarray, weight: np.ndarray, shape: Convolution) -> np.ndarray:
    """[pixels, filters] in float64: each group as a convolution of its own."""
    parts = zip(np.split(image, shape.groups, axis=3), np.split(weight, shape.groups), strict=True)
    channels, filters = shape.channels // shape.groups, shape.filters // shape.groups
    one = replace(shape, channels=channels, filters=filters, groups=1)
    return np.concatenate([convolved(pixels, filters, one) for pixels, filters in parts], axis=1)


def operands(shape: Convolution, dtype: DType, *, sparse: bool) -> tuple[np.ndarray, np.ndarray]:
    """Image and weight [filters, taps, channels of a group]."""
    draw = np.random.default_rng(0)
    image = draw.standard_normal((shape.batch, shape.height, shape.width, shape.channels)).astype(dtype.numpy)
    taps, depth = shape.kernel[0] * shape.kernel[1], shape.channels // shape.groups
    weight = (draw.standard_normal((shape.filters, taps, depth)) / np.sqrt(taps * depth)).astype(dtype.numpy)
    if sparse:
        weight = np.where(magnitude_mask(weight.astype(np.float32), TWO_FOUR), weight, weight.dtype.type(0))
    return image, weight


def result_of(
    family: Family, shape: Convolution, image: np.ndarray, weight: np.ndarray, tile: Any, *, sparse: bool,
    residuals: np.ndarray | None = None, biases: np.ndarray | None = None, steps: tuple[PointwiseStep, ...] = (),
    pitch: int | None = None, offset: int = 0, dtype: DType = DType.FLOAT16, **launch: int,
) -> np.ndarray:  # fmt: skip
    """[pixels, filters] of the kernel; what it must not write has stayed."""
    epilogue = Epilogue(steps, biases is not None, residuals is not None, dtype, pitch, offset)
    kernel = family.make(shape, tile, dtype, epilogue, sparse=sparse, **launch)
    matrix = bundle_weight(weight, shape.bundles(tile.filters), tile.filters)
    packed = family.pack(matrix, tile.filters // family.rows, sparse=sparse)
    more = [] if residuals is None else [residuals]
    constants = [packed.data, *([] if biases is None else [biases])]
    out = [((shape.pixels, pitch or shape.filters), dtype.numpy)]
    (result,) = run(kernel, [image, *more], constants, out)
    mine = slice(offset, offset + shape.filters)
    assert np.isnan(np.delete(result.astype(np.float32), mine, axis=1)).all()
    return result[:, mine].astype(np.float64)


def check(
    family: Family, shape: Convolution, *, sparse: bool, tile: Any = None, fused: bool = True, dtype: DType = DType.FLOAT16,
    pitch: int | None = None, offset: int = 0, **launch: int,
) -> None:  # fmt: skip
    """With bias, residual and ReLU where it is ``fused``."""
    image, weight = operands(shape, dtype, sparse=sparse)
    draw, expected, more = np.random.default_rng(1), grouped_sums(image, weight, shape), {}
    if fused:
        biases = draw.standard_normal(shape.filters).astype(np.float32)
        residuals = draw.standard_normal((shape.pixels, shape.filters)).astype(dtype.numpy)
        expected = np.maximum(expected + biases + residuals.astype(np.float64), 0.0)
        more = {"biases": biases, "residuals": residuals, "steps": (ADD, RELU)}
    result = result_of(
        family, shape, image, weight, tile or family.small, sparse=sparse, dtype=dtype, pitch=pitch, offset=offset,
        **more, **launch,
    )  # fmt: skip
    assert_close(result, expected, dtype, scale=16.0)


SAME = (1, 1, 1, 1)
# Groups x (channels -> filters) of each.
SHAPES = {
    "32 x 4": Convolution(1, 5, 6, 128, 128, (3, 3), pads=SAME, groups=32),
    "4 x 8 to 12": Convolution(2, 5, 4, 32, 48, (3, 3), (2, 2), SAME, groups=4),
    "7 x 16, one left over": Convolution(1, 4, 5, 112, 112, (3, 3), pads=SAME, groups=7),
    "3 x 24": Convolution(1, 7, 7, 72, 72, (3, 3), pads=(2, 2, 2, 2), dilations=(2, 2), groups=3),
    "2 x 40 to 20": Convolution(1, 4, 4, 80, 40, (3, 2), (1, 2), (0, 1, 2, 0), groups=2),
    "4 x 64 to 16": Convolution(1, 4, 4, 256, 64, groups=4),
    "2 x 72 to 136": Convolution(1, 1, 40, 144, 272, groups=2),
    "7x7 of 2 x 4 to 3": Convolution(1, 8, 9, 8, 6, (7, 7), (2, 2), (3, 3, 3, 3), groups=2),
    "strided 1x1": Convolution(2, 5, 5, 64, 64, (1, 1), (2, 2), groups=8),
}


@FAMILIES
@SPARSITY
@pytest.mark.parametrize("name", SHAPES)
def test_groups(family: Family, name: str, sparse: bool) -> None:
    check(family, SHAPES[name], sparse=sparse)


@FAMILIES
def test_the_result_lands_within_a_concat(family: Family) -> None:
    for pitch, offset in ((160, 24), (131, 3)):
        shape = Convolution(1, 4, 4, 32, 96, groups=4)
        check(family, shape, sparse=True, fused=False, pitch=pitch, offset=offset, dtype=DType.BFLOAT16)


@pytest.mark.parametrize("name", ["7 x 16, one left over", "3 x 24"])
def test_whole_lines(name: str) -> None:
    """Copied once for all taps: also of a bundle's channels alone."""
    tiles = line_tiles(SHAPES[name], sparse=True, residual=True)
    assert {tile.lines for tile in tiles} - {0}
    for tile in tiles[::5]:
        check(HOPPER, SHAPES[name], sparse=True, tile=tile)


def test_several_tiles_of_a_group_and_blocks_that_divide_steps() -> None:
    check(HOPPER, SHAPES["2 x 72 to 136"], sparse=True, tile=Tile(1, 1, 64, 1, 2, 2))
    check(HOPPER, SHAPES["3 x 24"], sparse=True, tile=Tile(1, 1, 64, 1, 4, 2), multiprocessors=8)


def drawn(seed: int) -> Convolution:
    """A grouped convolution of odd extents."""
    draw = random.Random(seed)
    kernel, stride, dilation = (
        draw.choice(((1, 1), (3, 3), (1, 3), (2, 2), (7, 7))),
        draw.choice((1, 2)),
        draw.choice((1, 2)),
    )
    groups, depth = draw.choice(((2, 4), (4, 6), (32, 4), (4, 8), (3, 16), (5, 24), (2, 40), (3, 64), (9, 8)))
    size = [(side - 1) * dilation + draw.randint(1, 4) for side in kernel]
    return Convolution(
        draw.randint(1, 2), *size, groups * depth, groups * draw.choice((1, 4, 8, 12, depth, 2 * depth)), kernel,
        (stride, draw.choice((1, 2))), tuple(draw.randint(0, 2) for _ in range(4)), (dilation, dilation), groups=groups,
    )  # fmt: skip


@FAMILIES
@pytest.mark.parametrize("seed", range(10))
def test_random_shapes(family: Family, seed: int) -> None:
    shape = drawn(seed)
    check(family, shape, sparse=seed % 2 == 0 and shape.channels // shape.groups % 4 == 0)


@FAMILIES
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_what_is_not_a_number_stays_in_its_bundle(family: Family, value: float) -> None:
    """What sees such channels may be no number instead of its number, but never another one, not even after ReLU.

    The last bundle sees channels of the bundle before.
    """
    shape = SHAPES["7 x 16, one left over"]
    bundles = shape.bundles(family.small.filters)
    assert (bundles.merged, bundles.count, bundles.first_group(1)) == (4, 2, 3)
    for group in (3, 4):
        image, weight = operands(shape, DType.FLOAT16, sparse=False)
        image[0, 1, 2, group * 16] = value
        with np.errstate(invalid="ignore"):
            exact = grouped_sums(image, weight, shape)
        exact = np.where(exact < 0, 0.0, exact)
        result = result_of(family, shape, image, weight, family.small, sparse=False, steps=(RELU,))
        poisoned = np.isnan(result) & ~np.isnan(exact)
        assert_close(np.where(poisoned, 0.0, result), np.where(poisoned, 0.0, exact), DType.FLOAT16, scale=16.0)
        if family is AMPERE:
            assert not poisoned.any(), "groups of 16 are whole products, and others are left out"
        if group == 4:
            assert not poisoned[:, : 4 * 16].any(), "the first bundle does not see this group"


@FAMILIES
def test_a_bundle_alone_sees_no_other_channel(family: Family) -> None:
    """Its channels end within a step, whose rest are zeros and not the next group's."""
    shape = Convolution(1, 4, 4, 144, 272, (3, 3), pads=SAME, groups=2)
    assert shape.bundles(family.small.filters).merged == 1
    image, weight = operands(shape, DType.FLOAT16, sparse=False)
    image[..., 72:] = np.inf
    result = result_of(family, shape, image, weight, family.small, sparse=False)
    image[..., 72:] = 0
    assert_close(result[:, :136], grouped_sums(image, weight, shape)[:, :136], DType.FLOAT16, scale=16.0)


def test_what_cannot_run_is_refused() -> None:
    shape = Convolution(1, 4, 4, 64, 128, groups=2)
    with pytest.raises(ValueError, match="pairs of blocks"):
        implicit_gemm_hopper(shape, Tile(1, 1, 64, 2, 1, 2), DType.FLOAT16, 2, Epilogue(), sparse=False)
    with pytest.raises(ValueError, match="8 bits"):
        implicit_gemm_hopper(shape, HOPPER.small, DType.INT8, 2, Epilogue(), sparse=False)
    for family in (HOPPER, AMPERE):
        with pytest.raises(ValueError, match="36 channels are not a multiple of 8"):
            family.make(
                replace(shape, channels=36, filters=36, groups=9), family.small, DType.FLOAT16, Epilogue(), sparse=False
            )
