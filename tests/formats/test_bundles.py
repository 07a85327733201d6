"""Groups of convolutions in bundles: the same sums as group by group, in float64, and nothing beside the groups."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tamis.errors import FormatError
from tamis.formats import TWO_FOUR, is_nm, magnitude_mask
from tamis.formats.bundles import FIRST_CHANNELS, Bundles, bundle_weight, choose_bundles, unbundle_weight

# Groups, filters and channels of one, filters of a tile.
CASES = [
    (32, 4, 4, 64), (32, 8, 8, 128), (32, 32, 32, 64), (4, 12, 8, 64), (7, 16, 16, 64), (17, 24, 24, 64),
    (2, 136, 72, 128), (2, 3, 4, 64), (8, 5, 3, 64), (3, 64, 8, 128), (64, 2, 2, 64), (1, 100, 40, 64),
]  # fmt: skip
BUNDLED = pytest.mark.parametrize(("groups", "filters", "channels", "tile"), CASES)


def chosen(groups: int, filters: int, channels: int, tile: int) -> Bundles:
    return choose_bundles(groups, groups * filters, groups * channels, tile, 64)


def random_weight(bundles: Bundles, *, sparse: bool = False) -> np.ndarray:
    shape = (bundles.groups * bundles.filters, 2, bundles.channels)
    weight = np.random.default_rng(0).standard_normal(shape)
    return np.where(magnitude_mask(weight, TWO_FOUR), weight, 0.0) if sparse else weight


@BUNDLED
def test_sums_are_those_of_the_groups(groups: int, filters: int, channels: int, tile: int) -> None:
    """Over the channels that the kernels read: those of a bundle, from its first one on."""
    bundles = chosen(groups, filters, channels, tile)
    weight, pixels = random_weight(bundles), np.random.default_rng(1).standard_normal((5, 2, groups * channels))
    wanted = np.einsum(
        "ptgc,gktc->pgk", pixels.reshape(5, 2, groups, channels), weight.reshape(groups, filters, 2, channels)
    ).reshape(5, -1)
    depth, rows = bundles.merged * channels, bundles.merged * filters
    matrix = bundle_weight(weight, bundles, tile).reshape(bundles.count, -1, 2, depth)
    assert matrix.shape[1] % tile == 0
    sums = np.full((5, bundles.count * rows), np.nan)
    for bundle in range(bundles.count):
        first = bundles.first_group(bundle) * channels
        assert groups == 1 or first % FIRST_CHANNELS == 0
        window = pixels[:, :, first : first + depth]
        assert window.shape[2] == depth, "the window leaves the pixel"
        sums[:, bundle * rows : (bundle + 1) * rows] = np.einsum("ptc,ktc->pk", window, matrix[bundle, :rows])
        assert not matrix[bundle, rows:].any()
    np.testing.assert_allclose(sums[:, : wanted.shape[1]], wanted, rtol=0, atol=1e-12)
    assert not sums[:, wanted.shape[1] :].any(), "filters that do not exist"
    np.testing.assert_array_equal(unbundle_weight(matrix.reshape(-1, 2, depth), bundles), weight)


@BUNDLED
def test_the_fewest_multiplications(groups: int, filters: int, channels: int, tile: int) -> None:
    """By trying all; among equals the fewest groups share a bundle."""
    bundles = chosen(groups, filters, channels, tile)

    def work(merged: int) -> int:
        return -(-groups // merged) * -(-merged * filters // tile) * -(-merged * channels // 64)

    allowed = [m for m in range(1, groups + 1) if m * channels % FIRST_CHANNELS == 0 or groups == 1]
    assert bundles.merged == min(allowed, key=lambda merged: (work(merged), merged))


def test_what_is_merged() -> None:
    merged = {case: chosen(*case).merged for case in itertools.product((32,), (4, 16, 32, 64), (4, 16, 32, 64), (64,))}
    assert merged[32, 4, 4, 64] == 16 and merged[32, 16, 16, 64] == 4 and merged[32, 32, 32, 64] == 2
    assert merged[32, 64, 64, 64] == 1, "a group that fills tiles and steps stays alone"
    assert merged[32, 4, 64, 64] == 1 and merged[32, 64, 4, 64] == 2, "two groups begin at 16 bytes, one does not"


@pytest.mark.parametrize(("groups", "filters", "channels", "tile"), [case for case in CASES if case[2] % 4 == 0])
def test_two_of_four_stays_so(groups: int, filters: int, channels: int, tile: int) -> None:
    bundles = chosen(groups, filters, channels, tile)
    assert is_nm(bundle_weight(random_weight(bundles, sparse=True), bundles, tile), TWO_FOUR)


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="36 channels are not a multiple of 8"):
        choose_bundles(9, 36, 36, 64, 64)
    bundles = chosen(4, 8, 8, 64)
    with pytest.raises(FormatError, match=r"a weight \[32, taps, 8\] is needed"):
        bundle_weight(np.zeros((32, 9, 4)), bundles, 64)
    matrix = bundle_weight(random_weight(bundles), bundles, 64)
    matrix[0, 0, 8] = 1.0  # the first filter, and a channel of the second group
    with pytest.raises(FormatError, match="outside of the groups"):
        unbundle_weight(matrix, bundles)
