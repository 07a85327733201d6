"""Weights as Hopper's tensor cores read them (wgmma, 16-bit types), dense and 2:4.

A matrix [filters, taps, channels] is cut into tiles of ``64 * blocks`` filters and steps of 64 channels of one tap; a
tile's step is one run of bytes, which a kernel copies into shared memory as it is:

- For every 64 filters their core matrices, 8 rows x 16 bytes each, ordered by (part, row group, half, row). A part is
  what one instruction reads of a row: 32 bytes, two halves. Dense weights have four parts of 16 channels, 2:4 weights
  two parts of 16 kept values, which stand for 32 channels.
- For 2:4 weights then 512 bytes of metadata for every 64 filters, one word for each thread of a warpgroup. Thread
  ``32 w + 4 q + 2 p + h`` holds, for part ``p`` and its channels ``16 h`` to ``16 h + 15``, row ``16 w + q`` in the low
  half and row ``16 w + q + 8`` in the high half; each has four nibbles, one a group of four channels, with the places
  of the kept values, first place in the low two bits.

Source: PTX ISA 9.0, "Asynchronous warpgroup-level matrix multiply-accumulate", strides without swizzle, and sparse
matrix storage for ``.m64nNk32``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tamis.errors import FormatError
from tamis.formats.nm import CompressedNM, compress, decompress
from tamis.formats.pattern import TWO_FOUR

ROWS = 64  # of one instruction
CHANNELS = 64  # of one step
PLACES_BYTES = 512  # metadata of 64 rows in one step
_DENSE_PARTS, _SPARSE_PARTS = 4, 2


@dataclass(frozen=True)
class HopperWeights:
    """Packed weights.

    ``data`` (uint8) is [tiles, steps, bytes of a tile's step]; ``filters``, ``taps`` and ``channels`` are those of the
    matrix.
    """

    data: NDArray[np.uint8]
    dtype: np.dtype[Any]
    blocks: int
    sparse: bool
    filters: int
    taps: int
    channels: int


def step_bytes(blocks: int, *, sparse: bool) -> int:
    """The bytes of one step of ``64 * blocks`` filters in 16 bits."""
    return blocks * (ROWS * CHANNELS + PLACES_BYTES if sparse else ROWS * CHANNELS * 2)


def pack_hopper(weight: NDArray[Any], blocks: int, *, sparse: bool) -> HopperWeights:
    """Pack a matrix [filters, taps, channels] of a 16-bit type for tiles of ``64 * blocks`` filters.

    What is missing to whole tiles and steps is filled with zeros. ``FormatError`` for another shape or size of
    elements, and for ``sparse`` when a group of four channels of a tap holds more than two non-zeros.
    """
    if weight.ndim != 3 or weight.itemsize != 2:
        raise FormatError(f"[filters, taps, channels] in 16 bits is needed, not {weight.shape} of {weight.dtype}")
    filters, taps, channels = weight.shape
    rows, chunks = -(-filters // (ROWS * blocks)) * ROWS * blocks, -(-channels // CHANNELS)
    padded = np.zeros((rows, taps, chunks * CHANNELS), weight.dtype)
    padded[:filters, :, :channels] = weight
    matrix = padded.reshape(rows, taps * chunks * CHANNELS)
    tiles, steps = rows // (ROWS * blocks), taps * chunks
    if sparse:
        kept = compress(matrix, TWO_FOUR)
        parts = [_cores(kept.values, tiles, blocks, steps, _SPARSE_PARTS), _places(kept.indices, tiles, blocks, steps)]
    else:
        parts = [_cores(matrix, tiles, blocks, steps, _DENSE_PARTS)]
    return HopperWeights(np.concatenate(parts, axis=-1), weight.dtype, blocks, sparse, filters, taps, channels)


def unpack_hopper(packed: HopperWeights) -> NDArray[Any]:
    """The matrix that was packed, as the instruction understands the bytes."""
    tiles, steps, _ = packed.data.shape
    blocks, parts = packed.blocks, _SPARSE_PARTS if packed.sparse else _DENSE_PARTS
    size = blocks * ROWS * parts * 32
    cores = np.ascontiguousarray(packed.data[..., :size]).view(packed.dtype)
    cores = cores.reshape(tiles, steps, blocks, parts, 8, 2, 8, 8)  # part, row group, half, row, element
    matrix = cores.transpose(0, 2, 4, 6, 1, 3, 5, 7).reshape(tiles * blocks * ROWS, -1)
    if packed.sparse:
        words = np.ascontiguousarray(packed.data[..., size:]).view("<u4").reshape(tiles, steps, blocks, 4, 8, 2, 2)
        halves = np.stack([words & 0xFFFF, words >> 16], axis=4)  # tile, step, block, w, high, q, part, half
        nibbles = halves[..., None] >> np.arange(0, 16, 4, dtype=np.uint32) & 15
        places = np.stack([nibbles & 3, nibbles >> 2], axis=-1)
        indices = places.transpose(0, 2, 3, 4, 5, 1, 6, 7, 8, 9).reshape(matrix.shape).astype(np.uint8)
        matrix = decompress(CompressedNM(matrix, indices, TWO_FOUR, steps * CHANNELS))
    result: NDArray[Any] = matrix.reshape(len(matrix), packed.taps, -1)[: packed.filters, :, : packed.channels]
    return result


def _cores(matrix: NDArray[Any], tiles: int, blocks: int, steps: int, parts: int) -> NDArray[np.uint8]:
    """[tiles, steps, bytes]: rows are (tile, block, row group, row), columns (step, part, half, element)."""
    cut = matrix.reshape(tiles, blocks, 8, 8, steps, parts, 2, 8)
    ordered = np.ascontiguousarray(cut.transpose(0, 4, 1, 5, 2, 6, 3, 7))
    return ordered.reshape(tiles, steps, -1).view(np.uint8)


def _places(indices: NDArray[np.uint8], tiles: int, blocks: int, steps: int) -> NDArray[np.uint8]:
    """[tiles, steps, bytes] of metadata; ``indices`` has two places for each group."""
    pairs = indices.reshape(tiles, blocks, 4, 2, 8, steps, 2, 2, 4, 2).astype(np.uint32)
    nibbles = pairs[..., 0] | pairs[..., 1] << 2  # tile, block, w, high, q, step, part, half, group
    halves = (nibbles << np.arange(0, 16, 4, dtype=np.uint32)).sum(axis=-1, dtype=np.uint32)
    words = halves[:, :, :, 0] | halves[:, :, :, 1] << 16  # tile, block, w, q, step, part, half
    ordered = np.ascontiguousarray(words.transpose(0, 4, 1, 2, 3, 5, 6).astype("<u4"))
    return ordered.reshape(tiles, steps, -1).view(np.uint8)
