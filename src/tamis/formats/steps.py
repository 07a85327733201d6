"""What the weights packed for tensor cores have in common, whatever the instruction: tiles, steps and 2:4 metadata.

A matrix [filters, taps, channels] is cut into tiles of some filters and steps of 128 bytes of channels of one tap: 64
channels in 16 bits, 128 in 8. A tile's step is one run of bytes: operands in the order of the instruction, then for 2:4
weights the metadata. Here a part of a step is what one instruction reads of it.

Metadata is one word for each thread of a warp, for every 16 rows, in 8 bits two. Four bits are a group of four
channels: the places of the kept values, first place in the low two bits.

- 16 bits: lane ``4 q + 2 p + h`` holds, for part ``p`` (32 channels) and its channels ``16 h`` to ``16 h + 15``, row
  ``q`` in the low half and row ``q + 8`` in the high half. With sparsity selector ``p`` an instruction reads the words
  of part ``p``.
- 8 bits: lane ``4 q + 2 h + r`` holds, for part ``p`` (64 channels) in its word ``p``, row ``q + 8 r`` and the channels
  ``32 h`` to ``32 h + 31``. An instruction reads the words of all lanes, and its selector is 0.

Source: PTX ISA 9.0, sparse matrix storage of ``mma.sp.m16n8k32`` and ``wgmma.mma_async.sp.m64nNk32`` for 16-bit types,
and of ``mma.sp.m16n8k64`` and ``wgmma.mma_async.sp.m64nNk64`` for 8-bit types.
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

STEP_BYTES = 128  # of a pixel's channels
DENSE_PARTS, SPARSE_PARTS = 4, 2  # instructions that a step takes: of 32 bytes, or of 64 in 2:4, where 32 are kept
_WARP_ROWS = 16

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


def rows_bytes(rows: int, *, sparse: bool, itemsize: int = 2) -> int:
    """The bytes of one step of so many filters, a multiple of 16, of a type of ``itemsize`` bytes."""
    return rows * STEP_BYTES // 2 + places_bytes(rows, itemsize) if sparse else rows * STEP_BYTES


def places_bytes(rows: int, itemsize: int = 2) -> int:
    """The bytes of metadata of so many filters, a multiple of 16, in one step."""
    return rows // _WARP_ROWS * 256 // itemsize


def pack_steps(
    weight: NDArray[Any], rows: int, blocks: int, order: Order, *, sparse: bool, sizes: tuple[int, ...] = (2,)
) -> StepWeights:
    """Pack a matrix [filters, taps, channels] for tiles of ``rows * blocks`` filters.

    ``order`` puts [tiles * rows * blocks, steps * parts * 32 bytes] operands into the bytes [tiles, steps, ...] of so
    many tiles and parts. What is missing to whole tiles and steps is filled with zeros. ``FormatError`` for another
    shape, for elements that have none of the ``sizes`` in bytes, and for ``sparse`` when a group of four channels of a
    tap holds more than two non-zeros.
    """
    if weight.ndim != 3 or weight.itemsize not in sizes:
        bits = " or ".join(str(8 * size) for size in sizes)
        raise FormatError(f"[filters, taps, channels] in {bits} bits is needed, not {weight.shape} of {weight.dtype}")
    filters, taps, channels = weight.shape
    tiles, step = -(-filters // (rows * blocks)), STEP_BYTES // weight.itemsize
    padded = np.zeros((tiles * rows * blocks, taps, -(-channels // step) * step), weight.dtype)
    padded[:filters, :, :channels] = weight
    matrix = padded.reshape(len(padded), -1)
    if sparse:
        kept = compress(matrix, TWO_FOUR)
        metadata = _pack_metadata(kept.indices, tiles, weight.itemsize)
        parts = [order(kept.values, tiles, SPARSE_PARTS), metadata]
    else:
        parts = [order(matrix, tiles, DENSE_PARTS)]
    return StepWeights(np.concatenate(parts, axis=-1), weight.dtype, blocks, sparse, filters, taps, channels)


def unpack_steps(packed: StepWeights, rows: int, restore: Restore) -> NDArray[Any]:
    """The matrix that was packed. ``restore`` is the inverse of the ``order``, given blocks and parts."""
    itemsize = packed.dtype.itemsize
    size = packed.data.shape[2] - (places_bytes(rows * packed.blocks, itemsize) if packed.sparse else 0)
    operands = np.ascontiguousarray(packed.data[..., :size]).view(packed.dtype)
    values = restore(operands, packed.blocks, SPARSE_PARTS if packed.sparse else DENSE_PARTS)
    if packed.sparse:
        indices = _unpack_metadata(packed.data[..., size:], itemsize)
        values = decompress(CompressedNM(values, indices, TWO_FOUR, 2 * values.shape[1]))
    result: NDArray[Any] = values.reshape(len(values), packed.taps, -1)[: packed.filters, :, : packed.channels]
    return result


def _pack_metadata(indices: NDArray[np.uint8], tiles: int, itemsize: int) -> NDArray[np.uint8]:
    """[tiles, steps, bytes] of places [rows, kept of all steps], which are those of ``CompressedNM``."""
    groups = 8 // itemsize  # of four channels, of one row in one lane's word
    steps = indices.shape[1] * itemsize // 64
    # tile, warp, high, q, step, part, half, group
    pairs = indices.reshape(tiles, -1, 2, 8, steps, 2, 2, groups, 2).astype(np.uint32)
    nibbles = pairs[..., 0] | pairs[..., 1] << 2
    rows = (nibbles << np.arange(0, 4 * groups, 4, dtype=np.uint32)).sum(axis=-1, dtype=np.uint32)
    if itemsize == 1:
        words = rows.transpose(0, 4, 1, 3, 6, 2, 5)  # tile, step, warp, q, half, high, part
    else:
        words = (rows[:, :, 0] | rows[:, :, 1] << 16).transpose(0, 3, 1, 2, 4, 5)  # tile, step, warp, q, part, half
    return np.ascontiguousarray(words.astype("<u4")).reshape(tiles, steps, -1).view(np.uint8)


def _unpack_metadata(places: NDArray[np.uint8], itemsize: int) -> NDArray[np.uint8]:
    """The inverse of ``_pack_metadata``."""
    (tiles, steps, _), groups = places.shape, 8 // itemsize
    words = np.ascontiguousarray(places).view("<u4").reshape(tiles, steps, -1, 8, *(2,) * (4 - itemsize))
    if itemsize == 1:
        rows = words.transpose(0, 2, 5, 3, 1, 6, 4)  # tile, warp, high, q, step, part, half
    else:
        rows = np.stack([words & 0xFFFF, words >> 16], axis=3).transpose(0, 2, 3, 4, 1, 5, 6)
    nibbles = rows[..., None] >> np.arange(0, 4 * groups, 4, dtype=np.uint32) & 15
    pairs = np.stack([nibbles & 3, nibbles >> 2], axis=-1).astype(np.uint8)
    return pairs.reshape(-1, steps * STEP_BYTES // itemsize // 2)
