"""Quantisation. Weights that are quantised in the model become float32; Q/DQ of activations stay."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from tamis.compiler.importer.call import Call
from tamis.compiler.importer.convert import Convert
from tamis.compiler.importer.network import Network
from tamis.compiler.ir.ops import Dequantize, Expand, Quantize, Reshape
from tamis.errors import InvalidModel, UnsupportedModel
from tamis.formats.dtype import DType
from tamis.onnx_files.tensors import element_type

TARGETS = (DType.INT8, DType.UINT8, DType.INT16, DType.UINT16, DType.FLOAT8_E4M3)


def _axis(net: Network, x: str, scale: str, call: Call) -> int:
    """The axis of the scales; 0 where one scale serves all and the axis says nothing."""
    if net.types[scale].elements == 1 and net.rank(scale) <= 1:
        return 0
    return net.axis(x, call.integer("axis", 1))


def _like_scale(net: Network, zero: str, scale: str) -> str:
    """One zero point, whatever its rank, in the shape of the scale."""
    if net.shape(zero) == net.shape(scale) or net.types[zero].elements != 1:
        return zero
    return net.add(Expand(net.shape(scale)), net.add(Reshape(()), zero))


def quantize_linear(net: Network, call: Call) -> str:
    """QuantizeLinear to 8 or 16 bits."""
    x, scale, zero = call.input(0), call.input(1), call.optional(2)
    if call.integer("block_size", 0):
        raise UnsupportedModel("QuantizeLinear in blocks, on a value computed at run time")
    if zero is not None:
        if zero in net.narrow:
            raise UnsupportedModel(f"QuantizeLinear to {net.narrow[zero]}")
        to, zero = net.dtype(zero), _like_scale(net, zero, scale)
    else:
        number = call.integer("output_dtype", 0)
        to = element_type(number, "the quantised value") if number else DType.UINT8
        zero = net.constant(np.zeros(net.shape(scale), to.numpy))
    if to not in TARGETS:
        raise UnsupportedModel(f"QuantizeLinear to {to}")
    return net.add(Quantize(_axis(net, x, scale, call), to), x, scale, zero)


def dequantize_linear(net: Network, call: Call) -> str:
    """DequantizeLinear; that of a constant is a float32 constant in which zeros are exact."""
    x, scale, zero = call.input(0), call.input(1), call.optional(2)
    if zero is None:
        zero = net.constant(np.zeros(net.shape(scale), net.dtype(x).numpy))
    zero = _like_scale(net, zero, scale)
    block = call.integer("block_size", 0)
    if block and net.rank(scale) == net.rank(x):
        return _dequantize_blocks(net, call, (x, scale, zero), block)
    return net.add(Dequantize(_axis(net, x, scale, call)), x, scale, zero)


def _dequantize_blocks(net: Network, call: Call, values: tuple[str, str, str], block: int) -> str:
    names = ("the input of a DequantizeLinear in blocks", "its scale", "its zero point")
    x, scale, zero = (net.constant_of(value, name) for value, name in zip(values, names, strict=True))
    axis = net.axis(values[0], call.integer("axis", 1))
    scale, zero = (np.repeat(part, block, axis=axis) for part in (scale, zero))
    if scale.shape[axis] < x.shape[axis]:
        raise InvalidModel(f"the scale {net.types[values[1]]} covers only a part of {net.types[values[0]]}")
    cut = [slice(None)] * x.ndim
    cut[axis] = slice(0, x.shape[axis])
    wide = np.float32 if DType.of(x).is_float else np.int64
    difference = x.astype(wide) - zero[tuple(cut)].astype(wide)
    return net.constant(difference.astype(np.float32) * scale[tuple(cut)].astype(np.float32))


QUANTIZATION: Mapping[str, Convert] = MappingProxyType(
    {"DequantizeLinear": dequantize_linear, "QuantizeLinear": quantize_linear}
)
