"""Conversions, the padding of channels and space to depth, in emulation: exactly what NumPy's rounding gives."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_emulation import from_memory, in_memory, memory_shape, run

from tamis.formats.dtype import DType
from tamis.kernels.cuda.movement import concat, convert, pad_channels, space_to_depth
from tamis.kernels.cuda.specification import Argument

F32, F16, BF16 = DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16
SHAPES = [
    (1, 64, 8, 8), (2, 3, 5, 7), (2, 65, 3, 43), (1, 130, 1, 1), (3, 1, 4, 4), (1, 16, 1, 9), (2, 24, 9, 8),
    (1, 9, 13, 13), (2, 8, 2, 2), (1, 200, 7, 7), (2, 5, 33), (1, 12, 3, 4, 5),
]  # fmt: skip


def image(shape):
    return np.random.default_rng(3).standard_normal(shape) * 100


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("to_last", [True, False], ids=["to_last", "from_last"])
@pytest.mark.parametrize(("source", "target"), [(F32, F16), (BF16, BF16)], ids=str)
def test_convert(shape, to_last, source, target):
    x = image(shape)
    given = in_memory(x, source.numpy, not to_last)
    kernel = convert(shape, (source, not to_last), (target, to_last))
    (result,) = run(kernel, [given], [], [(memory_shape(shape, to_last), target.numpy)])
    expected = in_memory(from_memory(given, not to_last), target.numpy, to_last)
    np.testing.assert_array_equal(result.view(np.uint8), expected.view(np.uint8))


@pytest.mark.parametrize("last", [True, False])
def test_convert_in_the_same_layout(last):
    shape = (2, 5, 3, 7)
    given = in_memory(image(shape), F32.numpy, last)
    (result,) = run(convert(shape, (F32, last), (BF16, last)), [given], [], [(given.shape, BF16.numpy)])
    np.testing.assert_array_equal(result.view(np.uint16), given.astype(BF16.numpy).view(np.uint16))


def test_which_kernel_converts():
    def family(shape, to_last=True):
        return convert(shape, (F32, not to_last), (F16, to_last)).family

    assert family((2, 64, 8, 8)) == "transpose" == family((2, 3, 8, 8), False)
    assert family((2, 3, 8, 8)) == "space_to_depth"
    assert family((2, 64, 1, 1)) == "pointwise" == family((2, 1, 8, 8)) == family((5, 7))


@pytest.mark.parametrize("channels", [4, 8, 3])
@pytest.mark.parametrize("last", [True, False], ids=["channels_last", "row_major"])
@pytest.mark.parametrize(("source", "target"), [(F32, F16), (BF16, BF16)], ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 3, 16, 17), (3, 1, 1, 1)], ids=str)
def test_pad_channels(shape, source, target, last, channels):
    given = in_memory(image(shape), source.numpy, last)
    kernel = pad_channels(shape, (source, last), channels, target)
    padded = (shape[0], channels, *shape[2:])
    (result,) = run(kernel, [given], [], [(memory_shape(padded, True), target.numpy)])
    expected = np.zeros(padded)
    expected[:, : shape[1]] = from_memory(given, last)
    np.testing.assert_array_equal(result, in_memory(expected, target.numpy, True))


@pytest.mark.parametrize("channels", [2, 17])
def test_pad_channels_refuses(channels):
    with pytest.raises(ValueError, match="cannot pad"):
        pad_channels((1, 3, 4, 4), (F32, False), channels, F16)


def in_blocks(x, block, size, channels):
    """Space to depth by NumPy, of an image [N,C,H,W] that may be smaller or larger than the blocks."""
    room = [max(wanted * block - given, 0) for wanted, given in zip(size, x.shape[2:], strict=True)]
    whole = np.pad(x, ((0, 0), (0, 0), (0, room[0]), (0, room[1])))[:, :, : size[0] * block, : size[1] * block]
    cut = whole.reshape(*x.shape[:2], size[0], block, size[1], block).transpose(0, 1, 3, 5, 2, 4)
    flat = cut.reshape(x.shape[0], -1, *size)
    return np.pad(flat, ((0, 0), (0, channels - flat.shape[1]), (0, 0), (0, 0)))


BLOCKS = [
    ("stem", (2, 3, 8, 12), 2, (4, 6), 16),
    ("odd sizes", (2, 3, 7, 9), 2, (4, 5), 16),
    ("unread rows", (1, 3, 9, 8), 2, (4, 4), 16),
    ("patches", (2, 3, 32, 16), 16, (2, 1), 768),
    ("patches of 14", (1, 3, 28, 42), 14, (2, 3), 592),
    ("blocks of three", (1, 3, 10, 12), 3, (4, 4), 32),
    ("one channel", (3, 1, 5, 6), 2, (3, 3), 8),
    ("four of four", (1, 4, 8, 8), 4, (2, 2), 64),
    ("smaller than a block", (2, 2, 1, 3), 4, (1, 1), 32),
    ("whole pixels", (1, 1, 6, 6), 3, (2, 2), 9),
    ("many blocks", (2, 3, 64, 62), 2, (32, 31), 16),
]


@pytest.mark.parametrize(("shape", "block", "size", "channels"), [b[1:] for b in BLOCKS], ids=[b[0] for b in BLOCKS])
@pytest.mark.parametrize("last", [True, False], ids=["channels_last", "row_major"])
@pytest.mark.parametrize(("source", "target"), [(F32, F16), (F16, F16), (BF16, BF16), (F32, F32)], ids=str)
def test_space_to_depth(shape, block, size, channels, last, source, target):
    given = in_memory(image(shape), source.numpy, last)
    kernel = space_to_depth(shape, (source, last), block, size, channels, target)
    made = (shape[0], channels, *size)
    (result,) = run(kernel, [given], [], [(memory_shape(made, True), target.numpy)])
    expected = in_blocks(from_memory(given, last), block, size, channels)
    np.testing.assert_array_equal(result, in_memory(expected, target.numpy, True))


def test_what_a_thread_of_space_to_depth_moves():
    def moved(shape, block, channels, dtype=F16, last=False):
        size = (shape[2] // block, shape[3] // block)
        defines = space_to_depth(shape, (dtype, last), block, size, channels, dtype).defines
        return defines["RUN"], defines["PART"], defines["WIDTH"]

    assert moved((1, 3, 224, 224), 2, 16) == (2, 8, 8)
    assert moved((1, 3, 224, 224), 2, 12, F32) == (2, 4, 4)
    assert moved((1, 3, 224, 224), 16, 768) == (8, 8, 8)
    assert moved((1, 3, 224, 224), 16, 768, F32) == (4, 4, 4)
    assert moved((1, 3, 224, 224), 16, 768, last=True) == (1, 8, 8)
    assert moved((1, 3, 225, 225), 2, 16) == (1, 8, 8)  # rows begin at odd addresses
    assert moved((1, 1, 9, 9), 3, 9) == (1, 9, 1)


@pytest.mark.parametrize(("block", "channels"), [(2, 8), (2, 20), (3, 24)])
def test_space_to_depth_refuses(block, channels):
    with pytest.raises(ValueError, match="cannot pad blocks"):
        space_to_depth((1, 3, 6, 6), (F32, False), block, (2, 2), channels, F16)


JOINTS = [
    ("channels", (2, 3, 5), 1, (16, 8, 24), True),
    ("odd channels", (2, 3, 5), 1, (3, 1, 7), True),
    ("planes", (2, 3, 5), 1, (3, 4), False),
    ("width", (2, 4, 3), 3, (2, 5), False),
    ("rows", (7,), 0, (3, 1), False),
    ("batch", (4, 3, 3), 0, (1, 2), True),
    ("eight", (2, 1, 2), 1, (1, 2, 3, 4, 5, 6, 7, 8), True),
]


@pytest.mark.parametrize(("others", "axis", "sizes", "last"), [j[1:] for j in JOINTS], ids=[j[0] for j in JOINTS])
@pytest.mark.parametrize("dtype", [F32, F16], ids=str)
def test_concat_and_split(others, axis, sizes, last, dtype):
    shapes = [(*others[:axis], size, *others[axis:]) for size in sizes]
    values = [np.random.default_rng(i).standard_normal(shape) for i, shape in enumerate(shapes)]
    pieces = [in_memory(value, dtype.numpy, last) for value in values]
    whole = in_memory(np.concatenate(values, axis), dtype.numpy, last)
    many = [Argument("in", index) for index in range(len(sizes))]
    joined = concat(shapes, axis, dtype, last, Argument("out", 0), many)
    (result,) = run(joined, pieces, [], [(whole.shape, dtype.numpy)])
    np.testing.assert_array_equal(result, whole)
    many = [Argument("out", index) for index in range(len(sizes))]
    cut = concat(shapes, axis, dtype, last, Argument("in", 0), many)
    results = run(cut, [whole], [], [(piece.shape, dtype.numpy) for piece in pieces])
    for result, piece in zip(results, pieces, strict=True):
        np.testing.assert_array_equal(result, piece)


def test_units_of_concat():
    def unit(*channels, dtype=F16):
        shapes = [(2, c, 3, 3) for c in channels]
        return concat(shapes, 1, dtype, True, Argument("out"), [Argument("in")] * len(shapes)).defines["BYTES"]

    assert [unit(64, 32), unit(64, 4), unit(2, 4), unit(3, 4), unit(1, 1, dtype=F32)] == [16, 8, 4, 2, 4]
    with pytest.raises(ValueError, match="1 pieces"):
        unit(3)
