"""Weights packed for tensor cores, whatever the instruction: back and forth, and what is refused."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from tamis.errors import FormatError
from tamis.formats import TWO_FOUR, magnitude_mask
from tamis.formats.ampere import pack_ampere, unpack_ampere
from tamis.formats.hopper import pack_hopper, pack_stationary, unpack_hopper, unpack_stationary
from tamis.formats.steps import places_bytes, rows_bytes

SHAPES = [(64, 1, 64), (128, 9, 64), (130, 9, 68), (1, 1, 4), (200, 4, 256), (256, 1, 1000), (63, 25, 12)]
# How to pack and unpack, and the rows of an instruction.
AMPERE, HOPPER = (pack_ampere, unpack_ampere, 16), (pack_hopper, unpack_hopper, 64)
STATIONARY = (pack_stationary, unpack_stationary, 64)
NAMES = ["ampere", "hopper", "stationary"]
ALL = pytest.mark.parametrize(("pack", "unpack", "rows"), [AMPERE, HOPPER, STATIONARY], ids=NAMES)


def weight(shape: tuple[int, int, int], dtype: type, *, sparse: bool, seed: int = 0) -> np.ndarray:
    """Random weights, in 2:4 or dense."""
    random = np.random.default_rng(seed)
    dense = random.integers(-128, 128, shape) if dtype is np.int8 else random.standard_normal(shape)
    dense = dense.astype(dtype)
    return np.where(magnitude_mask(dense.astype(np.float32), TWO_FOUR), dense, dtype(0)) if sparse else dense


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("pack", "unpack", "rows", "blocks"),
    [
        (*AMPERE, 1),
        (*AMPERE, 4),
        (*AMPERE, 8),
        (*HOPPER, 1),
        (*HOPPER, 2),
        (*HOPPER, 4),
        (*STATIONARY, 1),
        (*STATIONARY, 4),
    ],
)
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "2:4"])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["float16", "bfloat16"])
def test_packing_loses_nothing(shape, pack, unpack, rows, blocks, sparse, dtype):
    matrix = weight(shape, dtype, sparse=sparse)
    packed = pack(matrix, blocks, sparse=sparse)
    assert packed.data.shape == (
        -(-shape[0] // (rows * blocks)), shape[1] * -(-shape[2] // 64), rows_bytes(rows * blocks, sparse=sparse),
    )  # fmt: skip
    np.testing.assert_array_equal(unpack(packed).view(np.uint16), matrix.view(np.uint16))


@pytest.mark.parametrize("shape", [*((a, b, 2 * c) for a, b, c in SHAPES), (64, 3, 16)], ids=str)
@pytest.mark.parametrize("blocks", [1, 4])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "2:4"])
@pytest.mark.parametrize("dtype", [np.int8, ml_dtypes.float8_e4m3fn], ids=["int8", "float8_e4m3"])
@pytest.mark.parametrize(("pack", "unpack"), [HOPPER[:2], STATIONARY[:2]], ids=NAMES[1:])
def test_packing_loses_nothing_in_8_bits(shape, blocks, sparse, dtype, pack, unpack):
    matrix = weight(shape, dtype, sparse=sparse)
    packed = pack(matrix, blocks, sparse=sparse)
    step = rows_bytes(64 * blocks, sparse=sparse, itemsize=1)
    assert packed.data.shape == (-(-shape[0] // (64 * blocks)), shape[1] * -(-shape[2] // 128), step)
    np.testing.assert_array_equal(unpack(packed).view(np.uint8), matrix.view(np.uint8))


@ALL
def test_groups_that_are_not_full_have_two_different_places(pack, unpack, rows):
    """Equal places are not allowed: hardware's answer to them is undefined."""
    matrix = np.zeros((64, 1, 64), np.float16)
    matrix[:, :, ::4] = np.random.default_rng(0).choice([0.0, 1.0], (64, 1, 16))
    matrix[0, 0, 3] = -0.0
    packed = pack(matrix, 64 // rows, sparse=True)
    places = packed.data[..., -places_bytes(64) :]
    for nibble in (places & 15, places >> 4):
        assert ((nibble & 3) < (nibble >> 2)).all()
    np.testing.assert_array_equal(unpack(packed), matrix)


@pytest.mark.parametrize(
    ("pack", "unpack", "rows", "height"), [(*AMPERE, 32), (*HOPPER, 64), (*STATIONARY, 64)], ids=NAMES
)
def test_metadata_of_one_group(pack, unpack, rows, height):
    """Row 16 + 3 + 8, channels 32 + 16 + 4 to 7: warp 1, q 3, high half, part 1, half 1, second nibble."""
    matrix = np.zeros((height, 1, 64), np.float16)
    matrix[:, :, 0::4] = matrix[:, :, 1::4] = 1.0  # places 0 and 1: nibble 4
    matrix[27, 0, 52:56] = (0.0, 2.0, 0.0, 3.0)  # places 1 and 3: nibble 13
    words = pack(matrix, height // rows, sparse=True).data[0, 0, -places_bytes(height) :].view(np.uint32)
    expected = np.full(2 * height, 0x44444444, np.uint32)
    expected[32 * 1 + 4 * 3 + 2 * 1 + 1] = 0x44D44444
    np.testing.assert_array_equal(words, expected)


@ALL
def test_what_cannot_be_packed_is_refused(pack, unpack, rows):
    with pytest.raises(FormatError, match="bits is needed"):
        pack(np.zeros((64, 1, 64), np.float32), 1, sparse=False)
    with pytest.raises(FormatError, match="taps"):
        pack(np.zeros((64, 64), np.float16), 1, sparse=False)
    with pytest.raises(FormatError, match="non-zeros"):
        pack(np.ones((64, 1, 64), np.float16), 1, sparse=True)
