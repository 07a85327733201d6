"""Weights packed for tensor cores since Ampere: back and forth, and single places by the text of the instruction set."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from packed_weights import SHAPES, assert_places_ascend, assert_refused, weight

from tamis.formats.ampere import pack_ampere, unpack_ampere
from tamis.formats.steps import places_bytes, rows_bytes


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("blocks", [1, 4, 8])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "2:4"])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["float16", "bfloat16"])
def test_packing_loses_nothing(shape, blocks, sparse, dtype):
    matrix = weight(shape, dtype, sparse=sparse)
    packed = pack_ampere(matrix, blocks, sparse=sparse)
    assert packed.data.shape == (
        -(-shape[0] // (16 * blocks)), shape[1] * -(-shape[2] // 64), rows_bytes(16 * blocks, sparse=sparse),
    )  # fmt: skip
    np.testing.assert_array_equal(unpack_ampere(packed).view(np.uint16), matrix.view(np.uint16))


def test_groups_that_are_not_full_have_two_different_places():
    assert_places_ascend(pack_ampere, unpack_ampere, 16)


@pytest.mark.parametrize(
    ("row", "column", "lane", "word", "half"),
    [(0, 0, 0, 0, 0), (0, 1, 0, 0, 1), (0, 2, 1, 0, 0), (3, 0, 12, 0, 0), (8, 0, 0, 1, 0), (0, 8, 0, 2, 0),
     (13, 15, 23, 3, 1), (15, 7, 31, 1, 1)],
)  # fmt: skip
def test_an_element_lies_in_the_register_where_the_instruction_looks_for_it(row, column, lane, word, half):
    """m16n8k16: a0, a1 are row q of columns 2 h and 2 h + 1; a2, a3 row q + 8; a4 to a7 the same 8 columns further."""
    matrix = np.arange(32 * 64, dtype=np.uint16).reshape(32, 1, 64).view(np.float16)
    data = pack_ampere(matrix, 2, sparse=False).data[0, 0].view(np.uint16)
    for block, part in [(0, 0), (0, 3), (1, 2)]:
        at = block * 2048 + part * 512 + lane * 16 + word * 4 + half * 2
        assert data[at // 2] == (block * 16 + row) * 64 + part * 16 + column


def test_a_kept_value_lies_where_the_instruction_looks_for_it():
    """The second kept value of channels 60 to 63 in row 16 + 11: part 1, kept column 15, lane 15, last register."""
    matrix = np.zeros((32, 1, 64), np.float16)
    matrix[27, 0, 60:64] = (0.0, 2.0, 0.0, 3.0)
    data = pack_ampere(matrix, 2, sparse=True).data[0, 0].view(np.float16)
    kept = data[: 2 * 1024 // 2]
    at = (1 * 1024 + 1 * 512 + 15 * 16 + 3 * 4) // 2
    assert tuple(kept[at : at + 2]) == (2.0, 3.0)
    assert np.count_nonzero(kept) == 2


def test_metadata_of_one_group():
    """Row 16 + 3 + 8, channels 32 + 16 + 4 to 7: second block, q 3, high half, part 1, half 1, second nibble."""
    matrix = np.zeros((32, 1, 64), np.float16)
    matrix[:, :, 0::4] = matrix[:, :, 1::4] = 1.0  # places 0 and 1: nibble 4
    matrix[27, 0, 52:56] = (0.0, 2.0, 0.0, 3.0)  # places 1 and 3: nibble 13
    words = pack_ampere(matrix, 2, sparse=True).data[0, 0, -places_bytes(32) :].view(np.uint32)
    expected = np.full(64, 0x44444444, np.uint32)
    expected[32 * 1 + 4 * 3 + 2 * 1 + 1] = 0x44D44444
    np.testing.assert_array_equal(words, expected)


def test_what_cannot_be_packed_is_refused():
    assert_refused(pack_ampere)
