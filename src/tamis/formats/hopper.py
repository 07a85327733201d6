"""Weights as Hopper's tensor cores read them (wgmma, 16-bit and 8-bit types), dense and 2:4.

Tiles of ``64 * blocks`` filters and their steps as in ``formats.steps``. A step begins, for every 64 filters, with core
matrices of 8 rows x 16 bytes, ordered by (part, row group, half, row). A part is what one instruction reads of a row:
32 bytes, two halves. Dense weights have four parts of 16 channels, 2:4 weights two parts of 16 kept values, which stand
for 32 channels; in 8 bits it is twice as many. The 2:4 metadata then has one word for each thread of a warpgroup, in 8
bits two, warp ``w`` for rows ``16 w`` to ``16 w + 15``.

Weights that stay in registers (``pack_stationary``) have the same steps and metadata, but operands as threads hold
them: of the 16 rows of warp ``w``, each part is 16 bytes for each lane, and these are those of ``formats.ampere``. In 8
bits two elements take the place of one of 16 bits.

Source: PTX ISA 9.0, "Asynchronous warpgroup-level matrix multiply-accumulate", strides without swizzle, and register
fragments of operand A for ``wgmma.mma_async.m64k16`` and ``.m64k32``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tamis.formats.ampere import ROWS as WARP_ROWS
from tamis.formats.ampere import fragments, from_fragments
from tamis.formats.steps import StepWeights, pack_steps, unpack_steps

ROWS = 64  # of one instruction
_SIZES = (2, 1)  # bytes of an element


def pack_hopper(weight: NDArray[Any], blocks: int, *, sparse: bool) -> StepWeights:
    """Pack a matrix [filters, taps, channels] for tiles of ``64 * blocks`` filters, as ``pack_steps`` does."""
    return pack_steps(weight, ROWS, blocks, _order, sparse=sparse, sizes=_SIZES)


def unpack_hopper(packed: StepWeights) -> NDArray[Any]:
    """The matrix that was packed, as the instruction understands the bytes."""
    return unpack_steps(packed, ROWS, _restore)


def pack_stationary(weight: NDArray[Any], blocks: int, *, sparse: bool) -> StepWeights:
    """Pack a matrix [filters, taps, channels] for tiles of ``64 * blocks`` filters that lie in registers.

    The ``blocks`` of the result are those of a warp's 16 rows.
    """
    return pack_steps(weight, WARP_ROWS, blocks * ROWS // WARP_ROWS, fragments, sparse=sparse, sizes=_SIZES)


def unpack_stationary(packed: StepWeights) -> NDArray[Any]:
    """The matrix that ``pack_stationary`` packed, as threads hold it."""
    return unpack_steps(packed, WARP_ROWS, from_fragments)


def _order(matrix: NDArray[Any], tiles: int, parts: int) -> NDArray[np.uint8]:
    """[tiles, steps, bytes]: rows are (tile, block, row group, row), columns (step, part, half, element)."""
    wide = 16 // matrix.itemsize
    steps = matrix.shape[1] // (parts * 2 * wide)
    cut = matrix.reshape(tiles, -1, 8, 8, steps, parts, 2, wide)
    ordered = np.ascontiguousarray(cut.transpose(0, 4, 1, 5, 2, 6, 3, 7))
    return ordered.reshape(tiles, steps, -1).view(np.uint8)


def _restore(operands: NDArray[Any], blocks: int, parts: int) -> NDArray[Any]:
    """The inverse of ``_order``."""
    tiles, steps, _ = operands.shape
    cut = operands.reshape(tiles, steps, blocks, parts, 8, 2, 8, -1)  # part, row group, half, row, element
    return cut.transpose(0, 2, 4, 6, 1, 3, 5, 7).reshape(tiles * blocks * ROWS, -1)
