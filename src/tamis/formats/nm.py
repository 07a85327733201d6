"""n:m sparsity: check it, make it, and hold it without its zeros.

A group is ``m`` consecutive elements along an axis, aligned to the start of the axis. The weight follows the
pattern when every group has at most ``n`` non-zeros (fewer is fine). The last group of a long axis may be shorter, and
counts as if zeros followed.

Policy for odd numbers: zero means equal to zero, so -0.0 is a zero. NaN and infinity are non-zero; a mask is
refused for weights with NaN, because NaN has no magnitude, while infinity is simply the largest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tamis.errors import FormatError
from tamis.formats.pattern import NM, divides


@dataclass(frozen=True)
class Violations:
    """Groups with too many non-zeros.

    ``count`` is how many there are; ``first`` locates the first few: each is the index, in the weight, of the
    group's first element.
    """

    count: int
    first: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class CompressedNM:
    """An n:m weight without its zeros.

    ``values`` [rows, groups * n] keeps ``n`` elements of each group in their order; ``indices`` (uint8, same
    shape) says where in its group each one was, increasing inside a group. ``k`` is the row length before.
    """

    values: NDArray[Any]
    indices: NDArray[np.uint8]
    pattern: NM
    k: int


def grouped(weight: NDArray[Any], m: int, axis: int) -> NDArray[Any]:
    """The weight as ``[..., groups, m]`` with ``axis`` last, zeros behind a shorter last group.

    ``FormatError`` if ``m`` neither divides the axis nor has enough whole groups in it.
    """
    if not -weight.ndim <= axis < weight.ndim:
        raise FormatError(f"axis {axis} is out of range for a tensor of rank {weight.ndim}")
    length = weight.shape[axis]
    if not divides(m, length):
        raise FormatError(
            f"axis {axis} has length {length}, which groups of {m} do not divide",
            remedy="pad the axis, or keep this weight dense",
        )
    moved = np.moveaxis(weight, axis, -1)
    if missing := -length % m:
        moved = np.pad(moved, ((0, 0),) * (weight.ndim - 1) + ((0, missing),))
    return moved.reshape(*moved.shape[:-1], -(-length // m), m)


def nonzeros_per_group(weight: NDArray[Any], m: int, axis: int) -> NDArray[np.unsignedinteger[Any]]:
    """How many non-zeros each group holds, ``[..., groups]`` with ``axis`` moved last."""
    nonzero = (grouped(weight, m, axis) != 0).view(np.uint8)
    count: NDArray[np.unsignedinteger[Any]] = nonzero[..., 0].astype(_counter(m))
    for i in range(1, m):  # strided additions: NumPy's reduction over a short last axis is ten times slower
        count += nonzero[..., i]
    return count


def _counter(m: int) -> type[np.unsignedinteger[Any]]:
    """The smallest type that counts to ``m``."""
    return np.uint8 if m < 256 else np.uint32


def is_nm(weight: NDArray[Any], pattern: NM, axis: int = -1) -> bool:
    """Whether every group of the weight along ``axis`` keeps the pattern; any rank."""
    return bool((nonzeros_per_group(weight, pattern.m, axis) <= pattern.n).all())


def violations(weight: NDArray[Any], pattern: NM, axis: int = -1, limit: int = 8) -> Violations:
    """Count the groups that break the pattern and locate the first ``limit`` of them."""
    bad = nonzeros_per_group(weight, pattern.m, axis) > pattern.n
    count = int(np.count_nonzero(bad))
    found = []
    for flat in np.flatnonzero(bad)[:limit]:
        *rest, group = (int(i) for i in np.unravel_index(flat, bad.shape))
        rest.insert(axis % weight.ndim, group * pattern.m)
        found.append(tuple(rest))
    return Violations(count, tuple(found))


def _largest(keys: NDArray[Any], n: int) -> NDArray[np.bool_]:
    """Mark the ``n`` largest of each group of the last axis; among equals the earlier one wins."""
    m = keys.shape[-1]
    rank = np.zeros(keys.shape, _counter(m))
    for i in range(m):
        for j in range(i + 1, m):
            later_is_larger = keys[..., j] > keys[..., i]
            rank[..., i] += later_is_larger
            rank[..., j] += ~later_is_larger
    return rank < n


def magnitude_mask(weight: NDArray[Any], pattern: NM, axis: int = -1) -> NDArray[np.bool_]:
    """The mask, shaped like the weight, that keeps the ``n`` largest magnitudes of every group.

    Exactly ``n`` of each group are True, all of a last one that has no more; equal magnitudes keep the earlier element,
    so the mask repeats. ``FormatError`` when groups of ``m`` do not cover the axis or the weight holds NaN.
    """
    groups = np.abs(grouped(weight, pattern.m, axis))
    if np.isnan(groups).any():
        raise FormatError("the weight holds NaN, which has no magnitude", remedy="repair it before pruning")
    mask = _largest(groups, pattern.n)
    moved = mask.reshape(*mask.shape[:-2], -1)[..., : weight.shape[axis]]
    return np.ascontiguousarray(np.moveaxis(moved, -1, axis))


def compress(weight: NDArray[Any], pattern: NM) -> CompressedNM:
    """Drop the zeros of a 2-D weight along its last axis.

    Groups with fewer than ``n`` non-zeros fill up with zeros of their own: -0.0 first (so that its sign
    is kept where there is room), then the earliest. ``FormatError`` if a group has too many non-zeros.
    """
    if weight.ndim != 2:
        raise FormatError(f"a matrix is needed, not a tensor of rank {weight.ndim}")
    groups = grouped(weight, pattern.m, -1)
    broken = violations(weight, pattern, limit=1)
    if broken.count:
        raise FormatError(
            f"{broken.count} groups hold more than {pattern.n} non-zeros, the first at {broken.first[0]}",
            remedy=f"prune the weight to {pattern} along its last axis first",
        )
    keys = (groups != 0).view(np.uint8) * np.uint8(2)
    keys += np.signbit(groups)
    keep = _largest(np.where(groups != 0, np.uint8(2), keys), pattern.n)
    rows = weight.shape[0]
    indices = np.nonzero(keep)[-1].astype(np.uint8)
    return CompressedNM(groups[keep].reshape(rows, -1), indices.reshape(rows, -1), pattern, weight.shape[1])


def decompress(compressed: CompressedNM) -> NDArray[Any]:
    """The weight that was compressed, ``[rows, k]``: equal, and bit for bit the same save a dropped -0.0."""
    n, m = compressed.pattern.n, compressed.pattern.m
    rows = compressed.values.shape[0]
    groups = -(-compressed.k // m)
    shape = (rows, groups, n)
    weight = np.zeros((rows, groups, m), compressed.values.dtype)
    np.put_along_axis(weight, compressed.indices.reshape(shape).astype(np.intp), compressed.values.reshape(shape), -1)
    return weight.reshape(rows, groups * m)[:, : compressed.k]
