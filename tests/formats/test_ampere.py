"""Weights packed for tensor cores since Ampere: single places by the text of the instruction set."""

from __future__ import annotations

import numpy as np
import pytest

from tamis.formats.ampere import pack_ampere


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
