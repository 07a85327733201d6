"""Grouped convolutions as products of tiles: neighbouring groups that share a tile of filters are a bundle.

A tile of tensor cores has more filters, and its step more channels, than most groups have. The groups of a bundle lie
on the diagonal of one matrix [filters, taps, channels of the bundle], with zeros between them, which are multiplied as
well. Each bundle has whole tiles. All bundles have as many channels, so that the last one, where groups are left over,
begins with some of the bundle before; its filters have zeros for these, and no filter is in two bundles.

A weight in 2:4 along its channels stays so: groups begin at a multiple of their channels, which four divides then.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tamis.errors import FormatError

# Channels of a bundle begin at a multiple of so many: 16 bytes in 16 bits.
FIRST_CHANNELS = 8


@dataclass(frozen=True)
class Bundles:
    """``groups`` of ``filters`` and ``channels`` each, ``merged`` of them at a time."""

    groups: int
    filters: int
    channels: int
    merged: int

    @property
    def count(self) -> int:
        """How many bundles there are."""
        return -(-self.groups // self.merged)

    def first_group(self, bundle: int) -> int:
        """The group whose channels come first in a bundle."""
        return min(bundle * self.merged, self.groups - self.merged)


@functools.lru_cache(maxsize=1024)
def choose_bundles(groups: int, filters: int, channels: int, tile: int, step: int) -> Bundles:
    """The bundles for a convolution with the fewest multiplications, in tiles of filters and steps of channels.

    ``filters`` and ``channels`` are those of all groups, multiples of their number. Among equals the fewest groups are
    merged: what is not a number in one group's channels makes all of its bundle's results so. ``ValueError`` when no
    bundle begins at a multiple of ``FIRST_CHANNELS``.
    """
    own = Bundles(groups, filters // groups, channels // groups, 1)
    found = [
        Bundles(groups, own.filters, own.channels, merged)
        for merged in range(1, groups + 1)
        if groups == 1 or (merged * own.channels % FIRST_CHANNELS == 0 and channels % FIRST_CHANNELS == 0)
    ]
    if not found:
        raise ValueError(f"{channels} channels are not a multiple of {FIRST_CHANNELS}")

    def work(bundles: Bundles) -> int:
        across = -(-bundles.merged * bundles.filters // tile) * tile
        return bundles.count * across * -(-bundles.merged * bundles.channels // step)

    return min(found, key=work)


def bundle_weight(weight: NDArray[Any], bundles: Bundles, tile: int) -> NDArray[Any]:
    """The matrix [rows, taps, channels of a bundle] of a weight [filters, taps, channels of a group].

    A bundle has whole tiles of ``tile`` rows; zeros fill the last one, and lie between groups. ``FormatError`` for a
    weight of another shape.
    """
    groups, filters, channels = bundles.groups, bundles.filters, bundles.channels
    if weight.ndim != 3 or weight.shape[::2] != (groups * filters, channels):
        raise FormatError(f"a weight [{groups * filters}, taps, {channels}] is needed, not {weight.shape}")
    rows = -(-bundles.merged * filters // tile) * tile
    matrix = np.zeros((bundles.count, rows, weight.shape[1], bundles.merged * channels), weight.dtype)
    for group in range(groups):
        bundle = group // bundles.merged
        row, channel = _corner(bundles, group)
        own = weight[group * filters : (group + 1) * filters]
        matrix[bundle, row : row + filters, :, channel : channel + channels] = own
    return matrix.reshape(-1, *matrix.shape[2:])


def unbundle_weight(matrix: NDArray[Any], bundles: Bundles) -> NDArray[Any]:
    """The weight of a matrix that ``bundle_weight`` made; ``FormatError`` where something lies beside its groups."""
    filters, channels = bundles.filters, bundles.channels
    cut = matrix.reshape(bundles.count, -1, *matrix.shape[1:]).copy()
    parts = []
    for group in range(bundles.groups):
        row, channel = _corner(bundles, group)
        part = cut[group // bundles.merged, row : row + filters, :, channel : channel + channels]
        parts.append(part.copy())
        part[...] = 0
    if cut.any():
        raise FormatError("weights lie outside of the groups' filters and channels")
    return np.concatenate(parts)


def _corner(bundles: Bundles, group: int) -> tuple[int, int]:
    """A group's first row and channel within its bundle."""
    bundle = group // bundles.merged
    row = (group - bundle * bundles.merged) * bundles.filters
    return row, (group - bundles.first_group(bundle)) * bundles.channels
