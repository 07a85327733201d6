"""Weights packed for Hopper's tensor cores: back and forth, and single places by the text of the instruction set."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from packed_weights import SHAPES, assert_places_ascend, assert_refused, weight

from tamis.formats.hopper import pack_hopper, unpack_hopper
from tamis.formats.steps import places_bytes, rows_bytes


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("blocks", [1, 2, 4])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "2:4"])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["float16", "bfloat16"])
def test_packing_loses_nothing(shape, blocks, sparse, dtype):
    matrix = weight(shape, dtype, sparse=sparse)
    packed = pack_hopper(matrix, blocks, sparse=sparse)
    assert packed.data.shape == (
        -(-shape[0] // (64 * blocks)), shape[1] * -(-shape[2] // 64), rows_bytes(64 * blocks, sparse=sparse),
    )  # fmt: skip
    np.testing.assert_array_equal(unpack_hopper(packed).view(np.uint16), matrix.view(np.uint16))


def test_groups_that_are_not_full_have_two_different_places():
    assert_places_ascend(pack_hopper, unpack_hopper, 64)


def test_a_row_lies_where_the_instruction_looks_for_it():
    """Row 8 g + r, bytes 16 h to 16 h + 15 of a part: the core matrix at 256 g + 128 h, row r of it."""
    matrix = np.arange(64 * 64, dtype=np.uint16).reshape(64, 1, 64).view(np.float16)
    data = pack_hopper(matrix, 1, sparse=False).data[0, 0].view(np.uint16)
    for row, channel in [(0, 0), (0, 8), (1, 0), (8, 0), (9, 17), (63, 63)]:
        part, half, element = channel // 16, channel % 16 // 8, channel % 8
        at = part * 2048 + row // 8 * 256 + half * 128 + row % 8 * 16 + element * 2
        assert data[at // 2] == row * 64 + channel


def test_metadata_of_one_group():
    """Row 16 + 3 + 8, channels 32 + 16 + 4 to 7: warp 1, q 3, high half, part 1, half 1, second nibble."""
    matrix = np.zeros((64, 1, 64), np.float16)
    matrix[:, :, 0::4] = matrix[:, :, 1::4] = 1.0  # places 0 and 1: nibble 4
    matrix[27, 0, 52:56] = (0.0, 2.0, 0.0, 3.0)  # places 1 and 3: nibble 13
    words = pack_hopper(matrix, 1, sparse=True).data[0, 0, -places_bytes(64) :].view(np.uint32)
    expected = np.full(128, 0x44444444, np.uint32)
    expected[32 * 1 + 4 * 3 + 2 * 1 + 1] = 0x44D44444
    np.testing.assert_array_equal(words, expected)


def test_what_cannot_be_packed_is_refused():
    assert_refused(pack_hopper)
