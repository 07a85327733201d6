"""Pointwise programs as ONNX nodes, chosen so that OpenVINO recognises and fuses them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tamis.compiler.ir.graph import Node
from tamis.compiler.ir.ops import BOOLEAN_KINDS, Pointwise, Program
from tamis.compiler.tactics.lowering_writer import Writer
from tamis.formats.dtype import DType

# Kinds that are one ONNX operator, with the names of their parameters.
_UNARY: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "abs": ("Abs", ()),
    "acos": ("Acos", ()),
    "acosh": ("Acosh", ()),
    "asin": ("Asin", ()),
    "asinh": ("Asinh", ()),
    "atan": ("Atan", ()),
    "atanh": ("Atanh", ()),
    "ceil": ("Ceil", ()),
    "celu": ("Celu", ("alpha",)),
    "cos": ("Cos", ()),
    "cosh": ("Cosh", ()),
    "elu": ("Elu", ("alpha",)),
    "erf": ("Erf", ()),
    "exp": ("Exp", ()),
    "floor": ("Floor", ()),
    "hardsigmoid": ("HardSigmoid", ("alpha", "beta")),
    "hardswish": ("HardSwish", ()),
    "identity": ("Identity", ()),
    "isinf": ("IsInf", ()),
    "isnan": ("IsNaN", ()),
    "leaky_relu": ("LeakyRelu", ("alpha",)),
    "log": ("Log", ()),
    "mish": ("Mish", ()),
    "neg": ("Neg", ()),
    "not": ("Not", ()),
    "reciprocal": ("Reciprocal", ()),
    "relu": ("Relu", ()),
    "round": ("Round", ()),
    "selu": ("Selu", ("alpha", "gamma")),
    "sigmoid": ("Sigmoid", ()),
    "sign": ("Sign", ()),
    "sin": ("Sin", ()),
    "sinh": ("Sinh", ()),
    "softplus": ("Softplus", ()),
    "softsign": ("Softsign", ()),
    "sqrt": ("Sqrt", ()),
    "tan": ("Tan", ()),
    "tanh": ("Tanh", ()),
    "thresholded_relu": ("ThresholdedRelu", ("alpha",)),
}
_BINARY: Mapping[str, str] = {
    "add": "Add",
    "and": "And",
    "div": "Div",
    "equal": "Equal",
    "greater": "Greater",
    "greater_equal": "GreaterOrEqual",
    "less": "Less",
    "less_equal": "LessOrEqual",
    "max": "Max",
    "min": "Min",
    "mul": "Mul",
    "or": "Or",
    "pow": "Pow",
    "prelu": "PRelu",
    "sub": "Sub",
    "xor": "Xor",
}


def _clip(writer: Writer, x: str, params: Sequence[float], dtype: DType, out: str | None) -> str:
    low, high = (*params, math.inf)[:2] if params else (-math.inf, math.inf)
    bounds = ["", ""]
    if dtype.is_float:
        limits: tuple[float, float] = (-math.inf, math.inf)
    else:
        info = np.iinfo(dtype.numpy)
        limits = (info.min, info.max)
        low, high = max(low, limits[0]), min(high, limits[1])
        low, high = math.ceil(low), math.floor(high)
    if low > limits[0]:
        bounds[0] = writer.constant(np.array(low, dtype.numpy))
    if high < limits[1]:
        bounds[1] = writer.constant(np.array(high, dtype.numpy))
    inputs = [x, *bounds] if bounds[1] else [x, bounds[0]] if bounds[0] else [x]
    return writer.add("Clip" if len(inputs) > 1 else "Identity", inputs, out)


def _silu(writer: Writer, x: str, params: Sequence[float], dtype: DType, out: str | None) -> str:
    return writer.add("Mul", [x, writer.add("Sigmoid", [x])], out)


def _gelu(writer: Writer, x: str, params: Sequence[float], dtype: DType, out: str | None) -> str:
    return writer.add("Gelu", [x], out)


def _gelu_tanh(writer: Writer, x: str, params: Sequence[float], dtype: DType, out: str | None) -> str:
    return writer.add("Gelu", [x], out, approximate="tanh")


_COMPOSED: Mapping[str, Callable[[Writer, str, Sequence[float], DType, str | None], str]] = {
    "clip": _clip,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "silu": _silu,
}


def lower_program(writer: Writer, program: Program, node: Node, value: str, dtype: DType) -> None:
    """A node's program on ``value`` of type ``dtype``; its result is the node's first output."""
    inputs, output = node.inputs, node.output
    if not program:
        writer.add("Identity", [value], output)
    for index, step in enumerate(program):
        out = output if index == len(program) - 1 else None
        if step.operand is None:
            value = _unary(writer, step, value, dtype, out)
        else:
            operand = inputs[step.operand]
            arguments = (operand, value) if step.swap else (value, operand)
            value = _binary(writer, step, arguments, dtype, out)
            if step.swap and step.kind == "pow":
                dtype = writer.dtype(operand)
        if step.kind in BOOLEAN_KINDS:
            dtype = DType.BOOL


def _unary(writer: Writer, step: Pointwise, value: str, dtype: DType, out: str | None) -> str:
    if step.kind in _COMPOSED:
        return _COMPOSED[step.kind](writer, value, step.params, dtype, out)
    kind, names = _UNARY[step.kind]
    return writer.add(kind, [value], out, **dict(zip(names, step.params, strict=False)))


def _binary(writer: Writer, step: Pointwise, arguments: Sequence[str], dtype: DType, out: str | None) -> str:
    first, second = arguments
    if step.kind == "fmod":
        return writer.add("Mod", [first, second], out, fmod=1)
    if step.kind == "mod":
        if not dtype.is_float:
            return writer.add("Mod", [first, second], out)
        # ONNX has the mathematical remainder for integers only.
        quotient = writer.add("Floor", [writer.add("Div", [first, second])])
        return writer.add("Sub", [first, writer.add("Mul", [quotient, second])], out)
    return writer.add(_BINARY[step.kind], [first, second], out)
