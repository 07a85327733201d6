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

from tamis.formats.nm import compress
from tamis.formats.pattern import TWO_FOUR
from tamis.formats.steps import (
    DENSE_PARTS,
    SPARSE_PARTS,
    StepWeights,
    in_steps,
    out_of_steps,
    pack_metadata,
    places_bytes,
)

ROWS = 16  # of one instruction


class AmpereWeights(StepWeights):
    """Packed weights; a block is 16 filters."""


def pack_ampere(weight: NDArray[Any], blocks: int, *, sparse: bool) -> AmpereWeights:
    """Pack a matrix [filters, taps, channels] of a 16-bit type for tiles of ``16 * blocks`` filters.

    What is missing to whole tiles and steps is filled with zeros. ``FormatError`` for another shape or size of
    elements, and for ``sparse`` when a group of four channels of a tap holds more than two non-zeros.
    """
    matrix = in_steps(weight, ROWS * blocks)
    tiles = len(matrix) // (ROWS * blocks)
    if sparse:
        kept = compress(matrix, TWO_FOUR)
        parts = [_operands(kept.values, tiles, SPARSE_PARTS), pack_metadata(kept.indices, tiles)]
    else:
        parts = [_operands(matrix, tiles, DENSE_PARTS)]
    return AmpereWeights(np.concatenate(parts, axis=-1), weight.dtype, blocks, sparse, *weight.shape)


def unpack_ampere(packed: AmpereWeights) -> NDArray[Any]:
    """The matrix that was packed, as the instruction understands the bytes."""
    tiles, steps, size = packed.data.shape
    size -= places_bytes(ROWS * packed.blocks) if packed.sparse else 0
    operands = np.ascontiguousarray(packed.data[..., :size]).view(packed.dtype)
    operands = operands.reshape(tiles, steps, packed.blocks, -1, 8, 4, 2, 2, 2)  # part, q, h, right, high, element
    matrix = operands.transpose(0, 2, 7, 4, 1, 3, 6, 5, 8).reshape(tiles * packed.blocks * ROWS, -1)
    return out_of_steps(packed, matrix, packed.data[..., size:])


def _operands(matrix: NDArray[Any], tiles: int, parts: int) -> NDArray[np.uint8]:
    """[tiles, steps, bytes]: rows are (tile, block, high, q), columns (step, part, right, h, element)."""
    steps = matrix.shape[1] // (parts * 16)
    cut = matrix.reshape(tiles, -1, 2, 8, steps, parts, 2, 4, 2)
    ordered = np.ascontiguousarray(cut.transpose(0, 4, 1, 5, 3, 7, 6, 2, 8))
    return ordered.reshape(tiles, steps, -1).view(np.uint8)
