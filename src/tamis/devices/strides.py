"""Arithmetic of strides: how far apart, in elements, neighbours along each axis of a tensor lie in memory."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TypeAlias

Strides: TypeAlias = tuple[int, ...]


def dense_strides(shape: Sequence[int]) -> Strides:
    """The strides of a dense row-major tensor."""
    return tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))


def is_dense(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether a tensor is dense and row-major; the stride of an axis of size one says nothing."""
    if 0 in shape:
        return True
    pairs = zip(shape, strides, dense_strides(shape), strict=True)
    return all(size == 1 or stride == dense for size, stride, dense in pairs)


def in_order_of(shape: Sequence[int], strides: Sequence[int]) -> Strides:
    """Dense strides of a tensor whose axes lie in memory in the order of ``strides``, the largest outermost."""
    found, step = [0] * len(shape), 1
    outermost_first = sorted(range(len(shape)), key=lambda axis: -strides[axis])
    for axis in reversed(outermost_first):
        found[axis] = step
        step *= shape[axis]
    return tuple(found)


def reshaped(shape: Sequence[int], strides: Sequence[int], target: Sequence[int]) -> Strides | None:
    """The strides of a tensor seen in another shape of as many elements, or None where that needs a copy.

    Runs of source axes that lie densely one in another are merged, then cut into axes of the target.
    """
    if 0 in shape:
        return dense_strides(target)
    runs: list[tuple[int, int]] = []  # elements and innermost stride of each run, outermost first
    for size, stride in zip(shape, strides, strict=True):
        if size == 1:
            continue
        if runs and runs[-1][1] == size * stride:
            runs[-1] = (runs[-1][0] * size, stride)
        else:
            runs.append((size, stride))
    found: list[int] = []
    left, step = 1, 1
    for size in reversed(target):
        if left == 1 and size > 1 and runs:
            left, step = runs.pop()
        if left % size:
            return None
        found.append(step)
        left, step = left // size, step * size
    return tuple(reversed(found)) if left == 1 and not runs else None
