"""Shape rules of the operators that move elements about without computing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from types import MappingProxyType
from typing import Any

from tamis.compiler.ir.graph import TensorType
from tamis.compiler.ir.infer_support import axis_of, broadcast, need, refuse, same_dtype
from tamis.compiler.ir.ops import (
    Concat,
    Expand,
    Gather,
    GatherElements,
    GatherND,
    Op,
    Reshape,
    ScatterElements,
    ScatterND,
    Slice,
    Split,
    Tile,
    Transpose,
)
from tamis.formats.dtype import DType

Types = tuple[TensorType, ...]
INDEX_TYPES = (DType.INT32, DType.INT64)


def _reshape(op: Reshape, inputs: Types) -> Types:
    need(op, inputs, 1)
    if min(op.shape, default=0) < 0 or prod(op.shape) != inputs[0].elements:
        raise refuse(op, f"{inputs[0]} cannot become {list(op.shape)}")
    return (TensorType(op.shape, inputs[0].dtype),)


def _transpose(op: Transpose, inputs: Types) -> Types:
    need(op, inputs, 1)
    x = inputs[0]
    if sorted(op.perm) != list(range(len(x.shape))):
        raise refuse(op, f"{list(op.perm)} is not a permutation of the axes of {x}")
    return (TensorType(tuple(x.shape[axis] for axis in op.perm), x.dtype),)


def _concat(op: Concat, inputs: Types) -> Types:
    need(op, inputs, 1, most=None)
    first = inputs[0]
    axis = axis_of(op, op.axis, len(first.shape))
    same_dtype(op, inputs)
    rest = [(*tensor.shape[:axis], *tensor.shape[axis + 1 :]) for tensor in inputs]
    if any(shape != rest[0] for shape in rest) or any(len(t.shape) != len(first.shape) for t in inputs):
        raise refuse(op, f"{', '.join(map(str, inputs))} do not join along axis {axis}")
    size = sum(tensor.shape[axis] for tensor in inputs)
    return (TensorType((*first.shape[:axis], size, *first.shape[axis + 1 :]), first.dtype),)


def _split(op: Split, inputs: Types) -> Types:
    need(op, inputs, 1)
    x = inputs[0]
    axis = axis_of(op, op.axis, len(x.shape))
    if sum(op.sizes) != x.shape[axis] or min(op.sizes, default=-1) < 0:
        raise refuse(op, f"{x} cannot be cut along axis {axis} into parts of {list(op.sizes)}")
    return tuple(TensorType((*x.shape[:axis], size, *x.shape[axis + 1 :]), x.dtype) for size in op.sizes)


def _slice(op: Slice, inputs: Types) -> Types:
    need(op, inputs, 1)
    shape = list(inputs[0].shape)
    if not len(op.axes) == len(op.starts) == len(op.stops) == len(op.steps):
        raise refuse(op, "axes, starts, stops and steps differ in length")
    if 0 in op.steps:
        raise refuse(op, "a step must not be 0")
    axes = [axis_of(op, axis, len(shape)) for axis in op.axes]
    if len(set(axes)) != len(axes):
        raise refuse(op, f"axes {list(op.axes)} name one axis twice")
    for axis, start, stop, step in zip(axes, op.starts, op.stops, op.steps, strict=True):
        shape[axis] = len(range(*slice(start, stop, step).indices(shape[axis])))
    return (TensorType(tuple(shape), inputs[0].dtype),)


def _index(op: Op, indices: TensorType) -> None:
    if indices.dtype not in INDEX_TYPES:
        raise refuse(op, f"indices {indices} must be int32 or int64")


def _gather(op: Gather, inputs: Types) -> Types:
    need(op, inputs, 2)
    data, indices = inputs
    axis = axis_of(op, op.axis, len(data.shape))
    _index(op, indices)
    return (TensorType(data.shape[:axis] + indices.shape + data.shape[axis + 1 :], data.dtype),)


def _gather_elements(op: GatherElements, inputs: Types) -> Types:
    need(op, inputs, 2)
    data, indices = inputs
    axis = axis_of(op, op.axis, len(data.shape))
    _index(op, indices)
    if len(indices.shape) != len(data.shape) or any(
        i != axis and small > big for i, (small, big) in enumerate(zip(indices.shape, data.shape, strict=True))
    ):
        raise refuse(op, f"indices {indices} do not fit data {data} along axis {axis}")
    return (TensorType(indices.shape, data.dtype),)


def _gather_nd(op: GatherND, inputs: Types) -> Types:
    need(op, inputs, 2)
    data, indices = inputs
    _index(op, indices)
    batch, depth = op.batch_dims, indices.shape[-1] if indices.shape else 0
    if not 0 <= batch < len(indices.shape) or batch + depth > len(data.shape):
        raise refuse(op, f"indices {indices} do not fit data {data} with {batch} batch axes")
    if data.shape[:batch] != indices.shape[:batch]:
        raise refuse(op, f"the batch axes of {data} and {indices} differ")
    return (TensorType(indices.shape[:-1] + data.shape[batch + depth :], data.dtype),)


def _scatter_elements(op: ScatterElements, inputs: Types) -> Types:
    need(op, inputs, 3)
    data, indices, updates = inputs
    axis_of(op, op.axis, len(data.shape))
    _index(op, indices)
    same_dtype(op, (data, updates))
    if indices.shape != updates.shape or len(indices.shape) != len(data.shape):
        raise refuse(op, f"indices {indices} and updates {updates} do not fit data {data}")
    return (data,)


def _scatter_nd(op: ScatterND, inputs: Types) -> Types:
    need(op, inputs, 3)
    data, indices, updates = inputs
    _index(op, indices)
    same_dtype(op, (data, updates))
    depth = indices.shape[-1] if indices.shape else 0
    if depth > len(data.shape) or updates.shape != indices.shape[:-1] + data.shape[depth:]:
        raise refuse(op, f"indices {indices} and updates {updates} do not fit data {data}")
    return (data,)


def _expand(op: Expand, inputs: Types) -> Types:
    need(op, inputs, 1)
    if broadcast(op, inputs[0].shape, op.shape) != op.shape:
        raise refuse(op, f"{inputs[0]} does not broadcast to {list(op.shape)}")
    return (TensorType(op.shape, inputs[0].dtype),)


def _tile(op: Tile, inputs: Types) -> Types:
    need(op, inputs, 1)
    x = inputs[0]
    if len(op.repeats) != len(x.shape) or min(op.repeats, default=0) < 0:
        raise refuse(op, f"repeats {list(op.repeats)} do not fit x {x}")
    return (TensorType(tuple(s * r for s, r in zip(x.shape, op.repeats, strict=True)), x.dtype),)


MOVEMENT_RULES: Mapping[type, Callable[[Any, Types], Types]] = MappingProxyType(
    {
        Reshape: _reshape,
        Transpose: _transpose,
        Concat: _concat,
        Split: _split,
        Slice: _slice,
        Gather: _gather,
        GatherElements: _gather_elements,
        GatherND: _gather_nd,
        ScatterElements: _scatter_elements,
        ScatterND: _scatter_nd,
        Expand: _expand,
        Tile: _tile,
    }
)
