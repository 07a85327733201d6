"""Normalisations and softmax."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from types import MappingProxyType

import numpy as np

from tamis.compiler.importer.call import Call
from tamis.compiler.importer.convert import Convert
from tamis.compiler.importer.generation import one_hot_of
from tamis.compiler.importer.network import Network
from tamis.compiler.ir.ops import (
    ArgReduce,
    BatchNorm,
    Expand,
    GroupNorm,
    LayerNorm,
    LocalResponseNorm,
    Reduce,
    Reshape,
    Softmax,
)
from tamis.errors import InvalidModel, UnsupportedModel


def batch_normalization(net: Network, call: Call) -> str:
    """Batch normalisation with given statistics."""
    if call.integer("training_mode", 0):
        raise UnsupportedModel("BatchNormalization is in training mode; export the model in evaluation mode")
    if not call.integer("spatial", 1):
        raise UnsupportedModel("BatchNormalization with spatial=0 (opset 7 and 8)")
    return net.add(BatchNorm(call.number("epsilon", 1e-5)), *(call.input(index) for index in range(5)))


def layer_normalization(net: Network, call: Call) -> str | None:
    """Layer normalisation over the last axes; with its statistics as results, by ONNX's definition."""
    if call.wants(1) or call.wants(2):
        return None
    x, scale, bias = call.input(0), call.optional(1), call.optional(2)
    op = LayerNorm(
        net.axis(x, call.integer("axis", -1)) - net.rank(x),
        call.number("epsilon", 1e-5),
        scale is not None,
        bias is not None,
    )
    return net.add(op, x, *(value for value in (scale, bias) if value is not None))


def rms_normalization(net: Network, call: Call) -> str:
    """Root mean square normalisation (opset 23)."""
    x = call.input(0)
    axis = net.axis(x, call.integer("axis", -1)) - net.rank(x)
    op = LayerNorm(axis, call.number("epsilon", 1e-5), scale=True, bias=False, rms=True)
    return net.add(op, x, call.input(1))


def instance_normalization(net: Network, call: Call) -> str:
    """Instance normalisation: every channel is its own group."""
    x = call.input(0)
    if net.rank(x) < 2:
        raise InvalidModel(f"x {net.types[x]} must be [N,C,...]")
    op = GroupNorm(net.shape(x)[1], call.number("epsilon", 1e-5))
    return net.add(op, x, call.input(1), call.input(2))


def group_normalization(net: Network, call: Call) -> str:
    """Group normalisation; before opset 21 scale and bias are given for each group."""
    x, groups = call.input(0), call.required_integer("num_groups")
    if net.rank(x) < 2 or groups < 1 or net.shape(x)[1] % groups:
        raise InvalidModel(f"x {net.types[x]} cannot be cut into {groups} groups of channels")
    channels = net.shape(x)[1]
    parameters = [call.input(1), call.input(2)]
    if call.opset < 21:
        parameters = [_per_channel(net, value, groups, channels) for value in parameters]
    return net.add(GroupNorm(groups, call.number("epsilon", 1e-5)), x, *parameters)


def _per_channel(net: Network, value: str, groups: int, channels: int) -> str:
    column = net.add(Reshape((groups, 1)), value)
    return net.add(Reshape((channels,)), net.add(Expand((groups, channels // groups)), column))


def local_response_normalization(net: Network, call: Call) -> str:
    """LRN."""
    op = LocalResponseNorm(
        call.required_integer("size"),
        call.number("alpha", 1e-4),
        call.number("beta", 0.75),
        call.number("bias", 1.0),
    )
    return net.add(op, call.input(0))


def lp_normalization(net: Network, call: Call) -> str:
    """Division by the L1 or L2 norm along an axis; where the norm is zero the result is zero."""
    x, power = call.input(0), call.integer("p", 2)
    if power not in (1, 2):
        raise InvalidModel(f"LpNormalization with p = {power}, which must be 1 or 2")
    axis = net.axis(x, call.integer("axis", -1))
    norm = net.add(Reduce("l1" if power == 1 else "l2", (axis,), True), x)
    # x is zero wherever the norm is, so any divisor above zero will do there.
    tiny = net.constant(np.asarray(np.finfo(np.float32).tiny, np.float32))
    return net.pointwise("div", x, net.pointwise("max", norm, tiny))


def mean_variance_normalization(net: Network, call: Call) -> str:
    """``(x - mean) / sqrt(variance)`` over some axes, as the ONNX function defines it."""
    x = call.input(0)
    axes = tuple(sorted(net.axis(x, axis) for axis in call.integers("axes") or (0, 2, 3)))
    mean = net.add(Reduce("mean", axes, True), x)
    mean_square = net.add(Reduce("mean", axes, True), net.pointwise("mul", x, x))
    variance = net.pointwise("sub", mean_square, net.pointwise("mul", mean, mean))
    deviation = net.pointwise("add", net.pointwise("sqrt", variance), net.scalar(1e-9, x))
    return net.pointwise("div", net.pointwise("sub", x, mean), deviation)


def softmax(net: Network, call: Call) -> str:
    """Softmax and LogSoftmax; before opset 13 over all axes from ``axis`` on, flattened."""
    x, log = call.input(0), call.op_type == "LogSoftmax"
    axis = net.axis(x, call.integer("axis", -1 if call.opset >= 13 else 1))
    return _flattened(net, x, axis, call.opset, lambda value, at: net.add(Softmax(at, log), value))


def hardmax(net: Network, call: Call) -> str:
    """One where the (first) maximum is, zero elsewhere."""
    x = call.input(0)
    axis = net.axis(x, call.integer("axis", -1 if call.opset >= 13 else 1))

    def convert(value: str, at: int) -> str:
        best = net.add(ArgReduce("max", at, False), value)
        values = net.constant(np.asarray([0, 1], net.dtype(x).numpy))
        return one_hot_of(net, best, net.shape(value)[at], values, at)

    return _flattened(net, x, axis, call.opset, convert)


def _flattened(net: Network, x: str, axis: int, opset: int, convert: Callable[[str, int], str]) -> str:
    shape = net.shape(x)
    if opset >= 13 or axis == len(shape) - 1 or not shape:
        return convert(x, axis)
    rows = net.add(Reshape((prod(shape[:axis]), prod(shape[axis:]))), x)
    return net.add(Reshape(shape), convert(rows, 1))


NORMALIZATION: Mapping[str, Convert] = MappingProxyType(
    {
        "BatchNormalization": batch_normalization,
        "GroupNormalization": group_normalization,
        "Hardmax": hardmax,
        "InstanceNormalization": instance_normalization,
        "LRN": local_response_normalization,
        "LayerNormalization": layer_normalization,
        "LogSoftmax": softmax,
        "LpNormalization": lp_normalization,
        "MeanVarianceNormalization": mean_variance_normalization,
        "RMSNormalization": rms_normalization,
        "Softmax": softmax,
    }
)
