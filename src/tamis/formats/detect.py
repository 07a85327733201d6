"""Find a weight's sparsity pattern from its values, and say how far it is from one.

Patterns are detected, never believed from metadata: a weight is 2:4 because its zeros lie where
2:4 wants them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tamis.formats.nm import grouped, nonzeros_per_group
from tamis.formats.pattern import DENSE, NM, TWO_FOUR, Pattern, fits

_GROUPS = (2, 4, 8, 16)
_MILDEST = 0.75  # 6:8; with milder ones a few stray zeros would count as a pattern


@dataclass(frozen=True)
class SparsityStatistics:
    """How sparse a weight is, and what following ``pattern`` would still cost.

    Attributes:
        zeros: fraction of elements that are zero.
        conforming: fraction of groups that already follow the pattern.
        to_drop: how many elements must become zero, at least, for all groups to follow it.
        relative_change: smallest ``|dropped| / |weight|`` (Euclidean norm) that does so; 0 if |weight| is.
    """

    zeros: float
    conforming: float
    to_drop: int
    relative_change: float


def detect(weight: NDArray[Any], axis: int = -1) -> Pattern:
    """The pattern that the weight follows along ``axis``: 2:4 (sparser ones such as 1:4 included) or dense.

    A weight whose axis groups of four do not cover is dense, and so is an empty one.
    """
    if weight.size == 0 or weight.ndim == 0 or not fits(weight.shape, axis, TWO_FOUR.m):
        return DENSE
    # Most weights are dense, which their first rows already show.
    sample = np.moveaxis(weight, axis, -1).reshape(-1, weight.shape[axis])[:16] if weight.ndim > 1 else weight
    if (nonzeros_per_group(sample, TWO_FOUR.m, -1) > TWO_FOUR.n).any():
        return DENSE
    follows = (nonzeros_per_group(weight, TWO_FOUR.m, axis) <= TWO_FOUR.n).all()
    return TWO_FOUR if follows else DENSE


def tightest(weight: NDArray[Any], axis: int = -1, wanted: NM = TWO_FOUR) -> Pattern:
    """The strictest n:m pattern that the weight follows along ``axis``: the fewest non-zeros, then the smallest groups.

    Groups of 2, 4, 8, 16 and ``wanted.m`` are tried where they cover the axis. A 2:4 weight also follows 4:8, but not
    the other way round; 1:4 is sparser than both. If the weight follows ``wanted``, so does every weight of the
    pattern that is given. Patterns milder than 6:8 are not told from chance: dense, unless one is ``wanted``. A weight
    of zeros is 1:m for the largest group; an empty one is dense.
    """
    if weight.size == 0 or weight.ndim == 0:
        return DENSE
    found = [
        NM(max(1, most), m)
        for m, most in _most_nonzeros(np.moveaxis(weight != 0, axis, -1), wanted.m)
        if most <= max(_MILDEST * m, wanted.n if m == wanted.m else 0)
    ]
    found = [pattern for pattern in found if _implies(pattern, wanted)] or found
    return min(found, key=lambda pattern: (pattern.n / pattern.m, pattern.m), default=DENSE)


def _implies(one: NM, other: NM) -> bool:
    """Whether all weights that follow one pattern follow the other too, as 1:4 and 1:2 imply 2:4."""
    if one.m % other.m == 0:
        return one.n <= other.n
    return other.m % one.m == 0 and one.n * (other.m // one.m) <= other.n


def _most_nonzeros(nonzero: NDArray[np.bool_], also: int) -> Iterator[tuple[int, int]]:
    """Each size of group that covers the last axis, with the largest number of non-zeros in one."""
    if also not in _GROUPS and fits(nonzero.shape, -1, also):
        yield also, int(nonzeros_per_group(nonzero, also, -1).max())
    shape = nonzero.shape
    if missing := -shape[-1] % _GROUPS[-1]:
        nonzero = np.pad(nonzero, ((0, 0),) * (nonzero.ndim - 1) + ((0, missing),))
    counts: NDArray[Any] = np.ascontiguousarray(nonzero).view(np.uint8)
    for m in _GROUPS:
        if not fits(shape, -1, m):
            return
        counts = counts[..., 0::2] + counts[..., 1::2]
        yield m, int(counts.max())


def statistics(weight: NDArray[Any], axis: int = -1, pattern: NM = TWO_FOUR) -> SparsityStatistics:
    """Measure a weight against ``pattern`` along ``axis``; ``FormatError`` if groups of ``m`` do not cover it."""
    counts = nonzeros_per_group(weight, pattern.m, axis)
    if counts.size == 0:
        return SparsityStatistics(0.0, 1.0, 0, 0.0)
    bad = counts > pattern.n
    to_drop = int((counts[bad].astype(np.int64) - pattern.n).sum())
    dropped = 0.0
    if to_drop:
        magnitudes = np.abs(grouped(weight, pattern.m, axis)[bad].astype(np.float32, copy=False))
        smallest = np.partition(magnitudes, pattern.m - pattern.n - 1, axis=-1)[:, : pattern.m - pattern.n]
        dropped = float(np.square(smallest, dtype=np.float32).sum(dtype=np.float64))
    flat = weight.astype(np.float32, copy=False)
    total = float(np.square(flat).sum(dtype=np.float64)) if to_drop else 1.0
    return SparsityStatistics(
        zeros=1.0 - float(counts.sum(dtype=np.int64)) / weight.size,
        conforming=1.0 - float(np.count_nonzero(bad)) / counts.size,
        to_drop=to_drop,
        relative_change=float(np.sqrt(dropped / total)) if total else 0.0,
    )
