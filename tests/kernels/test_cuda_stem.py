"""Convolutions of images with few channels by overlapping windows, in emulation: both kernels, against float64."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from cuda_emulation import from_memory, in_memory, memory_shape, run

from conv_layers import expected
from stem_layers import SMALL, StemCase
from tamis.compiler.ir.evaluate import evaluate
from tamis.compiler.ir.ops import Conv
from tamis.compiler.tactics.base import Layer
from tamis.compiler.tactics.precision import to_precision
from tamis.compiler.tactics.stem import windows_of, windows_weight
from tamis.formats.dtype import DType
from tamis.formats.hopper import pack_hopper
from tamis.kernels.cuda.implicit_gemm import (
    Convolution,
    Epilogue,
    Tile,
    deepest,
    implicit_gemm_hopper,
)
from tamis.kernels.cuda.implicit_gemm_ampere import AmpereTile, implicit_gemm_ampere
from tamis.kernels.cuda.line_tiles import line_tiles
from tamis.kernels.cuda.movement import space_to_depth
from tamis.kernels.cuda.pointwise import PointwiseStep

F32, F16, BF16 = DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16
CASES = pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)


def rearranged(layer: Layer, image: np.ndarray, source: tuple[DType, bool], dtype: DType) -> np.ndarray:
    """What the step in front makes of an image [N,C,H,W], as it lies in memory."""
    made, _ = windows_of(layer)
    kernel = space_to_depth(image.shape, source, made.block, made.size, made.channels, dtype, made.before)
    shape = memory_shape((image.shape[0], made.channels, *made.size), True)
    (result,) = run(kernel, [in_memory(image, source[0].numpy, source[1])], [], [(shape, dtype.numpy)])
    return result


@CASES
def test_windows_are_the_plain_convolution(case: StemCase) -> None:
    """In float64: padded blocks, windows of them, and the weight over windows."""
    layer, arrays = case.make()
    made, shape = windows_of(layer)
    image, block = arrays["x"].astype(np.float64), made.block
    room = [(low * block, max(size * block, given + low * block) - low * block - given)
            for size, low, given in zip(made.size, made.before, image.shape[2:], strict=True)]  # fmt: skip
    high, wide = (size * block for size in made.size)
    cut = np.pad(image, ((0, 0), (0, 0), *room))[:, :, :high, :wide]
    cut = cut.reshape(*image.shape[:2], made.size[0], block, made.size[1], block).transpose(0, 2, 4, 1, 3, 5)
    flat = cut.reshape(image.shape[0], *made.size, -1)
    pixels = np.pad(flat, ((0, 0), (0, 0), (0, 0), (0, made.channels - flat.shape[3])))
    apart = shape.apart or (shape.channels, made.size[1] * shape.channels, pixels[0].size)
    extents = (shape.batch, shape.height, shape.width, shape.channels)
    assert np.dot(np.array(extents) - 1, (*apart[::-1], 1)) < pixels.size, "a window leaves the image"
    strides = [8 * elements for elements in (*apart[::-1], 1)]
    windows = np.lib.stride_tricks.as_strided(pixels, extents, strides, writeable=False)
    weight = windows_weight(layer, made).astype(np.float64).transpose(0, 2, 1)[..., None]
    (sums,) = evaluate(Conv((1, 1), (0,) * 4, (1, 1)), [windows.transpose(0, 3, 1, 2), weight])
    plain = Conv(layer.op.strides, layer.op.pads, (1, 1))
    (wanted,) = evaluate(plain, [image, arrays["w"].astype(np.float64)])
    np.testing.assert_allclose(sums, wanted, rtol=0, atol=1e-12)


@CASES
@pytest.mark.parametrize(("source", "target"), [((F32, False), F16), ((BF16, True), BF16)], ids=["rows", "last"])
def test_the_step_in_front(case: StemCase, source: tuple[DType, bool], target: DType) -> None:
    """Blocks behind rows and columns of zeros: exactly the rounded values."""
    layer, arrays = case.make()
    made, _ = windows_of(layer)
    image = from_memory(in_memory(arrays["x"], source[0].numpy, source[1]), source[1])
    wanted = np.zeros((image.shape[0], made.channels, *made.size))
    for c, down, across, i, j in np.ndindex(image.shape[1], made.block, made.block, *made.size):
        y, x = made.block * (i - made.before[0]) + down, made.block * (j - made.before[1]) + across
        if 0 <= y < image.shape[2] and 0 <= x < image.shape[3]:
            wanted[:, (c * made.block + down) * made.block + across, i, j] = image[:, c, y, x]
    result = rearranged(layer, arrays["x"], source, target)
    np.testing.assert_array_equal(result, in_memory(wanted, target.numpy, True))


def check(case: StemCase, dtype: DType, tile: Tile) -> None:
    """Both kernels, bias, residual and activation fused."""
    layer, arrays = case.make()
    made, shape = windows_of(layer)
    pixels = rearranged(layer, arrays["x"], (F32, False), dtype)
    packed = pack_hopper(
        to_precision(windows_weight(layer, made), dtype), tile.blocks * tile.groups, sparse=False
    ).data  # fmt: skip
    residuals = [step for step in layer.op.epilogue if step.operand is not None]
    names = [layer.node.inputs[step.operand] for step in residuals]
    steps = tuple(PointwiseStep(s.kind, s.params, None if s.operand is None else 0) for s in layer.op.epilogue)
    kernel = implicit_gemm_hopper(shape, tile, dtype, 2, Epilogue(steps, layer.op.bias, bool(names)), sparse=False)
    given = [pixels, *(in_memory(arrays[name], dtype.numpy, True) for name in names)]
    constants = [packed, *([arrays["b"]] if layer.op.bias else [])]
    out = layer.types[layer.node.output].shape
    (result,) = run(kernel, given, constants, [(memory_shape(out, True), dtype.numpy)])
    rounded = {name: array.astype(dtype.numpy).astype(np.float32) if name != "b" else array
               for name, array in arrays.items()}  # fmt: skip
    tolerance = {F16: 2e-3, BF16: 1.6e-2}[dtype]
    np.testing.assert_allclose(from_memory(result, True), expected(layer, rounded), rtol=tolerance, atol=tolerance)


@CASES
@pytest.mark.parametrize("dtype", [F16, BF16], ids=str)
def test_taps(case: StemCase, dtype: DType) -> None:
    """The pixels that each tap sees, copied for it."""
    check(case, dtype, deepest(1, 1, 64, sparse=False, most=2))


@pytest.mark.parametrize(
    ("case", "place"), list(product(SMALL[:6], (0, -1))), ids=lambda each: getattr(each, "name", str(each))
)
def test_whole_lines(case: StemCase, place: int) -> None:
    """Lines of windows, copied once for all taps; the last tile of an image has fewer."""
    shape = windows_of(case.make()[0])[1]
    check(case, F16, line_tiles(shape, sparse=False)[place])


def test_what_the_kernels_refuse() -> None:
    overlapping = Convolution(1, 4, 4, 64, 64, (3, 1), apart=(12, 84, 336))
    with pytest.raises(ValueError, match="elements apart, not a multiple of 8"):
        implicit_gemm_hopper(overlapping, Tile(1, 1, 64, 1, 1, 2), F16, 1, Epilogue(), sparse=False)
    with pytest.raises(ValueError, match="do not follow each other"):
        implicit_gemm_ampere(overlapping, AmpereTile(2, 2, 2, 2, 2), F16, Epilogue(), sparse=False)
