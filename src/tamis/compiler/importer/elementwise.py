"""Pointwise operators: activations, arithmetic, comparisons, logic, casts, selection."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from tamis.compiler.importer.call import Call
from tamis.compiler.importer.convert import Convert
from tamis.compiler.importer.network import Network
from tamis.compiler.ir.ops import Cast, Where
from tamis.errors import UnsupportedModel
from tamis.formats.dtype import DType
from tamis.onnx_files.tensors import element_type

# ONNX operators that are one pointwise kind without parameters.
UNARY = {
    "Abs": "abs", "Acos": "acos", "Acosh": "acosh", "Asin": "asin", "Asinh": "asinh", "Atan": "atan",
    "Atanh": "atanh", "Ceil": "ceil", "Cos": "cos", "Cosh": "cosh", "Erf": "erf", "Exp": "exp",
    "Floor": "floor", "HardSwish": "hardswish", "IsNaN": "isnan", "Log": "log", "Mish": "mish",
    "Neg": "neg", "Not": "not", "Reciprocal": "reciprocal", "Relu": "relu", "Round": "round",
    "Sigmoid": "sigmoid", "Sign": "sign", "Sin": "sin", "Sinh": "sinh", "Softplus": "softplus",
    "Softsign": "softsign", "Sqrt": "sqrt", "Tan": "tan", "Tanh": "tanh",
}  # fmt: skip
# ... with parameters, each an attribute with its default.
PARAMETERISED: dict[str, tuple[str, tuple[tuple[str, float], ...]]] = {
    "Celu": ("celu", (("alpha", 1.0),)),
    "Elu": ("elu", (("alpha", 1.0),)),
    "HardSigmoid": ("hardsigmoid", (("alpha", 0.2), ("beta", 0.5))),
    "LeakyRelu": ("leaky_relu", (("alpha", 0.01),)),
    "Selu": ("selu", (("alpha", 1.67326319217681884765625), ("gamma", 1.05070102214813232421875))),
    "ThresholdedRelu": ("thresholded_relu", (("alpha", 1.0),)),
}
BINARY = {
    "Add": "add", "And": "and", "Div": "div", "Equal": "equal", "Greater": "greater",
    "GreaterOrEqual": "greater_equal", "Less": "less", "LessOrEqual": "less_equal", "Mul": "mul", "Or": "or",
    "PRelu": "prelu", "Pow": "pow", "Sub": "sub", "Xor": "xor",
}  # fmt: skip
VARIADIC = {"Max": "max", "Min": "min", "Sum": "add"}


def unary(net: Network, call: Call) -> str:
    """An operator that is one pointwise kind."""
    return net.pointwise(UNARY[call.op_type], call.input(0))


def parameterised(net: Network, call: Call) -> str:
    """An activation with parameters."""
    kind, attributes = PARAMETERISED[call.op_type]
    params = tuple(call.number(name, default) for name, default in attributes)
    return net.pointwise(kind, call.input(0), params=params)


def binary(net: Network, call: Call) -> str:
    """Arithmetic, comparison or logic on two values."""
    return net.pointwise(BINARY[call.op_type], call.input(0), call.input(1))


def variadic(net: Network, call: Call) -> str:
    """Max, Min or Sum of any number of values."""
    result = call.input(0)
    for index in range(1, len(call.inputs)):
        result = net.pointwise(VARIADIC[call.op_type], result, call.input(index))
    return result


def mean(net: Network, call: Call) -> str:
    """The mean of any number of values, element by element."""
    total = call.input(0)
    for index in range(1, len(call.inputs)):
        total = net.pointwise("add", total, call.input(index))
    return net.pointwise("div", total, net.scalar(len(call.inputs), total)) if len(call.inputs) > 1 else total


def mod(net: Network, call: Call) -> str:
    """Remainder, with the sign of the divisor or (fmod) of the dividend."""
    return net.pointwise("fmod" if call.integer("fmod", 0) else "mod", call.input(0), call.input(1))


def gelu(net: Network, call: Call) -> str:
    """Gelu, exact or by tanh."""
    approximate = call.text("approximate", "none")
    return net.pointwise("gelu_tanh" if approximate == "tanh" else "gelu", call.input(0))


def swish(net: Network, call: Call) -> str:
    """``x * sigmoid(alpha x)`` (opset 24)."""
    x, alpha = call.input(0), call.number("alpha", 1.0)
    if alpha == 1.0:
        return net.pointwise("silu", x)
    gate = net.pointwise("sigmoid", net.pointwise("mul", x, net.scalar(alpha, x)))
    return net.pointwise("mul", x, gate)


def clip(net: Network, call: Call) -> str:
    """Clip by attributes (before opset 11) or by inputs."""
    x = call.input(0)
    if call.opset < 11:
        low, high = call.number("min", -math.inf), call.number("max", math.inf)
        return net.pointwise("clip", x, params=(low, high))
    bounds = [call.optional(1), call.optional(2)]
    constant = all(bound is None or net.known(bound) is not None for bound in bounds)
    known = [net.scalar_of(bound, "a bound") if bound and constant else None for bound in bounds]
    # A parameter is a double: integers beyond 2^53 stay operands.
    exact = all(array is None or array.dtype.kind == "f" or abs(int(array.item())) < 2**53 for array in known)
    if constant and exact:
        low, high = (
            limit if array is None else float(array.item())
            for array, limit in zip(known, (-math.inf, math.inf), strict=True)
        )
        return net.pointwise("clip", x, params=(low, high))
    for bound, kind in zip(bounds, ("max", "min"), strict=True):
        x = net.pointwise(kind, x, bound) if bound is not None else x
    return x


def shrink(net: Network, call: Call) -> str:
    """Shrink: values within ``lambd`` of zero vanish, others move toward zero by ``bias``."""
    x, bias, lambd = call.input(0), call.number("bias", 0.0), call.number("lambd", 0.5)
    zero = net.scalar(0, x)
    above = net.pointwise("greater", x, net.scalar(lambd, x))
    below = net.pointwise("less", x, net.scalar(-lambd, x))
    lower = net.add(Where(), below, net.pointwise("add", x, net.scalar(bias, x)), zero)
    return net.add(Where(), above, net.pointwise("sub", x, net.scalar(bias, x)), lower)


def is_inf(net: Network, call: Call) -> str:
    """Infinity of either sign or of one."""
    x = call.input(0)
    negative, positive = call.integer("detect_negative", 1), call.integer("detect_positive", 1)
    if negative and positive:
        return net.pointwise("isinf", x)
    if not negative and not positive:
        never = net.pointwise("isinf", x)
        return net.pointwise("and", never, net.constant(np.asarray(False)))
    return net.pointwise("equal", x, net.scalar(math.inf if positive else -math.inf, x))


def identity(net: Network, call: Call) -> str:
    """Operators that do nothing at inference."""
    return call.input(0)


def dropout(net: Network, call: Call) -> tuple[str, ...]:
    """Dropout at inference: nothing, and a mask of ones."""
    x = call.input(0)
    ratio = call.optional(1)
    training = call.optional(2)
    trains = training is not None and bool(np.any(net.constant_of(training, "training_mode")))
    if trains and (ratio is None or float(net.scalar_of(ratio, "ratio")) != 0):
        raise UnsupportedModel("Dropout is in training mode; export the model in evaluation mode")
    if not call.wants(1):
        return (x,)
    dtype = np.bool_ if call.opset >= 10 else net.dtype(x).numpy
    return x, net.constant(np.broadcast_to(np.ones((), dtype), net.shape(x)))


def cast_to(net: Network, x: str, to: DType) -> str:
    """Conversion of a value; between floating-point types of run-time values it is nothing."""
    source = net.types[x].dtype
    if source == to:
        return x
    if net.known(x) is not None:
        return net.add(Cast(to), x)
    wide = DType.FLOAT32 if to.is_float and to != DType.FLOAT8_E4M3 else to
    return x if net.dtype(x) == wide else net.add(Cast(wide), x)


def cast(net: Network, call: Call) -> str:
    """Cast."""
    to = element_type(call.required_integer("to"), "the result")
    _check_saturates(call, to)
    return cast_to(net, call.input(0), to)


def cast_like(net: Network, call: Call) -> str:
    """Cast to the type of another value."""
    to = net.types[call.input(1)].dtype
    _check_saturates(call, to)
    return cast_to(net, call.input(0), to)


def _check_saturates(call: Call, to: DType) -> None:
    if to == DType.FLOAT8_E4M3 and not call.integer("saturate", 1):
        raise UnsupportedModel(f"{call.op_type} to {to} without saturation")


def where(net: Network, call: Call) -> str:
    """Selection by a boolean condition; a constant uniform condition selects at once."""
    condition, a, b = call.input(0), call.input(1), call.input(2)
    known = net.known(condition)
    shape = np.broadcast_shapes(net.shape(condition), net.shape(a), net.shape(b))
    if known is not None and known.size and (known.all() or not known.any()):
        chosen = a if known.all() else b
        if net.shape(chosen) == shape:
            return chosen
    return net.add(Where(), condition, a, b)


ELEMENTWISE: Mapping[str, Convert] = MappingProxyType(
    {
        **dict.fromkeys(UNARY, unary),
        **dict.fromkeys(PARAMETERISED, parameterised),
        **dict.fromkeys(BINARY, binary),
        **dict.fromkeys(VARIADIC, variadic),
        "Cast": cast,
        "CastLike": cast_like,
        "Clip": clip,
        "Dropout": dropout,
        "Gelu": gelu,
        "Identity": identity,
        "IsInf": is_inf,
        "Mean": mean,
        "Mod": mod,
        "Shrink": shrink,
        "Swish": swish,
        "Where": where,
    }
)
