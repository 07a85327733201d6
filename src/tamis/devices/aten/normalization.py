"""Softmax and the normalisations by torch's fused kernels, which accumulate in float32 whatever the type."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional

from tamis.devices.aten.binding import Argument, Binding, Prepared, constant_argument, constant_as


def softmax(binding: Binding) -> Prepared:
    """``aten.softmax``, or its logarithm."""
    axis = int(binding.attributes["axis"])
    kernel: Callable[..., Any] = torch.log_softmax if binding.attributes.get("log") else torch.softmax
    x = binding.argument(0)

    def into(x: torch.Tensor, out: torch.Tensor) -> Any:
        return kernel(x, axis, out=out)

    return Prepared(lambda x: kernel(x, axis), (x,), into if x.dtype is binding.output_dtype else None)


def layer_norm(binding: Binding) -> Prepared:
    """``aten.layer_norm``: of ``x`` or of ``x + residual``, which is then the second output."""
    a = binding.attributes
    x = binding.argument(0)
    has_scale, has_bias, rms = bool(a.get("scale", True)), bool(a.get("bias", True)), bool(a.get("rms"))
    shape = list(x.shape[int(a["axis"]) :])
    parameters = [binding.argument(1 + index) for index in range(has_scale + has_bias)]
    parameters = [_full(parameter, shape, x.dtype) for parameter in parameters]
    matching = all(list(parameter.shape) == shape for parameter in parameters)
    make = _rms_normalizer if rms else _normalizer if matching else _broadcast_normalizer
    normalize = make(shape, float(a["epsilon"]), has_scale, has_bias)
    if not a.get("residual"):
        return Prepared(normalize, (x, *parameters))
    residual = binding.argument(1 + len(parameters))
    if len(binding.outputs) == 1:

        def fused(x: Any, residual: Any, *parameters: Any) -> Any:
            return normalize(torch.add(x, residual), *parameters)

        return Prepared(fused, (x, residual, *parameters))

    def fused_both(x: Any, residual: Any, *parameters: Any) -> Any:
        total = torch.add(x, residual)
        return normalize(total, *parameters), total

    return Prepared(fused_both, (x, residual, *parameters))


def _full(parameter: Argument, shape: Sequence[int], dtype: torch.dtype) -> Argument:
    """A constant scale or bias in the shape that torch asks for."""
    if parameter.constant is None:
        return parameter
    full = parameter.constant.expand(tuple(shape)).contiguous()
    return constant_as(constant_argument(full), dtype)


def _normalizer(shape: list[int], epsilon: float, has_scale: bool, has_bias: bool) -> Callable[..., Any]:
    """The normalisation as a function of x, then scale and bias where there are any."""
    if has_scale and has_bias:
        return lambda x, scale, bias: torch.layer_norm(x, shape, scale, bias, epsilon, False)
    if has_scale:
        return lambda x, scale: torch.layer_norm(x, shape, scale, None, epsilon, False)
    if has_bias:
        return lambda x, bias: torch.layer_norm(x, shape, None, bias, epsilon, False)
    return lambda x: torch.layer_norm(x, shape, None, None, epsilon, False)


def _broadcast_normalizer(shape: list[int], epsilon: float, has_scale: bool, has_bias: bool) -> Callable[..., Any]:
    """For a run-time scale or bias that broadcasts, which torch's kernel does not do."""

    def run(x: Any, *parameters: Any) -> Any:
        result = torch.layer_norm(x, shape, None, None, epsilon, False)
        result = result * parameters[0] if has_scale else result
        return result + parameters[-1] if has_bias else result

    return run


def _rms_normalizer(shape: list[int], epsilon: float, has_scale: bool, has_bias: bool) -> Callable[..., Any]:
    def run(x: Any, *parameters: Any) -> Any:
        result = functional.rms_norm(x, shape, None, epsilon)
        result = result * parameters[0] if has_scale else result
        return result + parameters[-1] if has_bias else result

    return run


def batch_norm(binding: Binding) -> Prepared:
    """``aten.batch_norm``: with the stored statistics."""
    epsilon = float(binding.attributes["epsilon"])

    def run(x: Any, scale: Any, bias: Any, mean: Any, variance: Any) -> Any:
        return torch.batch_norm(x, scale, bias, mean, variance, False, 0.0, epsilon, False)

    x, *parameters = (binding.argument(index) for index in range(5))
    return Prepared(run, (x, *(constant_as(parameter, x.dtype) for parameter in parameters)))


def group_norm(binding: Binding) -> Prepared:
    """``aten.group_norm``."""
    groups, epsilon = int(binding.attributes["groups"]), float(binding.attributes["epsilon"])

    def run(x: Any, scale: Any, bias: Any) -> Any:
        return torch.group_norm(x, groups, scale, bias, epsilon, False)

    x, *parameters = (binding.argument(index) for index in range(3))
    return Prepared(run, (x, *(constant_as(parameter, x.dtype) for parameter in parameters)))


def local_response_norm(binding: Binding) -> Prepared:
    """``aten.local_response_norm``: the window of channels is an average pool over the channel axis."""
    a = binding.attributes
    size, alpha, beta, bias = int(a["size"]), float(a["alpha"]), float(a["beta"]), float(a["bias"])
    x = binding.argument(0)
    flat = (x.shape[0], 1, x.shape[1], -1)
    pads = [0, 0, (size - 1) // 2, size - 1 - (size - 1) // 2]

    def run(x: torch.Tensor) -> Any:
        squares = functional.pad((x * x).reshape(flat), pads)
        mean = functional.avg_pool2d(squares, (size, 1), 1).reshape(x.shape)
        return x / mean.mul_(alpha).add_(bias).pow_(beta)

    return Prepared(run, (x,))
