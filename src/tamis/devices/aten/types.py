"""Conversions of the element type: casts and (de)quantisation."""

from __future__ import annotations

from typing import Any

import torch

from tamis.devices.aten.binding import Argument, Binding, Prepared, constant_argument
from tamis.devices.tensors import torch_dtype
from tamis.formats.dtype import DType

FLOAT8_MAX = 448.0


def cast(binding: Binding) -> Prepared:
    """``aten.cast``: floating point to integer truncates; float8 saturates as in ONNX."""
    x = binding.argument(0)
    target = torch_dtype(DType(binding.attributes["to"]))
    if target is torch.float8_e4m3fn:
        return Prepared(lambda x: x.float().clamp(-FLOAT8_MAX, FLOAT8_MAX).to(target), (x,))
    if target.is_floating_point:
        # The planner may keep a float32 value as bfloat16; the value itself is what counts.
        target = binding.output_dtype
    return Prepared(
        lambda x: x.to(target),
        (x,),
        (lambda x, out: out.copy_(x)) if target is binding.output_dtype else None,
    )


def _parameters(binding: Binding) -> tuple[Argument, Argument | None]:
    """Scale and zero point, shaped to broadcast along the axis; both are constants."""
    rank = len(binding.argument(0).shape)
    axis = int(binding.attributes.get("axis", 1)) % max(rank, 1)
    scale = binding.argument(1).known("the scale of a quantisation").float()
    zero = None
    if len(binding.arguments) > 2 and binding.arguments[2] is not None:
        zero = binding.argument(2).known("the zero point of a quantisation")
    return _along(axis, rank, scale), None if zero is None else _along(axis, rank, zero)


def _along(axis: int, rank: int, parameter: torch.Tensor) -> Argument:
    if parameter.numel() == 1 and parameter.dim() <= 1:
        return constant_argument(parameter.reshape(()))
    shape = [1] * rank
    shape[axis] = parameter.numel()
    return constant_argument(parameter.reshape(shape))


def quantize(binding: Binding) -> Prepared:
    """``aten.quantize``: round half to even, add the zero point, saturate."""
    x = binding.argument(0)
    target = torch_dtype(DType(binding.attributes["to"]))
    scale, zero = _parameters(binding)
    if target.is_floating_point:

        def run_float(x: Any, scale: Any) -> Any:
            return (x.float() / scale).clamp_(-FLOAT8_MAX, FLOAT8_MAX).to(target)

        return Prepared(run_float, (x, scale))
    limits = torch.iinfo(target)
    offset = 0.0 if zero is None else zero.known("the zero point").float()

    def run(x: Any, scale: Any) -> Any:
        return torch.div(x.float(), scale).round_().add_(offset).clamp_(limits.min, limits.max).to(target)

    return Prepared(run, (x, scale))


def dequantize(binding: Binding) -> Prepared:
    """``aten.dequantize``: ``(x - zero) * scale``."""
    x = binding.argument(0)
    scale, zero = _parameters(binding)
    if zero is None or x.dtype.is_floating_point or not bool(zero.known("the zero point").any()):
        return Prepared(lambda x, scale: x.float().mul_(scale), (x, scale))
    offset = constant_argument(zero.known("the zero point").float())
    return Prepared(lambda x, scale, offset: x.float().sub_(offset).mul_(scale), (x, scale, offset))
