"""NumPy meaning of reductions, running sums and searches along axes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from tamis.compiler.ir.ops import ArgReduce, CumSum, Reduce, TopK, Triangle

Arrays = Sequence[np.ndarray]
Reducer = Callable[[np.ndarray, tuple[int, ...], bool], np.ndarray]


def lowest(dtype: np.dtype) -> Any:
    """The maximum of nothing: minus infinity, or the least number there is."""
    return np.iinfo(dtype).min if np.issubdtype(dtype, np.integer) else -np.inf


def highest(dtype: np.dtype) -> Any:
    """The minimum of nothing."""
    return np.iinfo(dtype).max if np.issubdtype(dtype, np.integer) else np.inf


def _log_sum_exp(x: np.ndarray, axes: tuple[int, ...], keep: bool) -> np.ndarray:
    top = x.max(axis=axes, keepdims=True, initial=-np.inf)
    # A maximum of +-infinity would turn the shift into NaN.
    top = np.where(np.isfinite(top), top, x.dtype.type(0))
    total = np.log(np.exp(x - top).sum(axis=axes, keepdims=keep))
    return np.asarray(total + top.reshape(total.shape))


REDUCERS: Mapping[str, Reducer] = MappingProxyType(
    {
        "mean": lambda x, axes, keep: x.mean(axis=axes, keepdims=keep),
        "sum": lambda x, axes, keep: x.sum(axis=axes, keepdims=keep),
        "max": lambda x, axes, keep: x.max(axis=axes, keepdims=keep, initial=lowest(x.dtype)),
        "min": lambda x, axes, keep: x.min(axis=axes, keepdims=keep, initial=highest(x.dtype)),
        "prod": lambda x, axes, keep: x.prod(axis=axes, keepdims=keep),
        "l1": lambda x, axes, keep: np.abs(x).sum(axis=axes, keepdims=keep),
        "l2": lambda x, axes, keep: np.sqrt((x * x).sum(axis=axes, keepdims=keep)),
        "sum_square": lambda x, axes, keep: (x * x).sum(axis=axes, keepdims=keep),
        "log_sum": lambda x, axes, keep: np.log(x.sum(axis=axes, keepdims=keep)),
        "log_sum_exp": _log_sum_exp,
    }
)


def _reduce(op: Reduce, inputs: Arrays) -> np.ndarray:
    return np.asarray(REDUCERS[op.kind](inputs[0], op.axes, op.keep)).astype(inputs[0].dtype)


def _arg_reduce(op: ArgReduce, inputs: Arrays) -> np.ndarray:
    x = inputs[0]
    search = np.argmax if op.kind == "max" else np.argmin
    if op.last:
        found = x.shape[op.axis] - 1 - search(np.flip(x, op.axis), axis=op.axis, keepdims=op.keep)
    else:
        found = search(x, axis=op.axis, keepdims=op.keep)
    return np.asarray(found, dtype=np.int64)


def _top_k(op: TopK, inputs: Arrays) -> tuple[np.ndarray, np.ndarray]:
    x = inputs[0]
    size = x.shape[op.axis]
    # A stable sort keeps the lower index first among equals, as ONNX asks; for the largest, sort the mirror.
    if op.largest:
        order = size - 1 - np.flip(np.argsort(np.flip(x, op.axis), axis=op.axis, kind="stable"), op.axis)
    else:
        order = np.argsort(x, axis=op.axis, kind="stable")
    order = np.take(order, np.arange(op.k), axis=op.axis).astype(np.int64)
    return np.take_along_axis(x, order, axis=op.axis), order


def _cum_sum(op: CumSum, inputs: Arrays) -> np.ndarray:
    x = np.flip(inputs[0], op.axis) if op.reverse else inputs[0]
    total = np.cumsum(x, axis=op.axis, dtype=x.dtype)
    if op.exclusive:
        total = np.roll(total, 1, axis=op.axis)
        first = [slice(None)] * x.ndim
        first[op.axis] = slice(0, 1)
        total[tuple(first)] = 0
    return np.flip(total, op.axis) if op.reverse else total


def _triangle(op: Triangle, inputs: Arrays) -> np.ndarray:
    return np.triu(inputs[0], op.diagonal) if op.upper else np.tril(inputs[0], op.diagonal)


REDUCTION: Mapping[type, Callable[[Any, Arrays], Any]] = MappingProxyType(
    {Reduce: _reduce, ArgReduce: _arg_reduce, TopK: _top_k, CumSum: _cum_sum, Triangle: _triangle}
)
