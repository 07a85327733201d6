"""The packed tile layouts, read back element by element from their description."""

from __future__ import annotations

import itertools

import ml_dtypes
import numpy as np
import pytest

from tamis.errors import FormatError
from tamis.formats import DENSE, NM, TWO_FOUR, magnitude_mask
from tamis.formats.tiles import TILE_K, TILE_N, pack, packed_bytes, tile_bytes, unpack

SHAPES = [(1, 1), (16, 32), (17, 33), (3, 100), (40, 31), (130, 64), (129, 257)]


def _rounded(weight: np.ndarray, dtype: str) -> np.ndarray:
    return weight if dtype == "float32" else weight.astype(ml_dtypes.bfloat16).astype(np.float32)


def _two_four(n: int, k: int, seed: int) -> np.ndarray:
    weight = np.random.default_rng(seed).standard_normal((n, -(-k // 4) * 4)).astype(np.float32)
    weight *= magnitude_mask(weight, TWO_FOUR)
    weight[:, :4] *= 0  # an empty group
    weight[0, 0] = 3
    return weight[:, :k].copy()


def _weight(n: int, k: int, pattern: object) -> np.ndarray:
    if pattern == TWO_FOUR:
        return _two_four(n, k, n + k)
    return np.random.default_rng(n + k).standard_normal((n, k)).astype(np.float32)


def _read_dense(packed: np.ndarray, blocks: int, n: int, k: int, dtype: str) -> float:
    """Element [n, k] of a dense packed weight, from the layout's words."""
    tile = packed.reshape(-1, blocks, tile_bytes(dtype, DENSE))[n // TILE_N, k // TILE_K]
    if dtype == "float32":
        return tile.view(np.float32).reshape(TILE_K, TILE_N)[k % TILE_K, n % TILE_N]
    pairs = tile.view(ml_dtypes.bfloat16).reshape(TILE_K // 2, TILE_N, 2)
    return float(pairs[k % TILE_K // 2, n % TILE_N, k % 2])


def _read_two_four(packed: np.ndarray, blocks: int, n: int, k: int, dtype: str) -> float:
    tile = packed.reshape(-1, blocks, tile_bytes(dtype, TWO_FOUR))[n // TILE_N, k // TILE_K]
    word = int(tile[:64].view(np.uint32)[n % TILE_N])
    group, place = k % TILE_K // 4, k % 4
    total = 0.0
    for slot in range(2):
        if word >> (2 * group + 16 * slot) & 3 == place:
            if dtype == "float32":
                total += tile[64:].view(np.float32).reshape(8, 2, TILE_N)[group, slot, n % TILE_N]
            else:
                values = tile[64:].view(ml_dtypes.bfloat16).reshape(8, TILE_N, 2)
                total += float(values[group, n % TILE_N, slot])
    return total


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("pattern", [DENSE, TWO_FOUR], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_round_trip(shape, pattern, dtype):
    n, k = shape
    weight = _weight(n, k, pattern)
    packed = pack(weight, dtype, pattern)
    assert packed.dtype == np.uint8 and packed.size == packed_bytes(n, k, dtype, pattern)
    np.testing.assert_array_equal(unpack(packed, n, k, dtype, pattern), _rounded(weight, dtype))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("pattern", [DENSE, TWO_FOUR], ids=str)
def test_layout_is_as_described(pattern, dtype):
    n, k = 19, 70
    weight = _rounded(_weight(n, k, pattern), dtype)
    packed = pack(weight, dtype, pattern)
    read = _read_two_four if pattern == TWO_FOUR else _read_dense
    for i in range(32):
        for j in range(96):
            expected = weight[i, j] if i < n and j < k else 0.0
            assert read(packed, 3, i, j, dtype) == expected


def test_pairs_keep_the_parity_of_their_places():
    for code in range(16):
        kept = [i for i in range(4) if code >> i & 1]
        if len(kept) > 2:
            continue
        weight = np.zeros((1, 4), np.float32)
        weight[0, kept] = 1
        word = int(pack(weight, "bfloat16", TWO_FOUR)[:4].view(np.uint32)[0])
        first, second = word & 3, word >> 16 & 3
        assert set(kept) <= {first, second} and first != second
        if kept == [0, 2]:
            assert (first, second) == (0, 2)
        elif kept == [1, 3]:
            assert (first, second) == (3, 1)
        else:
            assert (first % 2, second % 2) == (0, 1)


def test_odd_numbers_survive():
    tiny = np.float32(1e-40)  # denormal
    values = [0.0, -0.0, np.inf, -np.inf, np.nan, tiny, -1.0]
    groups = [g for g in itertools.product(values, repeat=4) if np.count_nonzero(g) <= 2]
    weight = np.array(groups, np.float32).reshape(1, -1)
    for dtype in ("float32", "bfloat16"):
        back = unpack(pack(weight, dtype, TWO_FOUR), *weight.shape, dtype, TWO_FOUR)
        np.testing.assert_array_equal(back, _rounded(weight, dtype))
        dense = unpack(pack(weight, dtype, DENSE), *weight.shape, dtype, DENSE)
        expected = _rounded(weight, dtype)
        numbers = ~np.isnan(expected)
        assert (dense.view(np.uint32)[numbers] == expected.view(np.uint32)[numbers]).all()
        assert np.isnan(dense[~numbers]).all()


def test_rounding_to_zero_may_make_a_weight_two_four():
    weight = np.array([[1.0, 1.0, 1e-45, 0.0]], np.float32)
    with pytest.raises(FormatError):
        pack(weight, "float32", TWO_FOUR)
    assert unpack(pack(weight, "bfloat16", TWO_FOUR), 1, 4, "bfloat16", TWO_FOUR).tolist() == [[1, 1, 0, 0]]


def test_errors_name_the_place():
    weight = np.zeros((300, 64), np.float32)
    weight[290, 40:43] = 1
    with pytest.raises(FormatError, match=r"row 290 .* columns 40 to 43"):
        pack(weight, "bfloat16", TWO_FOUR)
    with pytest.raises(FormatError, match="1:4"):
        pack(weight, "bfloat16", NM(1, 4))
    with pytest.raises(FormatError, match="matrix"):
        pack(np.zeros((0, 4), np.float32), "float32", DENSE)
    with pytest.raises(FormatError, match="bytes"):
        unpack(np.zeros(10, np.uint8), 4, 4, "float32", DENSE)


def test_weights_in_any_memory_order():
    weight = _two_four(50, 64, 9)
    expected = pack(weight, "bfloat16", TWO_FOUR)
    assert (pack(np.asfortranarray(weight), "bfloat16", TWO_FOUR) == expected).all()
    assert (pack(np.repeat(weight, 2, axis=1)[:, ::2], "bfloat16", TWO_FOUR) == expected).all()
