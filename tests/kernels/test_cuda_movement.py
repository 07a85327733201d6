"""Conversions between formats and the padding of channels, in emulation: exactly what NumPy's rounding gives."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_emulation import from_memory, in_memory, memory_shape, run

from tamis.formats.dtype import DType
from tamis.kernels.cuda.movement import concat, convert, pad_channels
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
    assert family((2, 3, 8, 8)) == "pad_channels"
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
