"""NumPy meaning of the operators that move elements about without computing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from tamis.compiler.ir.ops import (
    Concat,
    Expand,
    Gather,
    GatherElements,
    GatherND,
    Reshape,
    ScatterElements,
    ScatterND,
    Slice,
    Split,
    Tile,
    Transpose,
)

Arrays = Sequence[np.ndarray]

ACCUMULATE: Mapping[str, Any] = MappingProxyType(
    {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}
)


def _slice(op: Slice, inputs: Arrays) -> np.ndarray:
    cut: list[slice] = [slice(None)] * inputs[0].ndim
    for axis, start, stop, step in zip(op.axes, op.starts, op.stops, op.steps, strict=True):
        cut[axis] = slice(start, stop, step)
    return inputs[0][tuple(cut)]


def _split(op: Split, inputs: Arrays) -> tuple[np.ndarray, ...]:
    return tuple(np.split(inputs[0], np.cumsum(op.sizes[:-1]), axis=op.axis))


def _gather_elements(op: GatherElements, inputs: Arrays) -> np.ndarray:
    data, indices = inputs
    # The other axes of indices may be shorter than those of data.
    cut = [slice(0, size) for size in indices.shape]
    cut[op.axis] = slice(None)
    return np.take_along_axis(data[tuple(cut)], indices % max(data.shape[op.axis], 1), axis=op.axis)


def _gather_nd(op: GatherND, inputs: Arrays) -> np.ndarray:
    data, indices = inputs
    batch = indices.shape[: op.batch_dims]
    rows: tuple[np.ndarray, ...] = np.indices(batch, sparse=True) if batch else ()
    extra = indices.ndim - 1 - len(batch)
    leading = tuple(row.reshape(row.shape + (1,) * extra) for row in rows)
    return np.asarray(data[leading + tuple(np.moveaxis(indices, -1, 0))])


def _scatter_elements(op: ScatterElements, inputs: Arrays) -> np.ndarray:
    data, indices, updates = inputs
    where: list[np.ndarray] = list(np.indices(indices.shape, sparse=True))
    where[op.axis] = indices % max(data.shape[op.axis], 1)
    return _scatter(data, tuple(where), updates, op.reduction)


def _scatter_nd(op: ScatterND, inputs: Arrays) -> np.ndarray:
    data, indices, updates = inputs
    return _scatter(data, tuple(np.moveaxis(indices, -1, 0)), updates, op.reduction)


def _scatter(data: np.ndarray, where: tuple[Any, ...], updates: np.ndarray, reduction: str) -> np.ndarray:
    result = data.copy()
    if reduction == "none":
        result[where] = updates
    else:
        ACCUMULATE[reduction].at(result, where, updates)
    return result


MOVEMENT: Mapping[type, Callable[[Any, Arrays], Any]] = MappingProxyType(
    {
        Reshape: lambda op, inputs: inputs[0].reshape(op.shape),
        Transpose: lambda op, inputs: inputs[0].transpose(op.perm),
        Concat: lambda op, inputs: np.concatenate(inputs, axis=op.axis),
        Split: _split,
        Slice: _slice,
        Gather: lambda op, inputs: np.take(inputs[0], inputs[1], axis=op.axis),
        GatherElements: _gather_elements,
        GatherND: _gather_nd,
        ScatterElements: _scatter_elements,
        ScatterND: _scatter_nd,
        Expand: lambda op, inputs: np.broadcast_to(inputs[0], op.shape),
        Tile: lambda op, inputs: np.tile(inputs[0], op.repeats),
    }
)
