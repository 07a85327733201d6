"""Weights packed for Hopper's tensor cores: single places by the text of the instruction set."""

from __future__ import annotations

import numpy as np

from tamis.formats.hopper import pack_hopper


def test_a_row_lies_where_the_instruction_looks_for_it():
    """Row 8 g + r, bytes 16 h to 16 h + 15 of a part: the core matrix at 256 g + 128 h, row r of it."""
    matrix = np.arange(64 * 64, dtype=np.uint16).reshape(64, 1, 64).view(np.float16)
    data = pack_hopper(matrix, 1, sparse=False).data[0, 0].view(np.uint16)
    for row, channel in [(0, 0), (0, 8), (1, 0), (8, 0), (9, 17), (63, 63)]:
        part, half, element = channel // 16, channel % 16 // 8, channel % 8
        at = part * 2048 + row // 8 * 256 + half * 128 + row % 8 * 16 + element * 2
        assert data[at // 2] == row * 64 + channel
