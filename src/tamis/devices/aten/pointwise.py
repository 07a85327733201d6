"""Pointwise programs on the CPU: each step one torch call, in place wherever shape and type allow.

``KINDS`` gives for each kind a function ``(value[, operand], out)``; ``out`` is None for a fresh result, and
may be the value itself. The meaning of the kinds is that of ``tamis.compiler.ir``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tamis.devices.aten.binding import (
    Argument,
    Binding,
    Prepared,
    broadcast,
    constant_argument,
    constant_as,
)
from tamis.errors import DeviceError

nn: Any = torch._C._nn
Apply = Callable[..., torch.Tensor]

SELU_ALPHA = 1.67326319217681884765625
SELU_GAMMA = 1.05070102214813232421875
_BOOLEAN = frozenset(
    ("and", "equal", "greater", "greater_equal", "isinf", "isnan", "less", "less_equal", "not", "or", "xor")
)


@dataclass(frozen=True)
class PointwiseStep:
    """One step of a program; see ``tamis.compiler.ir.ops.Pointwise``."""

    kind: str
    params: tuple[float, ...]
    operand: int | None
    swap: bool


def program_of(encoded: Sequence[Mapping[str, Any]]) -> tuple[PointwiseStep, ...]:
    """The steps of a program stored as JSON."""
    return tuple(
        PointwiseStep(
            step["kind"],
            tuple(float(value) for value in step.get("params") or ()),
            step.get("operand"),
            bool(step.get("swap", False)),
        )
        for step in encoded
    )


def _clip(dtype: torch.dtype, low: float = -math.inf, high: float = math.inf) -> Apply:
    least: float | None = None if low == -math.inf else low
    most: float | None = None if high == math.inf else high
    if not dtype.is_floating_point:
        limits = torch.iinfo(dtype)
        least = None if low <= limits.min else math.ceil(low)
        most = None if high >= limits.max else math.floor(high)
    if least is None and most is None:
        return _identity(dtype)
    return lambda x, out=None: torch.clamp(x, least, most, out=out)


def _identity(dtype: torch.dtype) -> Apply:
    def apply(x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        if out is x:
            return x
        return x.clone() if out is None else out.copy_(x)

    return apply


def _hardsigmoid(dtype: torch.dtype, alpha: float = 0.2, beta: float = 0.5) -> Apply:
    if abs(alpha - 1 / 6) < 1e-7 and beta == 0.5:
        return lambda x, out=None: nn.hardsigmoid(x, out=out)

    def apply(x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        return torch.mul(x, alpha, out=out).add_(beta).clamp_(0.0, 1.0)

    return apply


def _selu(dtype: torch.dtype, alpha: float = SELU_ALPHA, gamma: float = SELU_GAMMA) -> Apply:
    return lambda x, out=None: nn.elu(x, alpha, gamma, out=out)


def _celu(dtype: torch.dtype, alpha: float = 1.0) -> Apply:
    return lambda x, out=None: nn.elu(x, alpha, 1.0, 1.0 / alpha, out=out)


def _softsign(dtype: torch.dtype) -> Apply:
    return lambda x, out=None: torch.div(x, x.abs().add_(1), out=out)


def _thresholded_relu(dtype: torch.dtype, alpha: float = 1.0) -> Apply:
    return lambda x, out=None: torch.threshold(x, alpha, 0.0, out=out)


def _plain(function: Callable[..., Any]) -> Callable[[torch.dtype], Apply]:
    """A torch function that itself takes ``out`` and no parameters."""

    def make(dtype: torch.dtype) -> Apply:
        return function

    return make


def _relu(dtype: torch.dtype) -> Apply:
    def apply(x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        if out is None:
            return torch.relu(x)
        return torch.relu_(x) if out is x else torch.clamp_min(x, 0, out=out)

    return apply


def _isinf(dtype: torch.dtype) -> Apply:
    def apply(x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        return torch.isinf(x) if out is None else out.copy_(torch.isinf(x))

    return apply


UNARY: Mapping[str, Callable[..., Apply]] = {
    "abs": _plain(torch.abs),
    "acos": _plain(torch.acos),
    "acosh": _plain(torch.acosh),
    "asin": _plain(torch.asin),
    "asinh": _plain(torch.asinh),
    "atan": _plain(torch.atan),
    "atanh": _plain(torch.atanh),
    "ceil": _plain(torch.ceil),
    "celu": _celu,
    "clip": _clip,
    "cos": _plain(torch.cos),
    "cosh": _plain(torch.cosh),
    "elu": lambda dtype, alpha=1.0: lambda x, out=None: nn.elu(x, alpha, out=out),
    "erf": _plain(torch.erf),
    "exp": _plain(torch.exp),
    "floor": _plain(torch.floor),
    "gelu": _plain(nn.gelu),
    "gelu_tanh": lambda dtype: lambda x, out=None: nn.gelu(x, approximate="tanh", out=out),
    "hardsigmoid": _hardsigmoid,
    "hardswish": _plain(nn.hardswish),
    "identity": _identity,
    "isinf": _isinf,
    "isnan": lambda dtype: lambda x, out=None: torch.ne(x, x, out=out),
    "leaky_relu": lambda dtype, alpha=0.01: lambda x, out=None: nn.leaky_relu(x, alpha, out=out),
    "log": _plain(torch.log),
    "mish": _plain(nn.mish),
    "neg": _plain(torch.neg),
    "not": _plain(torch.logical_not),
    "reciprocal": _plain(torch.reciprocal),
    "relu": _relu,
    "round": _plain(torch.round),
    "selu": _selu,
    "sigmoid": _plain(torch.sigmoid),
    "sign": lambda dtype: lambda x, out=None: torch.sign(x, out=out),
    "silu": _plain(nn.silu),
    "sin": _plain(torch.sin),
    "sinh": _plain(torch.sinh),
    "softplus": _plain(nn.softplus),
    "softsign": _softsign,
    "sqrt": _plain(torch.sqrt),
    "tan": _plain(torch.tan),
    "tanh": _plain(torch.tanh),
    "thresholded_relu": _thresholded_relu,
}


def _div(dtype: torch.dtype) -> Apply:
    if dtype.is_floating_point:
        return torch.div
    return lambda a, b, out=None: torch.div(a, b, rounding_mode="trunc", out=out)


def _pow(dtype: torch.dtype) -> Apply:
    """Power in the type of the base; an integer base with a fractional or negative exponent truncates."""

    def apply(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        if dtype.is_floating_point:
            return torch.pow(a, b, out=out)
        result = torch.pow(a.to(torch.float64), b).to(dtype)
        return result if out is None else out.copy_(result)

    return apply


def _prelu(dtype: torch.dtype) -> Apply:
    def apply(x: torch.Tensor, slope: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        return torch.where(x < 0, x * slope, x, out=out)

    return apply


BINARY: Mapping[str, Callable[[torch.dtype], Apply]] = {
    "add": _plain(torch.add),
    "and": _plain(torch.logical_and),
    "div": _div,
    "equal": _plain(torch.eq),
    "fmod": _plain(torch.fmod),
    "greater": _plain(torch.gt),
    "greater_equal": _plain(torch.ge),
    "less": _plain(torch.lt),
    "less_equal": _plain(torch.le),
    "max": _plain(torch.maximum),
    "min": _plain(torch.minimum),
    "mod": _plain(torch.remainder),
    "mul": _plain(torch.mul),
    "or": _plain(torch.logical_or),
    "pow": _pow,
    "prelu": _prelu,
    "sub": _plain(torch.sub),
    "xor": _plain(torch.logical_xor),
}


@dataclass(frozen=True)
class BoundProgram:
    """A program made for the shapes and types of one layer.

    ``apply(value, operands, out)`` runs it; the value is overwritten only where it was said to be fresh. The
    operands are those of ``arguments``, in order.
    """

    apply: Callable[..., torch.Tensor]
    arguments: tuple[Argument, ...]
    takes_out: bool


def bind_program(
    binding: Binding,
    program: Sequence[PointwiseStep],
    shape: tuple[int, ...],
    dtype: torch.dtype,
    fresh: bool,
) -> BoundProgram:
    """Make a program for a running value of ``shape`` and ``dtype``; ``fresh`` lets it be overwritten."""
    arguments: list[Argument] = []
    calls: list[tuple[Apply, int | None, bool, bool]] = []
    for step in program:
        operand = None
        if step.operand is not None:
            operand = _operand(binding.argument(step.operand), dtype, step.kind, shape)
            arguments.append(operand)
        apply, new_shape, new_dtype = _meaning(binding, step, shape, dtype, operand)
        in_place = fresh and new_shape == shape and new_dtype is dtype
        calls.append((apply, None if operand is None else len(arguments) - 1, step.swap, in_place))
        shape, dtype, fresh = new_shape, new_dtype, True
    # Given memory serves when the first step can write there and the rest stays in place.
    takes_out = all(in_place for *_, in_place in calls[1:])
    takes_out = takes_out and shape == binding.output_shape and dtype is binding.output_dtype
    return BoundProgram(_chain(calls), tuple(arguments), takes_out)


def _operand(argument: Argument, dtype: torch.dtype, kind: str, shape: tuple[int, ...]) -> Argument:
    """A constant operand: of one element as a rank-0 tensor, which torch takes at full precision."""
    constant = argument.constant
    if constant is None:
        return argument
    if constant.numel() == 1 and len(constant.shape) <= len(shape):
        return constant_argument(constant.reshape(()))
    return constant_as(argument, dtype)


def _meaning(
    binding: Binding,
    step: PointwiseStep,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    operand: Argument | None,
) -> tuple[Apply, tuple[int, ...], torch.dtype]:
    """The function of one step, and shape and type of its result."""
    if (step.kind not in UNARY) if operand is None else (step.kind not in BINARY):
        raise DeviceError(f"pointwise kind '{step.kind}' is unknown", layer=binding.layer)
    if operand is None:
        apply = UNARY[step.kind](dtype, *step.params)
        return apply, shape, torch.bool if step.kind in _BOOLEAN else dtype
    base = operand.dtype if step.swap else dtype
    apply = BINARY[step.kind](base)
    new_shape = broadcast(shape, operand.shape)
    if step.kind in _BOOLEAN:
        return apply, new_shape, torch.bool
    if step.kind == "pow":
        return apply, new_shape, base
    if not operand.shape and dtype.is_floating_point == operand.dtype.is_floating_point and shape:
        return apply, new_shape, dtype  # a rank-0 operand does not widen the result
    return apply, new_shape, torch.promote_types(dtype, operand.dtype)


def _chain(calls: Sequence[tuple[Apply, int | None, bool, bool]]) -> Callable[..., torch.Tensor]:
    """One function for a whole program."""
    if not calls:
        return lambda value, operands, out=None: value.clone() if out is None else out.copy_(value)
    if len(calls) == 1:
        return _single(*calls[0])

    def run(value: torch.Tensor, operands: Sequence[torch.Tensor], out: torch.Tensor | None = None) -> torch.Tensor:
        for apply, index, swap, in_place in calls:
            target = out if out is not None else value if in_place else None
            if index is None:
                value = apply(value, out=target)
            elif swap:
                value = apply(operands[index], value, out=target)
            else:
                value = apply(value, operands[index], out=target)
        return value

    return run


def _single(apply: Apply, index: int | None, swap: bool, in_place: bool) -> Callable[..., torch.Tensor]:
    def unary(value: Any, operands: Any, out: Any = None) -> Any:
        return apply(value, out=value if in_place and out is None else out)

    def binary(value: Any, operands: Any, out: Any = None) -> Any:
        return apply(value, operands[0], out=value if in_place and out is None else out)

    def swapped(value: Any, operands: Any, out: Any = None) -> Any:
        return apply(operands[0], value, out=value if in_place and out is None else out)

    return unary if index is None else swapped if swap else binary


def elementwise(binding: Binding) -> Prepared:
    """``aten.elementwise``: a program on the first input. The empty program is a copy."""
    x = binding.argument(0)
    program = program_of(binding.attributes["program"])
    if len(program) == 1 and program[0].kind not in _BOOLEAN:
        direct = _direct(binding, program[0], x)
        if direct is not None:
            return direct
    bound = bind_program(binding, program, x.shape, x.dtype, fresh=False)
    apply = bound.apply

    def function(value: torch.Tensor, *operands: torch.Tensor) -> torch.Tensor:
        return apply(value, operands)

    def into(value: torch.Tensor, *operands: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        return apply(value, operands, out)

    return Prepared(function, (x, *bound.arguments), into if bound.takes_out else None)


def _direct(binding: Binding, step: PointwiseStep, x: Argument) -> Prepared | None:
    """A program of one step without any indirection, where the argument order allows it."""
    operand = None
    if step.operand is not None:
        operand = _operand(binding.argument(step.operand), x.dtype, step.kind, x.shape)
    apply, _, dtype = _meaning(binding, step, x.shape, x.dtype, operand)
    arguments = (x,) if operand is None else (operand, x) if step.swap else (x, operand)
    into = apply if dtype is binding.output_dtype else None
    return Prepared(apply, arguments, into)


def with_epilogue(
    binding: Binding,
    function: Callable[..., Any],
    arguments: tuple[Argument, ...],
    *,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    into: Callable[..., Any] | None = None,
) -> Prepared:
    """A function whose fresh result goes through the layer's epilogue in place."""
    program = program_of(binding.attributes.get("epilogue") or ())
    if not program:
        return Prepared(function, arguments, into if dtype is binding.output_dtype else None)
    bound = bind_program(binding, program, shape, dtype, fresh=True)
    apply, count = bound.apply, len(arguments)

    def run(*tensors: torch.Tensor) -> torch.Tensor:
        return apply(function(*tensors[:count]), tensors[count:])

    def run_into(*tensors: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        return apply(into(*tensors[:count], out=out), tensors[count:], out)  # type: ignore[misc]

    same = bound.takes_out and shape == binding.output_shape and dtype is binding.output_dtype
    return Prepared(run, arguments + bound.arguments, run_into if into is not None and same else None)
