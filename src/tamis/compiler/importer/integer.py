"""Operators on quantised values: each is dequantise, compute in float32, quantise again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from tamis.compiler.importer.call import Call
from tamis.compiler.importer.convert import Convert
from tamis.compiler.importer.convolution import conv
from tamis.compiler.importer.linear import product
from tamis.compiler.importer.network import Network
from tamis.compiler.ir.ops import Cast, Dequantize, Expand, Quantize, Reduce, Reshape
from tamis.formats.dtype import DType


def _zero_like(net: Network, zero: str, scale: str) -> str:
    if net.shape(zero) == net.shape(scale):
        return zero
    return net.add(Expand(net.shape(scale)), net.add(Reshape(()), zero))


def _dequantized(net: Network, x: str, scale: str, zero: str, axis: int) -> str:
    return net.add(Dequantize(axis), x, scale, _zero_like(net, zero, scale))


def _quantized(net: Network, x: str, scale: str, zero: str) -> str:
    return net.add(Quantize(0, net.dtype(zero)), x, scale, _zero_like(net, zero, scale))


def qlinear_conv(net: Network, call: Call) -> str:
    """Convolution of quantised values; the int32 bias has the scale of the products."""
    x = _dequantized(net, call.input(0), call.input(1), call.input(2), 1)
    weight = _dequantized(net, call.input(3), call.input(4), call.input(5), 0)
    inputs = [x, weight]
    bias = call.optional(8)
    if bias is not None:
        scale = net.pointwise("mul", call.input(4), call.input(1))
        inputs.append(net.pointwise("mul", net.add(Cast(DType.FLOAT32), bias), scale))
    result = conv(net, replace(call, op_type="Conv", inputs=tuple(inputs)))
    return _quantized(net, result, call.input(6), call.input(7))


def qlinear_matmul(net: Network, call: Call) -> str:
    """Matrix product of quantised values."""
    a = _dequantized(net, call.input(0), call.input(1), call.input(2), net.rank(call.input(0)) - 2)
    b = _dequantized(net, call.input(3), call.input(4), call.input(5), net.rank(call.input(3)) - 1)
    return _quantized(net, product(net, a, b), call.input(6), call.input(7))


def _centred(net: Network, x: str, zero: str | None, axis: int) -> str:
    """An integer value as float32 with its zero point taken off."""
    value = net.add(Cast(DType.FLOAT32), x)
    if zero is None:
        return value
    shape = [1] * net.rank(x)
    if net.types[zero].elements > 1:
        shape[axis] = net.types[zero].elements
    zero = net.add(Reshape(tuple(shape)), net.add(Cast(DType.FLOAT32), zero))
    return net.pointwise("sub", value, zero)


def _as_int32(net: Network, x: str) -> str:
    return net.add(Cast(DType.INT32), net.pointwise("round", x))


def matmul_integer(net: Network, call: Call) -> str:
    """Integer matrix product, exact while the sums stay below 2^24."""
    a, b = call.input(0), call.input(1)
    left = _centred(net, a, call.optional(2), net.rank(a) - 2)
    return _as_int32(net, product(net, left, _centred(net, b, call.optional(3), net.rank(b) - 1)))


def conv_integer(net: Network, call: Call) -> str:
    """Integer convolution, exact while the sums stay below 2^24."""
    x = _centred(net, call.input(0), call.optional(2), 1)
    weight = _centred(net, call.input(1), call.optional(3), 0)
    return _as_int32(net, conv(net, replace(call, op_type="Conv", inputs=(x, weight))))


def dynamic_quantize_linear(net: Network, call: Call) -> tuple[str, str, str]:
    """Quantisation to uint8 by the range of the value itself."""
    x = call.input(0)
    axes, zero = tuple(range(net.rank(x))), net.scalar(0, x)
    high = net.pointwise("max", net.add(Reduce("max", axes, False), x), zero)
    low = net.pointwise("min", net.add(Reduce("min", axes, False), x), zero)
    scale = net.pointwise("div", net.pointwise("sub", high, low), net.scalar(255, x))
    shift = net.pointwise("clip", net.pointwise("neg", net.pointwise("div", low, scale)), params=(0.0, 255.0))
    point = net.add(Cast(DType.UINT8), net.pointwise("round", shift))
    return net.add(Quantize(0, DType.UINT8), x, scale, point), scale, point


INTEGER: Mapping[str, Convert] = MappingProxyType(
    {
        "ConvInteger": conv_integer,
        "DynamicQuantizeLinear": dynamic_quantize_linear,
        "MatMulInteger": matmul_integer,
        "QLinearConv": qlinear_conv,
        "QLinearMatMul": qlinear_matmul,
    }
)
