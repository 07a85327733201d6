"""Fused operators that ONNX Runtime's optimiser writes into models (domain com.microsoft)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from tamis.compiler.importer.call import Call
from tamis.compiler.importer.convert import Convert
from tamis.compiler.importer.convolution import conv
from tamis.compiler.importer.linear import gemm, product
from tamis.compiler.importer.network import Network
from tamis.compiler.importer.quantization import dequantize_linear, quantize_linear
from tamis.compiler.ir.ops import LayerNorm, Transpose
from tamis.errors import UnsupportedModel

# Activation of a fused operator: pointwise kind and how many of its parameters the attribute may give.
ACTIVATIONS = {
    "Clip": "clip",
    "Elu": "elu",
    "HardSigmoid": "hardsigmoid",
    "LeakyRelu": "leaky_relu",
    "Relu": "relu",
    "Sigmoid": "sigmoid",
    "Tanh": "tanh",
}
# com.microsoft operators that mean what ONNX's of that name mean in this opset.
AS_ONNX_OPSET = 21


def _activated(net: Network, call: Call, value: str, params: tuple[float, ...]) -> str:
    name = call.text("activation", "")
    if not name:
        return value
    if name not in ACTIVATIONS:
        raise UnsupportedModel(f"{call.op_type} with activation '{name}'")
    return net.pointwise(ACTIVATIONS[name], value, params=params)


def fused_conv(net: Network, call: Call) -> str:
    """Convolution, perhaps plus a residual, then an activation."""
    plain = replace(call, op_type="Conv", domain="", opset=AS_ONNX_OPSET, inputs=call.inputs[:3])
    result, residual = conv(net, plain), call.optional(3)
    if residual is not None:
        result = net.pointwise("add", result, residual)
    return _activated(net, call, result, call.numbers("activation_params") or ())


def fused_gemm(net: Network, call: Call) -> str:
    """Gemm, then an activation."""
    names = {"LeakyRelu": ("activation_alpha",), "Elu": ("activation_alpha",)}
    params = tuple(call.number(name, 0.01) for name in names.get(call.text("activation", ""), ()))
    return _activated(net, call, gemm(net, call), params)


def fused_matmul(net: Network, call: Call) -> str:
    """Matrix product of perhaps transposed factors, times alpha."""
    if call.integer("transBatchA", 0) or call.integer("transBatchB", 0):
        raise UnsupportedModel("FusedMatMul with transposed batch axes")
    a, b = call.input(0), call.input(1)
    a = _swapped(net, a) if call.integer("transA", 0) else a
    b = _swapped(net, b) if call.integer("transB", 0) else b
    result, alpha = product(net, a, b), call.number("alpha", 1.0)
    return result if alpha == 1 else net.pointwise("mul", result, net.scalar(alpha, result))


def _swapped(net: Network, value: str) -> str:
    rank = net.rank(value)
    if rank < 2:
        return value
    return net.add(Transpose((*range(rank - 2), rank - 1, rank - 2)), value)


def gelu(net: Network, call: Call) -> str:
    """Gelu and its variants, with a bias where one is given."""
    x, bias = call.input(0), call.optional(1)
    x = net.pointwise("add", x, bias) if bias is not None else x
    return net.pointwise("gelu_tanh" if call.op_type == "FastGelu" else "gelu", x)


def quick_gelu(net: Network, call: Call) -> str:
    """``x * sigmoid(alpha x)``."""
    x, alpha = call.input(0), call.number("alpha", 1.702)
    if alpha == 1:
        return net.pointwise("silu", x)
    return net.pointwise("mul", x, net.pointwise("sigmoid", net.pointwise("mul", x, net.scalar(alpha, x))))


def simplified_layer_normalization(net: Network, call: Call) -> str:
    """Root mean square normalisation."""
    x = call.input(0)
    axis = net.axis(x, call.integer("axis", -1)) - net.rank(x)
    op = LayerNorm(axis, call.number("epsilon", 1e-5), scale=True, bias=False, rms=True)
    return net.add(op, x, call.input(1))


def skip_layer_normalization(net: Network, call: Call) -> tuple[str, ...]:
    """Normalisation of a sum; the sum is the fourth output."""
    rms = call.op_type == "SkipSimplifiedLayerNormalization"
    x, skip, scale = (call.input(index) for index in range(3))
    shift, bias = (None, call.optional(3)) if rms else (call.optional(3), call.optional(4))
    if call.wants(1) or call.wants(2):
        raise UnsupportedModel(f"{call.op_type} with its statistics outputs")
    x = net.pointwise("add", x, bias) if bias is not None else x
    parameters = [value for value in (scale, shift) if value is not None]
    op = LayerNorm(-1, call.number("epsilon", 1e-12), bias=shift is not None, residual=True, rms=rms)
    if net.shape(skip) != net.shape(x):
        total = net.pointwise("add", x, skip)
        return net.add(replace(op, residual=False), total, *parameters), "", "", total
    result, total = net.add_all(op, x, *parameters, skip)
    return result, "", "", total


SIMPLIFIED: Mapping[str, Convert] = MappingProxyType({"SimplifiedLayerNormalization": simplified_layer_normalization})
MICROSOFT: Mapping[str, Convert] = MappingProxyType(
    {
        "BiasGelu": gelu,
        "DequantizeLinear": dequantize_linear,
        "FastGelu": gelu,
        "FusedConv": fused_conv,
        "FusedGemm": fused_gemm,
        "FusedMatMul": fused_matmul,
        "Gelu": gelu,
        "QuantizeLinear": quantize_linear,
        "QuickGelu": quick_gelu,
        "SkipLayerNormalization": skip_layer_normalization,
        "SkipSimplifiedLayerNormalization": skip_layer_normalization,
        **SIMPLIFIED,
    }
)
