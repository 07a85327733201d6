"""What the weights packed for tensor cores have in common, whatever the instruction: tiles, steps and 2:4 metadata.

A matrix [filters, taps, channels] is cut into tiles of some filters and steps of 64 channels of one tap. A tile's step
is one run of bytes: operands in the order of the instruction, then for 2:4 weights the metadata.

Metadata is one word for each thread of a warp, for every 16 rows. Lane ``4 q + 2 p + h`` holds, for part ``p`` of the
step (32 channels) and its channels ``16 h`` to ``16 h + 15``, row ``q`` in the low half and row ``q + 8`` in the high
half; each has four nibbles, one a group of four channels, with the places of the kept values, first place in the low
two bits. With sparsity selector ``p`` an instruction reads the words of part ``p``.

Source: PTX ISA 9.0, sparse matrix storage of ``mma.sp.m16n8k32`` and ``wgmma.mma_async.sp.m64nNk32`` for 16-bit types.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tamis.errors import FormatError
from tamis.formats.nm import CompressedNM, compress, decompress
from tamis.formats.pattern import TWO_FOUR

CHANNELS = 64  # of one step
DENSE_PARTS, SPARSE_PARTS = 4, 2  # instructions that a step takes: of 16 channels, or of 32 in 2:4
_WARP_ROWS, _WARP_PLACES_BYTES = 16, 128

Order: TypeAlias = Callable[[NDArray[Any], int, int], NDArray[np.uint8]]
Restore: TypeAlias = Callable[[NDArray[Any], int, int], NDArray[Any]]


@dataclass(frozen=True)
class StepWeights:
    """Packed weights.

    ``data`` (uint8) is [tiles, steps, bytes of a tile's step]; a tile has ``blocks`` times the rows of an instruction;
    ``filters``, ``taps`` and ``channels`` are those of the matrix.
    """

    data: NDArray[np.uint8]
    dtype: np.dtype[Any]
    blocks: int
    sparse: bool
    filters: int
    taps: int
    channels: int


def rows_bytes(rows: int, *, sparse: bool) -> int:
    """The bytes of one step of so many filters, a multiple of 16, in 16 bits."""
    return rows * CHANNELS + places_bytes(rows) if sparse else rows * CHANNELS * 2


def places_bytes(rows: int) -> int:
    """The bytes of metadata of so many filters, a multiple of 16, in one step."""
    return rows // _WARP_ROWS * _WARP_PLACES_BYTES


def pack_steps(weight: NDArray[Any], rows: int, blocks: int, order: Order, *, sparse: bool) -> StepWeights:
    """Pack a matrix [filters, taps, channels] of a 16-bit type for tiles of ``rows * blocks`` filters.

    ``order`` puts [tiles * rows * blocks, steps * parts * 16] operands into the bytes [tiles, steps, ...] of so many
    tiles and parts. What is missing to whole tiles and steps is filled with zeros. ``FormatError`` for another shape or
    size of elements, and for ``sparse`` when a group of four channels of a tap holds more than two non-zeros.
    """
    if weight.ndim != 3 or weight.itemsize != 2:
        raise FormatError(f"[filters, taps, channels] in 16 bits is needed, not {weight.shape} of {weight.dtype}")
    filters, taps, channels = weight.shape
    tiles = -(-filters // (rows * blocks))
    padded = np.zeros((tiles * rows * blocks, taps, -(-channels // CHANNELS) * CHANNELS), weight.dtype)
    padded[:filters, :, :channels] = weight
    matrix = padded.reshape(len(padded), -1)
    if sparse:
        kept = compress(matrix, TWO_FOUR)
        parts = [order(kept.values, tiles, SPARSE_PARTS), _pack_metadata(kept.indices, tiles)]
    else:
        parts = [order(matrix, tiles, DENSE_PARTS)]
    return StepWeights(np.concatenate(parts, axis=-1), weight.dtype, blocks, sparse, filters, taps, channels)


def unpack_steps(packed: StepWeights, rows: int, restore: Restore) -> NDArray[Any]:
    """The matrix that was packed. ``restore`` is the inverse of the ``order``, given blocks and parts."""
    size = packed.data.shape[2] - (places_bytes(rows * packed.blocks) if packed.sparse else 0)
    operands = np.ascontiguousarray(packed.data[..., :size]).view(packed.dtype)
    values = restore(operands, packed.blocks, SPARSE_PARTS if packed.sparse else DENSE_PARTS)
    if packed.sparse:
        indices, k = _unpack_metadata(packed.data[..., size:]), packed.data.shape[1] * CHANNELS
        values = decompress(CompressedNM(values, indices, TWO_FOUR, k))
    result: NDArray[Any] = values.reshape(len(values), packed.taps, -1)[: packed.filters, :, : packed.channels]
    return result


def _pack_metadata(indices: NDArray[np.uint8], tiles: int) -> NDArray[np.uint8]:
    """[tiles, steps, bytes] of places [rows, steps * 32], which are those of ``CompressedNM``."""
    pairs = indices.reshape(tiles, -1, 2, 8, indices.shape[1] // 32, 2, 2, 4, 2).astype(np.uint32)
    nibbles = pairs[..., 0] | pairs[..., 1] << 2  # tile, warp, high, q, step, part, half, group
    halves = (nibbles << np.arange(0, 16, 4, dtype=np.uint32)).sum(axis=-1, dtype=np.uint32)
    words = halves[:, :, 0] | halves[:, :, 1] << 16  # tile, warp, q, step, part, half
    ordered = np.ascontiguousarray(words.transpose(0, 3, 1, 2, 4, 5).astype("<u4"))
    return ordered.reshape(tiles, ordered.shape[1], -1).view(np.uint8)


def _unpack_metadata(places: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The inverse of ``_pack_metadata``."""
    tiles, steps, _ = places.shape
    words = (
        np.ascontiguousarray(places).view("<u4").reshape(tiles, steps, -1, 8, 2, 2)
    )  # tile, step, warp, q, part, half
    halves = np.stack([words & 0xFFFF, words >> 16], axis=3)  # tile, step, warp, high, q, part, half
    nibbles = halves[..., None] >> np.arange(0, 16, 4, dtype=np.uint32) & 15
    pairs = np.stack([nibbles & 3, nibbles >> 2], axis=-1)
    ordered = pairs.transpose(0, 2, 3, 4, 1, 5, 6, 7, 8).astype(np.uint8)
    return ordered.reshape(-1, steps * CHANNELS // 2)
