"""The weight layouts that the CPU kernels read: tiles of 16 outputs by 32 inputs, streamed once, in order.

A weight ``[n, k]`` (n outputs) is padded with zeros to whole tiles. Tiles lie one after the other, first
along k, then along n, so one tile row is one contiguous stream. Every part is a whole number of 64-byte
lines; a vector of 16 lanes always holds 16 outputs.

Dense, bfloat16 (1024 bytes): 16 vectors, one for each pair of inputs::

    vector p:   out0: w[0, 2p] w[0, 2p+1] | out1: w[1, 2p] w[1, 2p+1] | ... | out15

(what ``vdpbf16ps`` multiplies with a broadcast pair of inputs, and an AMX tile B as it stands).

Dense, float32 (2048 bytes): 32 vectors, one for each input: ``w[0, k] w[1, k] ... w[15, k]``.

2:4 (bfloat16 576 bytes, float32 1088 bytes): one metadata vector, then the kept pair of each of the 8 groups
of four inputs::

    metadata:   16 x u32, one word for each output; bits 2g, 2g+1 = place of group g's first value (0..3),
                bits 16+2g, 17+2g = place of its second value
    bfloat16:   vector g:      out0: first second | out1: first second | ...
    float32:    vector 2g:     out0 first, out1 first, ...;  vector 2g+1: out0 second, ...

A kernel turns the metadata into a permutation of the broadcast inputs with one shift: ``vpermw`` and
``vpermilps`` ignore the bits above the place. The order inside a pair is chosen so that values keep the
parity of their place (first at an even place, second at an odd one). Only the pairs {0,2} and {1,3} cannot;
there the value of the first half (place 0 or 1) keeps its parity: {0,2} is stored as (0, 2) and {1,3} as
(3, 1). So rebuilding dense pairs for AMX needs two masked moves and one masked rotation.

Zeros: a group with less than two non-zeros stores zeros of its own, so the round trip gives equal numbers,
bit for bit the same save that -0.0 may return as +0.0 in 2:4 tiles. NaN and infinity are kept as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, TypeAlias

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from tamis.errors import FormatError
from tamis.formats.pattern import DENSE, TWO_FOUR, Pattern

WeightType: TypeAlias = Literal["float32", "bfloat16"]

# Changes whenever packed bytes mean something else; kept in engines.
LAYOUT_VERSION = 1
TILE_N = 16
TILE_K = 32
_GROUPS = TILE_K // 4
_ROWS_AT_ONCE = 128  # packing works on slices that stay in the cache


def _pair_order(code: int) -> tuple[int, int]:
    """Places (first, second) stored for a group whose non-zeros are the bits of ``code``."""
    kept = [place for place in range(4) if code >> place & 1]
    if len(kept) == 2:
        low, high = kept
        return {(1, 2): (2, 1), (1, 3): (3, 1)}.get((low, high), (low, high))
    half = kept[0] & 2 if kept else 0
    return half, half + 1


_TOO_MANY: NDArray[np.bool_] = np.array([code.bit_count() > 2 for code in range(16)])
_PAIRS: NDArray[np.uint32] = np.array(
    [(0, 1) if _TOO_MANY[code] else _pair_order(code) for code in range(16)], np.uint32
)
_METADATA: NDArray[np.uint32] = _PAIRS[:, 0] | (_PAIRS[:, 1] << np.uint32(16))


def tile_bytes(dtype: WeightType, pattern: Pattern) -> int:
    """Bytes of one packed tile; ``FormatError`` for a pattern without tiles."""
    if pattern == DENSE:
        return TILE_N * TILE_K * _size(dtype)
    if pattern == TWO_FOUR:
        return TILE_N * 4 + TILE_N * TILE_K // 2 * _size(dtype)
    raise FormatError(f"there are no CPU tiles for {pattern}", remedy="use dense or 2:4")


def packed_bytes(n: int, k: int, dtype: WeightType, pattern: Pattern) -> int:
    """Bytes of a packed weight ``[n, k]``."""
    return -(-n // TILE_N) * -(-k // TILE_K) * tile_bytes(dtype, pattern)


def pack(weight: NDArray[np.float32], dtype: WeightType, pattern: Pattern) -> NDArray[np.uint8]:
    """Pack a float32 weight ``[n, k]``, rounded to ``dtype`` (nearest, ties to even), as described above.

    ``FormatError`` if it is not a non-empty matrix, or has groups of more than two non-zeros for 2:4.
    """
    if weight.ndim != 2 or 0 in weight.shape:
        raise FormatError(f"a matrix with elements is needed, not shape {weight.shape}")
    size = tile_bytes(dtype, pattern)
    n, k = weight.shape
    blocks = -(-k // TILE_K)
    packed = np.empty((-(-n // TILE_N), blocks, size), np.uint8)
    for start in range(0, n, _ROWS_AT_ONCE):
        bits = _padded_bits(weight[start : start + _ROWS_AT_ONCE], dtype)
        tiles = bits.shape[0] // TILE_N
        out = packed[start // TILE_N : start // TILE_N + tiles]
        if pattern == DENSE:
            _pack_dense(bits, out)
        else:
            _pack_two_four(bits, out, start)
    return packed.reshape(-1)


def unpack(packed: NDArray[np.uint8], n: int, k: int, dtype: WeightType, pattern: Pattern) -> NDArray[np.float32]:
    """The weight ``[n, k]`` as float32 that was packed; ``FormatError`` if the size does not fit."""
    if packed.size != packed_bytes(n, k, dtype, pattern):
        expected = packed_bytes(n, k, dtype, pattern)
        raise FormatError(f"a packed [{n}, {k}] {dtype} {pattern} weight has {expected} bytes, not {packed.size}")
    tiles = packed.reshape(-(-n // TILE_N), -(-k // TILE_K), -1)
    bits = _unpack_dense(tiles, dtype) if pattern == DENSE else _unpack_two_four(tiles, dtype)
    bits = bits.reshape(tiles.shape[0] * TILE_N, tiles.shape[1] * TILE_K)[:n, :k]
    return _from_bits(np.ascontiguousarray(bits))


def _size(dtype: WeightType) -> int:
    return {"bfloat16": 2, "float32": 4}[dtype]


def _padded_bits(rows: NDArray[np.float32], dtype: WeightType) -> NDArray[Any]:
    """Rows as unsigned integers of the storage type, padded with zeros to whole tiles."""
    n, k = rows.shape
    bits: NDArray[Any]
    if dtype == "bfloat16":
        bits = np.ascontiguousarray(rows).astype(ml_dtypes.bfloat16).view(np.uint16)
    else:
        bits = np.ascontiguousarray(rows, np.float32).view(np.uint32)
    if n % TILE_N or k % TILE_K:
        bits = np.pad(bits, ((0, -n % TILE_N), (0, -k % TILE_K)))
    return bits


def _from_bits(bits: NDArray[Any]) -> NDArray[np.float32]:
    if bits.dtype == np.uint16:
        return (bits.astype(np.uint32) << 16).view(np.float32)
    return bits.view(np.float32)


def _pack_dense(bits: NDArray[Any], out: NDArray[np.uint8]) -> None:
    tiles, blocks = out.shape[:2]
    words = bits.view(np.uint32).reshape(tiles, TILE_N, blocks, -1)  # a word: a bf16 pair, or one float32
    out.view(np.uint32).reshape(tiles, blocks, -1, TILE_N)[...] = words.transpose(0, 2, 3, 1)


def _unpack_dense(tiles: NDArray[np.uint8], dtype: WeightType) -> NDArray[Any]:
    words = tiles.view(np.uint32).reshape(*tiles.shape[:2], -1, TILE_N).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(words).view(np.uint16 if dtype == "bfloat16" else np.uint32)


def _pack_two_four(bits: NDArray[Any], out: NDArray[np.uint8], first_row: int) -> None:
    tiles, blocks = out.shape[:2]
    codes = _group_codes(bits)
    if _TOO_MANY[codes].any():
        row, group = (int(i[0]) for i in np.nonzero(_TOO_MANY[codes]))
        raise FormatError(
            f"row {first_row + row} holds more than two non-zeros in columns {4 * group} to {4 * group + 3}",
            remedy="prune the weight to 2:4 along its last axis first",
        )
    metadata = out[..., : TILE_N * 4].view(np.uint32)
    metadata[...] = _metadata_words(codes).reshape(tiles, TILE_N, blocks).transpose(0, 2, 1)
    values = out[..., TILE_N * 4 :].view(np.uint32)
    if bits.dtype == np.uint16:
        pairs = _select_bfloat16(bits, codes).reshape(tiles, TILE_N, blocks, _GROUPS)
        values.reshape(tiles, blocks, _GROUPS, TILE_N)[...] = pairs.transpose(0, 2, 3, 1)
    else:
        by_slot = values.reshape(tiles, blocks, _GROUPS, 2, TILE_N)
        for slot, chosen in enumerate(_select_float32(bits, codes)):
            shaped = chosen.reshape(tiles, TILE_N, blocks, _GROUPS)
            by_slot[:, :, :, slot] = shaped.transpose(0, 2, 3, 1)


def _group_codes(bits: NDArray[Any]) -> NDArray[np.uint8]:
    """Four bits for each group ``[rows, k / 4]``: which of its elements are non-zero (-0.0 is a zero)."""
    magnitude = bits << 1  # drops the sign and keeps the width
    flags = (magnitude != 0).view(np.uint32)  # four flag bytes; the product gathers them in the top byte
    codes: NDArray[np.uint8] = (flags * np.uint32(0x01020408) >> np.uint32(24)).astype(np.uint8)
    codes &= np.uint8(15)
    return codes


def _metadata_words(codes: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """One word for each row and tile, ``[rows, k / 32]``."""
    places = _METADATA[codes].reshape(codes.shape[0], -1, _GROUPS)
    words: NDArray[np.uint32] = places[..., 0].copy()
    for group in range(1, _GROUPS):
        words |= places[..., group] << np.uint32(2 * group)
    return words


def _select_bfloat16(bits: NDArray[Any], codes: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """The stored pair of each group in one word, the first value in the low half."""
    groups = bits.view(np.uint64)
    first = (groups >> (16 * _PAIRS[:, 0].astype(np.uint64))[codes]).astype(np.uint16)
    second = (groups >> (16 * _PAIRS[:, 1].astype(np.uint64))[codes]).astype(np.uint16)
    return first.astype(np.uint32) | (second.astype(np.uint32) << np.uint32(16))


def _select_float32(bits: NDArray[Any], codes: NDArray[np.uint8]) -> Iterator[NDArray[Any]]:
    """The first, then the second stored value of each group."""
    groups = bits.reshape(bits.shape[0], -1, 4)
    for slot in range(2):
        place = _PAIRS[:, slot].astype(np.uint8)[codes]
        chosen = groups[..., 0]
        for other in range(1, 4):
            chosen = np.where(place == other, groups[..., other], chosen)
        yield chosen


def _unpack_two_four(tiles: NDArray[np.uint8], dtype: WeightType) -> NDArray[Any]:
    count, blocks = tiles.shape[:2]
    metadata = np.ascontiguousarray(tiles[..., : TILE_N * 4]).view(np.uint32)
    stored = np.ascontiguousarray(tiles[..., TILE_N * 4 :])
    values: NDArray[Any]
    if dtype == "bfloat16":
        values = stored.view(np.uint16).reshape(count, blocks, _GROUPS, TILE_N, 2)
    else:
        values = stored.view(np.uint32).reshape(count, blocks, _GROUPS, 2, TILE_N).transpose(0, 1, 2, 4, 3)
    shifts = (np.arange(_GROUPS)[:, None] * 2 + np.array([0, 16])).astype(np.uint32)  # [group, slot]
    places = metadata[..., None, None] >> shifts & np.uint32(3)  # [tile, block, output, group, slot]
    weight = np.zeros((count, TILE_N, blocks, _GROUPS, 4), values.dtype)
    np.put_along_axis(weight, places.transpose(0, 2, 1, 3, 4).astype(np.intp), values.transpose(0, 3, 1, 2, 4), -1)
    return weight
