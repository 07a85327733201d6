"""Max pooling within the convolution, in emulation: exactly what convolution and pooling give one after the other."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from cuda_emulation import run
from test_cuda_implicit_gemm import RELU, Data, convolved, data
from test_cuda_stem import rearranged

from conv_layers import conv, conv_layer
from tamis.compiler.ir.evaluate import evaluate
from tamis.compiler.ir.evaluate_spatial import SPATIAL
from tamis.compiler.ir.infer_spatial import pooled_size
from tamis.compiler.ir.ops import Elementwise, Pointwise, Pool
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
    runs_of_tiles,
    tops,
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
        (expected,) = evaluate(Elementwise((Pointwise(step.kind),)), [expected])
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
    "even": ((3, 3, 16, 28), 64, 7),
    "odd lines and columns": ((3, 3, 29, 33), 24, 7),
    "one line": ((2, 3, 2, 40), 72, 3),
    "lines that slide": ((3, 3, 24, 66), 16, 7),
    "lines that slide in a ring of five": ((1, 3, 20, 224), 8, 7),
    "odd lines that slide": ((1, 3, 21, 77), 16, 3),
}
POOLINGS = {
    "3x3 with padding": STEM, "3x3": Window(3), "3x3 up": Window(3, ceil=True), "2x2": HALVES,
    "2x2 with padding": Window(2, (1, 1, 0, 1)), "3x3 one-sided": Window(3, (0, 1, 1, 0)),
    "3x3 deep in padding": Window(3, (2, 2, 2, 2)),
}  # fmt: skip
FORMS = pytest.mark.parametrize("sparse", [False, True], ids=["dense", "2:4"])


@pytest.mark.parametrize("name", STEMS)
@pytest.mark.parametrize("dtype", [F16, BF16], ids=str)
def test_first_layers(name: str, dtype: DType) -> None:
    """Three images are two runs, one of which goes on from an image to the next, and the other begins within one."""
    given, shape = stem(*STEMS[name], dtype)
    tiles = pooled_tiles(shape, STEM.behind(shape), sparse=False)
    assert tiles[0].weights_stay and tiles[0].sliding == ("slide" in name)
    check(given, shape, STEM, tiles[0], dtype)


@pytest.mark.parametrize("form", ["at once", "sliding", "by turns"])
@pytest.mark.parametrize("name", POOLINGS)
def test_windows_and_padding(name: str, form: str) -> None:
    """Without an activation, so that pixels which do not exist would be larger than some that do."""
    window, wide = POOLINGS[name], 30 if form == "at once" else 65
    given, shape = stem((2, 3, 25 + wide % 2, wide), 16, 3)
    tiles = pooled_tiles(shape, window.behind(shape), sparse=False)
    tile = next(tile for tile in tiles if tile.by_turns == (form == "by turns"))
    assert tile.sliding == (wide == 65)
    check(given, shape, window, tile, steps=())


SLIDING = [name for name in STEMS if "slide" in name]


@pytest.mark.parametrize("multiprocessors", [1, 3, 40])
@pytest.mark.parametrize("name", SLIDING)
def test_warpgroups_take_turns(name: str, multiprocessors: int) -> None:
    """Runs of a block that are as long as each other, or not, and one tile a run."""
    dtype = BF16 if multiprocessors == 3 else F16
    given, shape = stem(*STEMS[name], dtype)
    pooling = STEM.behind(shape)
    tile = next(tile for tile in pooled_tiles(shape, pooling, sparse=False) if tile.by_turns)
    assert (tile.filters, tile.runs, tile.resident) == (64, 2, 1)
    check(given, shape, STEM, tile, dtype, multiprocessors=multiprocessors)


@pytest.mark.parametrize("lines", [2, 4, 6])
def test_a_warpgroup_may_have_no_turn(lines: int) -> None:
    """One tile for a block of two runs, or two, or three for two blocks: one run is empty, or shorter."""
    given, shape = stem((1, 3, 2 * lines, 80), 8, 3)
    tile = next(tile for tile in pooled_tiles(shape, STEM.behind(shape), sparse=False) if tile.by_turns)
    assert tops(tile, STEM.behind(shape)) == lines // 2
    check(given, shape, STEM, tile, multiprocessors=2)


@pytest.mark.parametrize("name", ["even", "lines that slide"])
@pytest.mark.parametrize("multiprocessors", [2, 5, 40])
def test_runs_begin_within_images_and_blocks_may_have_none(name: str, multiprocessors: int) -> None:
    """Several images a run, several runs an image, and one tile a run."""
    given, shape = stem(*STEMS[name])
    pooling = STEM.behind(shape)
    tile = min(pooled_tiles(shape, pooling, sparse=False), key=lambda tile: tile.lines)
    tiles, runs = shape.batch * tops(tile, pooling), runs_of_tiles(shape, pooling, tile, multiprocessors)
    assert runs <= tiles and tile.runs == 1
    check(given, shape, STEM, tile, multiprocessors=multiprocessors)
    kernel = implicit_gemm_pooled(shape, pooling, tile, F16, multiprocessors, Epilogue((RELU,), True), sparse=False)
    assert kernel.grid == (runs * -(-shape.filters // tile.filters), 1, 1)


def test_more_blocks_than_tiles() -> None:
    """A launch for a larger device: some blocks have nothing to do, and say so to the next kernel."""
    given, shape = stem((1, 3, 12, 20), 8, 3)
    pooling, epilogue = STEM.behind(shape), Epilogue()
    tile = pooled_tiles(shape, pooling, sparse=False)[0]
    kernel = implicit_gemm_pooled(shape, pooling, tile, F16, 1, epilogue, sparse=False)
    packed = pack_hopper(given.weight, tile.filters // 64, sparse=False).data
    out = [((1, *pooling.output, 8), F16.numpy)]
    (few,) = run(kernel, [given.image], [packed], out)
    (many,) = run(replace(kernel, grid=(9, 1, 1)), [given.image], [packed], out)
    np.testing.assert_array_equal(few, many)


@pytest.mark.parametrize("steps", [(SILU,), (), (RELU, PointwiseStep("neg"))], ids=["silu", "none", "falling"])
def test_activations_come_before_the_pooling(steps: tuple[PointwiseStep, ...]) -> None:
    """Of one that falls, or falls and rises, the maximum is not that of the sums."""
    given, shape = stem((1, 3, 18, 22), 24, 3)
    check(given, shape, HALVES, pooled_tiles(shape, HALVES.behind(shape), sparse=False)[0], steps=steps)


@pytest.mark.parametrize("by_turns", [False, True], ids=["at once", "by turns"])
@pytest.mark.parametrize("window", [STEM, HALVES], ids=["3x3", "2x2"])
def test_no_number_reaches_as_far_as_its_windows(window: Window, by_turns: bool) -> None:
    shape = Convolution(2, 11, 33 if by_turns else 13, 64, 64, (3, 3), pads=(1, 1, 1, 1))
    given = data(shape, F16, sparse=False)
    for place in ((0, 0, 0, 3), (1, 10, 12, 0), (0, 6, 5, 63)):
        given.image[place] = np.nan
    given.image[1, 3, 3, 7] = -np.inf
    with np.errstate(invalid="ignore"):
        sums = convolved(given.image, given.weight, shape)
    tiles = pooled_tiles(shape, window.behind(shape), sparse=False)
    tile = next(tile for tile in tiles if tile.by_turns == by_turns)
    result = check(replace(given, sums=sums), shape, window, tile)
    assert 0 < np.isnan(result.astype(np.float32)).mean() < 0.9


def test_nothing_but_padding_is_the_lowest_value() -> None:
    """As of the kernel for pooling: a window that sees no pixel."""
    given, shape = stem((1, 3, 4, 6), 8, 3)
    window = Window(2, (1, 1, 1, 1))
    pooling = replace(window.behind(shape), output=(3, 4))
    tile = pooled_tiles(shape, pooling, sparse=False)[0]
    kernel = implicit_gemm_pooled(shape, pooling, tile, F16, 1, Epilogue(), sparse=False)
    packed = pack_hopper(given.weight, tile.filters // 64, sparse=False).data
    (result,) = run(kernel, [given.image], [packed], [((1, 3, 4, 8), F16.numpy)])
    assert np.isneginf(result[:, 2].astype(np.float32)).all() and np.isneginf(result[:, :, 3].astype(np.float32)).all()
    assert np.isfinite(result[:, :2, :2].astype(np.float32)).all()


LAYERS = {
    "one run of channels": Convolution(1, 5, 34, 64, 72, (3, 3), pads=(1, 1, 1, 1)),
    "two runs of channels": Convolution(1, 9, 28, 128, 64, (3, 2), pads=(0, 1, 2, 0)),
    "dilated": Convolution(2, 14, 14, 64, 72, (3, 3), pads=(2, 2, 2, 2), dilations=(2, 2)),
    "more taps than lines": Convolution(1, 9, 40, 24, 64, (5, 3), pads=(2, 1, 2, 1)),
    "a row of taps": Convolution(1, 5, 40, 64, 64, (1, 3), pads=(0, 1, 0, 1)),
}


@FORMS
@pytest.mark.parametrize("name", LAYERS)
def test_plain_convolutions(name: str, sparse: bool) -> None:
    """Each form of the kernel, as far as it takes a layer."""
    shape = LAYERS[name]
    given = data(shape, F16, sparse=sparse)
    window = HALVES if sparse else STEM
    tiles = pooled_tiles(shape, window.behind(shape), sparse=sparse)
    assert any(tile.sliding for tile in tiles) == (shape.width > 30)
    forms = {(tile.sliding, tile.weights_stay, tile.groups, tile.by_turns): tile for tile in tiles}
    for tile in forms.values() if name == "one run of channels" else tiles[:1]:
        check(given, shape, window, tile, sparse=sparse, multiprocessors=2)


def test_the_result_lands_within_a_concat() -> None:
    given, shape = stem((1, 3, 14, 18), 24, 3)
    check(given, shape, STEM, pooled_tiles(shape, STEM.behind(shape), sparse=False)[0], pitch=64, offset=16)


@FORMS
def test_tiles_fit_into_shared_memory(sparse: bool) -> None:
    for shape in (*LAYERS.values(), Convolution(128, 115, 112, 64, 64, (4, 1), apart=(16, 1840, 211600))):
        for window in (STEM, HALVES):
            pooling = window.behind(shape)
            for tile in pooled_tiles(shape, pooling, sparse=sparse):
                assert tile.shared_bytes(pooling, sparse=sparse) <= 232448 // tile.resident - (tile.resident > 1) * 512
                assert (tile.stages + tile.runs * tile.line_stages + 1) * 16 <= 1024
                assert tile.stages >= 2 or tile.weights_stay
                assert tile.lines % 2 == tile.line % 8 == 0


REFUSED = (
    (Convolution(1, 8, 8, 64, 64, (3, 3), (2, 2), (1,) * 4), Pooling(2, 0, 0, (2, 2)), "do not lie side by side"),
    (Convolution(1, 8, 8, 64, 64), Pooling(2, 0, 0, (4, 4)), "or there is one tap"),
    (Convolution(1, 8, 8, 64, 20, (3, 3), pads=(1,) * 4), Pooling(2, 0, 0, (4, 4)), "20 filters"),
    (Convolution(1, 8, 8, 64, 64, (3, 3), pads=(1,) * 4), Pooling(4, 0, 0, (4, 4)), "windows of 4"),
    (Convolution(1, 8, 8, 64, 64, (3, 3), pads=(1,) * 4), Pooling(3, 3, 0, (4, 4)), "3 and 0 of padding"),
    (Convolution(1, 8, 8, 64, 64, (3, 3), pads=(1,) * 4, groups=2), Pooling(2, 0, 0, (4, 4)), "grouped"),
)


@pytest.mark.parametrize(("shape", "pooling", "reason"), REFUSED)
def test_what_is_refused(shape: Convolution, pooling: Pooling, reason: str) -> None:
    assert pooled_tiles(shape, pooling, sparse=False) == []
    with pytest.raises(ValueError, match=reason):
        implicit_gemm_pooled(shape, pooling, SOME_TILE, F16, 1, Epilogue(), sparse=False)


SOME_SHAPE = Convolution(1, 8, 8, 64, 64, (3, 3), pads=(1, 1, 1, 1))
SOME_TILE = pooled_tiles(SOME_SHAPE, STEM.behind(SOME_SHAPE), sparse=False)[0]


@pytest.mark.parametrize(
    ("epilogue", "reason"),
    [
        (Epilogue(residual=True), "behind a residual"),
        (Epilogue(dtype=DType.FLOAT32), "other types than 16 bits"),
        (Epilogue(pitch=100), "multiples of eight channels"),
    ],
)
def test_epilogues_that_are_refused(epilogue: Epilogue, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        implicit_gemm_pooled(SOME_SHAPE, STEM.behind(SOME_SHAPE), SOME_TILE, F16, 1, epilogue, sparse=False)


def test_a_tile_of_another_shape_is_refused() -> None:
    shape = replace(SOME_SHAPE, width=20)
    with pytest.raises(ValueError, match="a tile of another shape"):
        implicit_gemm_pooled(shape, STEM.behind(shape), SOME_TILE, F16, 1, Epilogue(), sparse=False)
