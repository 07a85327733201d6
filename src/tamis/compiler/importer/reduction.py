"""Reductions, searches and running sums."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

import numpy as np

from tamis.compiler.importer.call import Call
from tamis.compiler.importer.convert import Convert
from tamis.compiler.importer.network import Network
from tamis.compiler.ir.ops import ArgReduce, Cast, CumSum, Reduce, TopK, Triangle
from tamis.formats.dtype import DType

Kind = Literal["mean", "sum", "max", "min", "prod", "l1", "l2", "sum_square", "log_sum", "log_sum_exp"]
KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "ReduceL1": "l1",
        "ReduceL2": "l2",
        "ReduceLogSum": "log_sum",
        "ReduceLogSumExp": "log_sum_exp",
        "ReduceMax": "max",
        "ReduceMean": "mean",
        "ReduceMin": "min",
        "ReduceProd": "prod",
        "ReduceSum": "sum",
        "ReduceSumSquare": "sum_square",
    }
)


def reduce(net: Network, call: Call) -> str:
    """A reduction; its axes are an attribute or, from opset 13 (ReduceSum) or 18, an input."""
    x, axes = call.input(0), call.integers("axes")
    given = call.optional(1)
    if given is not None:
        axes = net.integers_of(given, "axes")
    if not axes and call.integer("noop_with_empty_axes", 0):
        return net.add(Reduce(KINDS[call.op_type], (), True), x) if call.op_type != "ReduceSum" else x
    numbers = tuple(sorted({net.axis(x, axis) for axis in axes})) if axes else tuple(range(net.rank(x)))
    op = Reduce(KINDS[call.op_type], numbers, bool(call.integer("keepdims", 1)))
    if net.dtype(x) == DType.BOOL:
        return net.add(Cast(DType.BOOL), net.add(op, net.add(Cast(DType.UINT8), x)))
    return net.add(op, x)


def arg_reduce(net: Network, call: Call) -> str:
    """ArgMax and ArgMin."""
    x = call.input(0)
    op = ArgReduce(
        "max" if call.op_type == "ArgMax" else "min",
        net.axis(x, call.integer("axis", 0)),
        bool(call.integer("keepdims", 1)),
        bool(call.integer("select_last_index", 0)),
    )
    return net.add(op, x)


def top_k(net: Network, call: Call) -> tuple[str, ...]:
    """TopK; an unsorted one is sorted all the same, which ONNX allows."""
    x = call.input(0)
    k = int(net.integers_of(call.input(1), "k")[0]) if call.opset >= 10 else call.required_integer("k")
    return net.add_all(TopK(k, net.axis(x, call.integer("axis", -1)), bool(call.integer("largest", 1))), x)


def cum_sum(net: Network, call: Call) -> str:
    """Running sum along a constant axis."""
    x = call.input(0)
    axis = net.axis(x, net.integers_of(call.input(1), "axis")[0])
    return net.add(CumSum(axis, bool(call.integer("exclusive", 0)), bool(call.integer("reverse", 0))), x)


def trilu(net: Network, call: Call) -> str:
    """Upper or lower triangle."""
    k = call.optional(1)
    diagonal = net.integers_of(k, "k")[0] if k is not None else 0
    # A diagonal beyond the matrix says no more than one at its border, and NumPy wants it small.
    limit = int(np.max(net.shape(call.input(0))[-2:], initial=0)) + 1
    diagonal = max(-limit, min(limit, diagonal))
    return net.add(Triangle(bool(call.integer("upper", 1)), diagonal), call.input(0))


REDUCTION: Mapping[str, Convert] = MappingProxyType(
    {
        **dict.fromkeys(KINDS, reduce),
        "ArgMax": arg_reduce,
        "ArgMin": arg_reduce,
        "CumSum": cum_sum,
        "TopK": top_k,
        "Trilu": trilu,
    }
)
