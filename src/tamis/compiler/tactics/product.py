"""Layers that are one matrix product with a constant weight: linear layers, and 1x1 convolutions as such."""

from __future__ import annotations

from math import prod

from tamis.compiler.ir.ops import Conv, Linear
from tamis.compiler.tactics.base import Layer
from tamis.formats.dtype import DType


def refuses_product(layer: Layer) -> str | None:
    """Why a layer is not ``y[rows, n] = x[rows, k] w[n, k]^T + bias`` with a constant weight and bias; or None."""
    op = layer.op
    if not isinstance(op, Conv | Linear):
        return f"{type(op).__name__} is not a linear layer"
    weight = layer.constant(1)
    if weight is None or (op.bias and layer.constant(2) is None):
        return "the weight or the bias is computed at run time"
    if isinstance(op, Conv):
        if weight.ndim != 4 or weight.shape[2:] != (1, 1):
            return f"a {'x'.join(map(str, weight.shape[2:]))} convolution is not a matrix product"
        if set(op.strides) != {1} or set(op.pads) != {0} or op.groups != 1:
            return "a strided, padded or grouped 1x1 convolution is not a matrix product"
    if layer.type(0).dtype != DType.FLOAT32:
        return f"the input is {layer.type(0).dtype}, not floating point"
    return None


def rows_of(layer: Layer) -> int:
    """Rows of the matrix product: pixels of all images, or rows of a linear layer's input."""
    return layer.type(0).elements // prod(layer.type(1).shape[1:])
