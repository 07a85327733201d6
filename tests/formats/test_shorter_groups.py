"""Axes that end in a shorter group: as if zeros followed, behind sixteen whole groups at least."""

from __future__ import annotations

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
    divides,
    fits,
    is_nm,
    magnitude_mask,
    statistics,
    tightest,
    violations,
)
from tamis.formats.tiles import pack, unpack

PATTERNS = [NM(2, 4), NM(1, 4), NM(3, 4), NM(4, 8), NM(1, 2), NM(3, 5)]


def random_weight(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def padded(weight: np.ndarray, m: int) -> np.ndarray:
    return np.pad(weight, ((0, 0), (0, -weight.shape[1] % m)))


def test_which_sizes_and_shapes() -> None:
    assert [divides(4, size) for size in (0, 4, 60, 62, 63, 64, 65, 67, 479)] == [1, 1, 1, 0, 0, 1, 1, 1, 1]
    assert divides(8, 127 + 1) and not divides(8, 127)
    assert fits((5, 479), 1, 4) and fits((479, 5), 0, 4) and not fits((5, 13), 1, 4)
    assert not fits((5, 479, 3, 3), 1, 4), "the channels of a convolution"
    assert fits((5, 480, 3, 3), 1, 4)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("extra", [1, 2, 3, 4, 7])
def test_masks_are_those_of_the_padded_weight(pattern: NM, extra: int) -> None:
    columns = 16 * pattern.m + extra
    weight = random_weight(6, columns).round(1)  # with ties and zeros
    mask = magnitude_mask(weight, pattern)
    np.testing.assert_array_equal(mask, magnitude_mask(padded(weight, pattern.m), pattern)[:, :columns])
    np.testing.assert_array_equal(magnitude_mask(weight.T, pattern, 0), mask.T)
    assert mask.sum(1).tolist() == [columns - pattern.zeros_in(columns)] * 6
    assert is_nm(weight * mask, pattern)


def test_short_axes_are_refused() -> None:
    for use in (magnitude_mask, is_nm, violations, statistics):
        with pytest.raises(FormatError, match="length 63, which groups of 4 do not divide"):
            use(random_weight(2, 63), pattern=TWO_FOUR, axis=-1)


@pytest.mark.parametrize("columns", [65, 66, 67, 479])
def test_found_in_the_values(columns: int) -> None:
    weight = random_weight(9, columns)
    assert detect(weight) == DENSE
    pruned = weight * magnitude_mask(weight, TWO_FOUR)
    assert detect(pruned) == detect(pruned.T, 0) == TWO_FOUR
    assert tightest(pruned) == TWO_FOUR
    sparser = weight * magnitude_mask(weight, NM(1, 4))
    assert tightest(sparser) == NM(1, 4) and detect(sparser) == TWO_FOUR
    assert detect(pruned[:, :, None, None], 1) == tightest(pruned[:, :, None, None], 1) == DENSE
    pruned[4, -3:] = 1.0
    shorter = columns % 4
    assert detect(pruned) == (DENSE if shorter == 3 else detect(padded(pruned, 4)))


def test_what_breaks_it_is_found_in_the_last_group() -> None:
    weight = random_weight(5, 479)
    weight *= magnitude_mask(weight, TWO_FOUR)
    weight[3, 476:] = (3.0, 0.5, 2.0)
    broken = violations(weight, TWO_FOUR)
    assert (broken.count, broken.first) == (1, ((3, 476),))
    found = statistics(weight, -1, TWO_FOUR)
    assert found.to_drop == 1
    assert found.conforming == 1 - 1 / (5 * 120)
    assert found.relative_change == pytest.approx(0.5 / np.linalg.norm(weight), rel=1e-6)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_compressed_and_back(pattern: NM) -> None:
    columns = 17 * pattern.m + 1
    weight = random_weight(7, columns)
    weight *= magnitude_mask(weight, pattern)
    compressed = compress(weight, pattern)
    assert compressed.values.shape == (7, 18 * pattern.n)
    np.testing.assert_array_equal(decompress(compressed), weight)


def test_packed_for_a_cpu() -> None:
    weight = random_weight(33, 479)
    weight *= magnitude_mask(weight, TWO_FOUR)
    packed = pack(weight, "float32", TWO_FOUR)
    np.testing.assert_array_equal(unpack(packed, 33, 479, "float32", TWO_FOUR), weight)
