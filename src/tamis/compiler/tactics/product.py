"""Layers that are one matrix product with a constant weight: linear layers, and 1x1 convolutions as such."""

from __future__ import annotations

from math import prod

from tamis.compiler.config import BuildConfig
from tamis.compiler.ir.ops import Conv, Linear
from tamis.compiler.tactics.base import Layer
from tamis.formats.dtype import DType


def refuses_product(layer: Layer) -> str | None:
    """Why a layer is not ``y[rows, n] = x[rows, k] w[n, k]^T + bias`` with a constant weight and bias; or None."""
    op = layer.op
    if not isinstance(op, Conv | Linear):
        return f"{type(op).__name__} is not a linear layer"
    reason = refuses_weights(layer)
    if reason is not None:
        return reason
    if isinstance(op, Conv):
        size = layer.type(1).shape[2:]
        if size != (1, 1):
            return f"a {'x'.join(map(str, size))} convolution is not a matrix product"
        if set(op.strides) != {1} or set(op.pads) != {0} or op.groups != 1:
            return "a strided, padded or grouped 1x1 convolution is not a matrix product"
    if layer.type(0).dtype != DType.FLOAT32:
        return f"the input is {layer.type(0).dtype}, not floating point"
    return None


def refuses_weights(layer: Layer) -> str | None:
    """Why the weight and the bias of a convolution or a linear layer are not constants; None when they are."""
    if layer.constant(1) is None or (layer.op.bias and layer.constant(2) is None):
        return "the weight or the bias is computed at run time"
    return None


def refuses_two_of_four(layer: Layer, config: BuildConfig) -> str | None:
    """Why a layer may not run in 2:4: the user does not want it, or the weight is not; None when it may."""
    if config.sparsity == "off":
        return "sparsity is off"
    if not layer.eligible:
        return layer.note.reason if layer.note and layer.note.reason else "the weight is not 2:4"
    return None


def rows_of(layer: Layer) -> int:
    """Rows of the matrix product: pixels of all images, or rows of a linear layer's input."""
    return layer.type(0).elements // prod(layer.type(1).shape[1:])
