"""Operators that make constants, and one-hot."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from tamis.compiler.importer.call import Call
from tamis.compiler.importer.convert import Convert
from tamis.compiler.importer.network import Network
from tamis.compiler.ir.ops import Cast, Gather, Reshape, Where
from tamis.errors import InvalidModel, UnsupportedModel
from tamis.formats.dtype import DType
from tamis.onnx_files.tensors import element_type


def constant(net: Network, call: Call) -> str:
    """A constant in one of its forms."""
    attributes = call.attributes
    for name in ("value", "sparse_value"):
        if name in attributes:
            return net.constant(attributes[name])
    for name, dtype in (("value_float", np.float32), ("value_floats", np.float32)):
        if name in attributes:
            return net.constant(np.asarray(attributes[name], dtype))
    for name in ("value_int", "value_ints"):
        if name in attributes:
            return net.constant(np.asarray(attributes[name], np.int64))
    raise UnsupportedModel("a constant of strings, or without a value")


def constant_of_shape(net: Network, call: Call) -> str:
    """One value in every element; memory is taken only when somebody writes it out."""
    shape = net.integers_of(call.input(0), "the shape")
    value = np.asarray(call.attributes.get("value", np.zeros(1, np.float32))).reshape(())
    return net.constant(np.broadcast_to(value, shape))


def arange(net: Network, call: Call) -> str:
    """Range of constants."""
    names = ("start", "limit", "delta")
    start, limit, delta = (net.scalar_of(call.input(i), name) for i, name in enumerate(names))
    if delta == 0:
        raise InvalidModel("Range with a step of 0")
    count = max(math.ceil((limit.item() - start.item()) / delta.item()), 0)
    return net.constant((start + np.arange(count) * delta).astype(start.dtype).reshape(-1))


def shape(net: Network, call: Call) -> str:
    """The shape of a value, from ``start`` to ``end`` (opset 15)."""
    sizes = net.shape(call.input(0))
    end = call.attributes.get("end")
    return net.constant(np.asarray(sizes[call.integer("start", 0) : end], np.int64))


def size(net: Network, call: Call) -> str:
    """The number of elements of a value."""
    return net.constant(np.asarray(net.types[call.input(0)].elements, np.int64))


def eye_like(net: Network, call: Call) -> str:
    """A matrix with ones on a diagonal."""
    x = call.input(0)
    if net.rank(x) != 2:
        raise InvalidModel(f"EyeLike needs a matrix, got {net.types[x]}")
    to = call.attributes.get("dtype")
    dtype = element_type(int(to), "the result") if to is not None else net.dtype(x)
    return net.constant(np.eye(net.shape(x)[0], net.shape(x)[1], call.integer("k", 0)).astype(dtype.numpy))


def one_hot(net: Network, call: Call) -> str:
    """OneHot with a constant depth."""
    indices = call.input(0)
    depth = int(net.scalar_of(call.input(1), "depth"))
    axis = call.integer("axis", -1)
    rank = net.rank(indices) + 1
    if not -rank <= axis < rank:
        raise InvalidModel(f"axis {axis} is not within {rank} axes")
    return one_hot_of(net, indices, depth, call.input(2), axis % rank)


def one_hot_of(net: Network, indices: str, depth: int, values: str, axis: int) -> str:
    """``values[1]`` where the new ``axis`` of ``depth`` elements meets the index, ``values[0]`` elsewhere."""
    if net.dtype(indices) != DType.INT64:
        indices = net.add(Cast(DType.INT64), indices)
    before, after = net.shape(indices)[:axis], net.shape(indices)[axis:]
    column = net.add(Reshape((*before, 1, *after)), indices)
    numbers = np.arange(depth, dtype=np.int64).reshape(depth, *[1] * len(after))
    hit = net.pointwise("equal", column, net.constant(numbers))
    # A negative index counts from the end; one beyond the depth on either side hits nothing.
    hit = net.pointwise("or", hit, net.pointwise("equal", column, net.constant(numbers - depth)))
    off, on = (net.add(Gather(0), values, net.constant(np.asarray(i, np.int64))) for i in (0, 1))
    return net.add(Where(), hit, on, off)


def non_zero(net: Network, call: Call) -> str:
    """Coordinates of the non-zero elements of a constant."""
    array = net.constant_of(call.input(0), "the input")
    return net.constant(np.asarray(np.nonzero(np.atleast_1d(array)), np.int64))


GENERATION: Mapping[str, Convert] = MappingProxyType(
    {
        "Constant": constant,
        "ConstantOfShape": constant_of_shape,
        "EyeLike": eye_like,
        "NonZero": non_zero,
        "OneHot": one_hot,
        "Range": arange,
        "Shape": shape,
        "Size": size,
    }
)
