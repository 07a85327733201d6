"""Weights as Hopper's tensor cores read them (wgmma, 16-bit types), dense and 2:4.

Tiles of ``64 * blocks`` filters and their steps as in ``formats.steps``. A step begins, for every 64 filters, with core
matrices of 8 rows x 16 bytes, ordered by (part, row group, half, row). A part is what one instruction reads of a row:
32 bytes, two halves. Dense weights have four parts of 16 channels, 2:4 weights two parts of 16 kept values, which stand
for 32 channels. The 2:4 metadata then has one word for each thread of a warpgroup, warp ``w`` for rows ``16 w`` to
``16 w + 15``.

Source: PTX ISA 9.0, "Asynchronous warpgroup-level matrix multiply-accumulate", strides without swizzle.
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

ROWS = 64  # of one instruction


class HopperWeights(StepWeights):
    """Packed weights; a block is 64 filters."""


def pack_hopper(weight: NDArray[Any], blocks: int, *, sparse: bool) -> HopperWeights:
    """Pack a matrix [filters, taps, channels] of a 16-bit type for tiles of ``64 * blocks`` filters.

    What is missing to whole tiles and steps is filled with zeros. ``FormatError`` for another shape or size of
    elements, and for ``sparse`` when a group of four channels of a tap holds more than two non-zeros.
    """
    matrix = in_steps(weight, ROWS * blocks)
    tiles = len(matrix) // (ROWS * blocks)
    if sparse:
        kept = compress(matrix, TWO_FOUR)
        parts = [_cores(kept.values, tiles, SPARSE_PARTS), pack_metadata(kept.indices, tiles)]
    else:
        parts = [_cores(matrix, tiles, DENSE_PARTS)]
    return HopperWeights(np.concatenate(parts, axis=-1), weight.dtype, blocks, sparse, *weight.shape)


def unpack_hopper(packed: HopperWeights) -> NDArray[Any]:
    """The matrix that was packed, as the instruction understands the bytes."""
    tiles, steps, size = packed.data.shape
    size -= places_bytes(ROWS * packed.blocks) if packed.sparse else 0
    cores = np.ascontiguousarray(packed.data[..., :size]).view(packed.dtype)
    cores = cores.reshape(tiles, steps, packed.blocks, -1, 8, 2, 8, 8)  # part, row group, half, row, element
    matrix = cores.transpose(0, 2, 4, 6, 1, 3, 5, 7).reshape(tiles * packed.blocks * ROWS, -1)
    return out_of_steps(packed, matrix, packed.data[..., size:])


def _cores(matrix: NDArray[Any], tiles: int, parts: int) -> NDArray[np.uint8]:
    """[tiles, steps, bytes]: rows are (tile, block, row group, row), columns (step, part, half, element)."""
    steps = matrix.shape[1] // (parts * 16)
    cut = matrix.reshape(tiles, -1, 8, 8, steps, parts, 2, 8)
    ordered = np.ascontiguousarray(cut.transpose(0, 4, 1, 5, 2, 6, 3, 7))
    return ordered.reshape(tiles, steps, -1).view(np.uint8)
