"""Weights as tensor cores since Ampere read them (mma, mma.sp, 16-bit types), dense and 2:4.

Tiles of ``16 * blocks`` filters and their steps as in ``formats.steps``. A step begins, for every 16 filters, with the
operands in the order (part, lane). A part is what one instruction reads of a row: dense weights have four parts of 16
channels, 2:4 weights two parts of 16 kept values, which stand for 32 channels. Lane ``4 q + h`` holds 16 bytes: of
columns ``2 h`` and ``2 h + 1`` row ``q``, then row ``q + 8``, then both rows of the columns 8 further. So a thread
loads at once what an instruction takes from it.

Source: PTX ISA 9.0, "Matrix fragments for mma.m16n8k16 with floating point type", and those for sparse mma.m16n8k32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tamis.formats.steps import StepWeights, pack_steps, unpack_steps

ROWS = 16  # of one instruction


def pack_ampere(weight: NDArray[Any], blocks: int, *, sparse: bool) -> StepWeights:
    """Pack a matrix [filters, taps, channels] for tiles of ``16 * blocks`` filters, as ``pack_steps`` does."""
    return pack_steps(weight, ROWS, blocks, fragments, sparse=sparse)


def unpack_ampere(packed: StepWeights) -> NDArray[Any]:
    """The matrix that was packed, as the instruction understands the bytes."""
    return unpack_steps(packed, ROWS, from_fragments)


def fragments(matrix: NDArray[Any], tiles: int, parts: int) -> NDArray[np.uint8]:
    """[tiles, steps, bytes]: rows are (tile, block, high, q), columns (step, part, right, h, element of 4 bytes)."""
    wide = 4 // matrix.itemsize
    steps = matrix.shape[1] // (parts * 8 * wide)
    cut = matrix.reshape(tiles, -1, 2, 8, steps, parts, 2, 4, wide)
    ordered = np.ascontiguousarray(cut.transpose(0, 4, 1, 5, 3, 7, 6, 2, 8))
    return ordered.reshape(tiles, steps, -1).view(np.uint8)


def from_fragments(operands: NDArray[Any], blocks: int, parts: int) -> NDArray[Any]:
    """The inverse of ``fragments``."""
    tiles, steps, _ = operands.shape
    cut = operands.reshape(tiles, steps, blocks, parts, 8, 4, 2, 2, -1)  # part, q, h, right, high, element
    return cut.transpose(0, 2, 7, 4, 1, 3, 6, 5, 8).reshape(tiles * blocks * ROWS, -1)
