"""NumPy meaning of the pointwise kinds and of pointwise programs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from tamis.compiler.ir.evaluate_erf import erf
from tamis.compiler.ir.ops import Program

Unary = Callable[..., np.ndarray]
Binary = Callable[[np.ndarray, np.ndarray], np.ndarray]

SELU_ALPHA = 1.67326319217681884765625
SELU_GAMMA = 1.05070102214813232421875


def apply_program(program: Program, value: np.ndarray, inputs: Sequence[np.ndarray]) -> np.ndarray:
    """The running value after every step of ``program``; operands are taken from ``inputs`` by index."""
    for step in program:
        if step.operand is None:
            value = np.asarray(UNARY[step.kind](value, *step.params))
        else:
            operand = inputs[step.operand]
            value = np.asarray(BINARY[step.kind](*((operand, value) if step.swap else (value, operand))))
    return value


def sigmoid(x: np.ndarray) -> np.ndarray:
    """``1 / (1 + exp(-x))`` without overflow."""
    small = np.exp(-np.abs(x))
    one = x.dtype.type(1)
    return np.asarray(np.where(x >= 0, one, small) / (one + small))


def softplus(x: np.ndarray) -> np.ndarray:
    """``log(1 + exp(x))`` without overflow."""
    return np.asarray(np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))))


def _scalar(x: np.ndarray, value: float) -> Any:
    return x.dtype.type(value)


def _elu(x: np.ndarray, alpha: float = 1.0) -> np.ndarray:
    return np.where(x > 0, x, _scalar(x, alpha) * np.expm1(np.minimum(x, 0)))


def _selu(x: np.ndarray, alpha: float = SELU_ALPHA, gamma: float = SELU_GAMMA) -> np.ndarray:
    return np.asarray(_scalar(x, gamma) * _elu(x, alpha))


def _celu(x: np.ndarray, alpha: float = 1.0) -> np.ndarray:
    a = _scalar(x, alpha)
    return np.asarray(np.maximum(x, 0) + a * np.expm1(np.minimum(x, 0) / a))


def _clip(x: np.ndarray, low: float = -math.inf, high: float = math.inf) -> np.ndarray:
    if np.issubdtype(x.dtype, np.integer):
        limits = np.iinfo(x.dtype)
        # A float bound beyond the type's range is no bound; comparing as float first avoids overflow.
        bottom = limits.min if low <= limits.min else math.ceil(low)
        top = limits.max if high >= limits.max else math.floor(high)
        return np.asarray(np.minimum(np.maximum(x, _scalar(x, bottom)), _scalar(x, top)))
    return np.asarray(np.minimum(np.maximum(x, _scalar(x, low)), _scalar(x, high)))


def _gelu(x: np.ndarray) -> np.ndarray:
    return np.asarray(_scalar(x, 0.5) * x * (1 + erf(x * _scalar(x, math.sqrt(0.5)))))


def _gelu_tanh(x: np.ndarray) -> np.ndarray:
    inner = _scalar(x, math.sqrt(2 / math.pi)) * (x + _scalar(x, 0.044715) * x * x * x)
    return np.asarray(_scalar(x, 0.5) * x * (1 + np.tanh(inner)))


def _hardsigmoid(x: np.ndarray, alpha: float = 0.2, beta: float = 0.5) -> np.ndarray:
    return _clip(_scalar(x, alpha) * x + _scalar(x, beta), 0.0, 1.0)


def _leaky_relu(x: np.ndarray, alpha: float = 0.01) -> np.ndarray:
    return np.where(x < 0, _scalar(x, alpha) * x, x)


def _thresholded_relu(x: np.ndarray, alpha: float = 1.0) -> np.ndarray:
    return np.where(x <= alpha, _scalar(x, 0), x)


UNARY: Mapping[str, Unary] = MappingProxyType(
    {
        "abs": np.abs,
        "acos": np.arccos,
        "acosh": np.arccosh,
        "asin": np.arcsin,
        "asinh": np.arcsinh,
        "atan": np.arctan,
        "atanh": np.arctanh,
        "ceil": np.ceil,
        "celu": _celu,
        "clip": _clip,
        "cos": np.cos,
        "cosh": np.cosh,
        "elu": _elu,
        "erf": erf,
        "exp": np.exp,
        "floor": np.floor,
        "gelu": _gelu,
        "gelu_tanh": _gelu_tanh,
        "hardsigmoid": _hardsigmoid,
        "hardswish": lambda x: x * _hardsigmoid(x, 1 / 6, 0.5),
        "identity": lambda x: x,
        "isinf": np.isinf,
        "isnan": np.isnan,
        "leaky_relu": _leaky_relu,
        "log": np.log,
        "mish": lambda x: x * np.tanh(softplus(x)),
        "neg": np.negative,
        "not": np.logical_not,
        "reciprocal": lambda x: _scalar(x, 1) / x,
        "relu": lambda x: np.maximum(x, _scalar(x, 0)),
        "round": np.rint,
        "selu": _selu,
        "sigmoid": sigmoid,
        "sign": np.sign,
        "silu": lambda x: x * sigmoid(x),
        "sin": np.sin,
        "sinh": np.sinh,
        "softplus": softplus,
        "softsign": lambda x: x / (1 + np.abs(x)),
        "sqrt": np.sqrt,
        "tan": np.tan,
        "tanh": np.tanh,
        "thresholded_relu": _thresholded_relu,
    }
)


def _div(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if not np.issubdtype(a.dtype, np.integer):
        return np.asarray(a / b)
    # Integers truncate toward zero, as in C.
    quotient = a // b
    wrong = (a % b != 0) & ((a < 0) != (b < 0))
    return np.asarray(quotient + wrong).astype(a.dtype)


def _pow(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if np.issubdtype(a.dtype, np.integer):
        if np.issubdtype(b.dtype, np.integer) and (b >= 0).all():
            return np.asarray(np.power(a, b)).astype(a.dtype)
        return np.asarray(np.power(a.astype(np.float64), b)).astype(a.dtype)
    return np.asarray(np.power(a, b.astype(a.dtype) if np.issubdtype(b.dtype, np.integer) else b))


BINARY: Mapping[str, Binary] = MappingProxyType(
    {
        "add": np.add,
        "and": np.logical_and,
        "div": _div,
        "equal": np.equal,
        "fmod": np.fmod,
        "greater": np.greater,
        "greater_equal": np.greater_equal,
        "less": np.less,
        "less_equal": np.less_equal,
        "max": np.maximum,
        "min": np.minimum,
        "mod": np.mod,
        "mul": np.multiply,
        "or": np.logical_or,
        "pow": _pow,
        "prelu": lambda x, slope: np.where(x < 0, slope * x, x),
        "sub": np.subtract,
        "xor": np.logical_xor,
    }
)
