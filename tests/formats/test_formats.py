"""Patterns, n:m masks and compression, detection, against plain loops over groups."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest

from tamis.errors import FormatError
from tamis.formats import (
    DENSE,
    NM,
    TWO_FOUR,
    compress,
    decompress,
    detect,
    is_nm,
    magnitude_mask,
    parse_pattern,
    statistics,
    tightest,
    violations,
)


def _bits(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).view(np.uint32)


def test_patterns_are_written_and_read():
    for pattern, text in ((DENSE, "dense"), (TWO_FOUR, "2:4"), (NM(1, 16), "1:16")):
        assert str(pattern) == text
        assert parse_pattern(text) == pattern
    for text in ("", "2", "2:", ":4", "2:4:8", "-2:4", "4:2", "4:4", "0:4", "two:four"):
        with pytest.raises(FormatError):
            parse_pattern(text)


@pytest.mark.parametrize("pattern", [NM(1, 4), NM(2, 4), NM(3, 5), NM(4, 8), NM(1, 16)])
@pytest.mark.parametrize(("shape", "axis"), [((6, 80), -1), ((80, 5), 0), ((3, 80, 2, 3), 1), ((80,), 0)])
def test_mask_keeps_the_largest_of_every_group(pattern, shape, axis):
    rng = np.random.default_rng(1)
    weight = rng.integers(-3, 4, shape).astype(np.float32)  # many ties and zeros
    mask = magnitude_mask(weight, pattern, axis)
    assert mask.shape == weight.shape and mask.dtype == bool
    rows = np.moveaxis(np.abs(weight), axis, -1).reshape(-1, pattern.m)
    kept = np.moveaxis(mask, axis, -1).reshape(-1, pattern.m)
    for row, keep in zip(rows, kept, strict=True):
        order = sorted(range(pattern.m), key=lambda i: (-row[i], i))
        assert set(np.flatnonzero(keep)) == set(order[: pattern.n])
    assert is_nm(weight * mask, pattern, axis)


def test_mask_policy_for_nan_and_infinity():
    weight = np.array([[1.0, np.inf, 2.0, -np.inf]], np.float32)
    assert magnitude_mask(weight, TWO_FOUR).tolist() == [[False, True, False, True]]
    with pytest.raises(FormatError, match="NaN"):
        magnitude_mask(np.array([[1.0, np.nan, 0.0, 0.0]], np.float32), TWO_FOUR)


def test_axis_that_groups_do_not_divide_is_refused():
    for call in (magnitude_mask, is_nm, violations):
        with pytest.raises(FormatError, match="length 6"):
            call(np.zeros((4, 6), np.float32), TWO_FOUR, -1)
    with pytest.raises(FormatError, match="axis 2"):
        is_nm(np.zeros((4, 4), np.float32), TWO_FOUR, 2)


def test_violations_are_counted_and_located():
    weight = np.zeros((3, 8, 2), np.float32)
    weight[1, 4:7, 1] = 1
    weight[2, 0:4, 0] = np.nan  # NaN is not zero
    found = violations(weight, TWO_FOUR, axis=1)
    assert found.count == 2
    assert found.first == ((1, 4, 1), (2, 0, 0))
    assert violations(weight, TWO_FOUR, axis=1, limit=1).first == ((1, 4, 1),)
    assert not is_nm(weight, TWO_FOUR, 1)
    assert violations(np.zeros((2, 4), np.float32), TWO_FOUR).count == 0


@pytest.mark.parametrize("pattern", [NM(1, 4), NM(2, 4), NM(4, 8)])
def test_compression_round_trip_of_every_group(pattern):
    elements = (0.0, -0.0, 1.5, -2.0, np.inf) if pattern.m == 4 else (0.0, 3.0)
    groups = [g for g in itertools.product(elements, repeat=pattern.m) if np.count_nonzero(g) <= pattern.n]
    weight = np.array(groups, np.float32)
    compressed = compress(weight, pattern)
    assert compressed.values.shape == compressed.indices.shape == (len(groups), pattern.n)
    assert compressed.indices.max() < pattern.m
    assert (np.diff(compressed.indices.astype(int), axis=1) > 0).all()
    back = decompress(compressed)
    np.testing.assert_array_equal(back, weight)
    crowded = (_bits(weight) != 0).sum(axis=1) > pattern.n  # too many -0.0 to keep them all
    assert (_bits(back)[~crowded] == _bits(weight)[~crowded]).all()


def test_compression_keeps_nan_and_refuses_other_patterns():
    weight = np.array([[np.nan, 0, 0, 1.0]], np.float32)
    np.testing.assert_array_equal(decompress(compress(weight, TWO_FOUR)), weight)
    with pytest.raises(FormatError, match=r"\(0, 4\)"):
        compress(np.array([[0, 0, 0, 0, 1, 1, 1, 0]], np.float32), TWO_FOUR)
    with pytest.raises(FormatError, match="rank 3"):
        compress(np.zeros((1, 1, 4), np.float32), TWO_FOUR)


def test_detection_looks_along_the_axis():
    rng = np.random.default_rng(2)
    weight = rng.standard_normal((32, 64, 3, 3)).astype(np.float32)
    assert detect(weight, 1) == DENSE
    sparse = weight * magnitude_mask(weight, TWO_FOUR, 1)
    assert detect(sparse, 1) == TWO_FOUR
    assert detect(sparse, 0) == DENSE
    assert detect(weight * magnitude_mask(weight, NM(1, 4), 1), 1) == TWO_FOUR
    sparse[31, 60:64, 2, 2] = 1
    assert detect(sparse, 1) == DENSE
    assert detect(np.zeros((4, 6), np.float32)) == DENSE
    assert detect(np.zeros((4, 8), np.float32)) == TWO_FOUR
    assert detect(np.zeros((4, 0), np.float32)) == DENSE
    assert detect(np.zeros(8, np.float32)) == TWO_FOUR


def test_statistics_give_the_smallest_change():
    weight = np.array([[1, 2, 3, 4, 0, 0, 5, 0], [0, 0, 0, 0, 1, 1, 1, 0]], np.float32)
    found = statistics(weight)
    assert found.zeros == pytest.approx(8 / 16)
    assert found.conforming == pytest.approx(2 / 4)
    assert found.to_drop == 3
    assert found.relative_change == pytest.approx(np.sqrt((1 + 4 + 1) / np.square(weight).sum()))
    clean = statistics(weight * magnitude_mask(weight, TWO_FOUR))
    assert (clean.conforming, clean.to_drop, clean.relative_change) == (1.0, 0, 0.0)
    assert statistics(np.zeros((2, 4), np.float32)).relative_change == 0.0


def test_detection_of_a_large_weight_is_quick():
    weight = np.ones((4096, 4096), np.float32)
    weight.reshape(-1, 4)[:, 1:3] = 0
    start = time.process_time()  # not the clock on the wall: others may use the processor
    assert detect(weight) == TWO_FOUR
    assert time.process_time() - start < 2.0


@pytest.mark.parametrize(("n", "m"), [(n, m) for m in (2, 3, 4, 5, 6, 8) for n in range(1, m)])
def test_which_patterns_are_part_of_two_of_four(n: int, m: int) -> None:
    """Against all weights of the pattern, over as many groups as it takes until both patterns start together."""
    groups = np.lcm(m, 4) // m
    kept = [np.isin(np.arange(m), chosen) for chosen in itertools.combinations(range(m), n)]
    weights = np.array([np.concatenate(row) for row in itertools.product(kept, repeat=groups)])
    assert NM(n, m).is_part_of(TWO_FOUR) == is_nm(weights, TWO_FOUR, 1)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("text", ["1:2", "1:4", "2:4", "4:8", "6:8", "3:16", "12:16"])
def test_the_tightest_pattern_is_the_one_that_was_made(text: str, axis: int) -> None:
    pattern = parse_pattern(text)
    assert isinstance(pattern, NM)
    weight = np.random.default_rng(0).standard_normal((32, 48, 64))
    made = np.where(magnitude_mask(weight, pattern, axis), weight, 0)
    assert tightest(made, axis) == pattern
    assert tightest(weight, axis) == DENSE


def test_tightest_pattern_at_its_edges() -> None:
    assert tightest(np.zeros((0, 4))) == tightest(np.ones((4, 5))) == DENSE
    assert tightest(np.zeros((2, 8))) == NM(1, 8)
    assert tightest(np.array([[1, 1, 0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0, 0, 0]])) == NM(4, 8)  # not 2:4
    assert tightest(np.array([[1, 0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 0]])) == NM(1, 2)  # rather than 7:16
    assert tightest(np.array([[1, 1, 0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 1, 0, 0, 0]])) == NM(2, 4)
    assert tightest(np.array([[1, 0, 0, 0, 0, 0, 0, 0]])) == NM(1, 8)
    mild = np.tile(np.array([1, 1, 1, 1, 1, 1, 1, 0]), (2, 3))
    assert tightest(mild) == DENSE and tightest(mild, wanted=NM(7, 8)) == NM(7, 8)
    thirds = np.tile(np.array([1, 0, 0]), (2, 4))
    assert tightest(thirds, wanted=NM(2, 3)) == NM(1, 3) and tightest(thirds) == NM(1, 2)


def test_groups_larger_than_a_byte_counts() -> None:
    ones = np.ones((1, 512))
    assert not is_nm(ones, NM(255, 256)) and violations(ones, NM(255, 256)).count == 2
    assert magnitude_mask(np.arange(512.0)[None], NM(100, 512)).sum() == 100
