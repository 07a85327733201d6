"""Convolutions by torch's general kernels, whatever the padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional

from tamis.devices.aten.binding import Argument, Binding, Prepared, constant_argument, same_type
from tamis.devices.aten.pointwise import with_epilogue

_CONV = (torch.conv1d, torch.conv2d, torch.conv3d)
_CONV_TRANSPOSE = (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)


def axis_pads(begin: Sequence[int], end: Sequence[int]) -> list[int]:
    """Pads of ``torch.nn.functional.pad``, which counts from the last axis."""
    return [amount for pair in zip(reversed(begin), reversed(end), strict=True) for amount in pair]


def _ready_weight(arguments: tuple[Argument, ...]) -> tuple[Argument, ...]:
    """A constant weight in the memory order of the image, so that no call has to reorder it."""
    x, weight, *rest = arguments
    if weight.constant is None or not x.channels_last or len(x.shape) not in (4, 5):
        return arguments
    order = torch.channels_last if len(x.shape) == 4 else torch.channels_last_3d
    return (x, constant_argument(weight.constant.contiguous(memory_format=order)), *rest)


def _inputs(binding: Binding) -> tuple[Argument, ...]:
    count = 3 if binding.attributes.get("bias") else 2
    return _ready_weight(same_type(binding, [binding.argument(index) for index in range(count)]))


def conv(binding: Binding) -> Prepared:
    """``aten.conv``: convolution of 1 to 3 axes with any padding, and the epilogue."""
    a = binding.attributes
    arguments = _inputs(binding)
    rank = len(arguments[0].shape) - 2
    strides, dilations, groups = list(a["strides"]), list(a["dilations"]), int(a["groups"])
    begin, end = list(a["pads"][:rank]), list(a["pads"][rank:])
    convolve: Callable[..., Any] = _CONV[rank - 1]
    symmetric = begin == end and min(begin) >= 0
    padding = begin if symmetric else [0] * rank
    before = [] if symmetric else axis_pads(begin, end)

    def run(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Any:
        return convolve(x, weight, bias, strides, padding, dilations, groups)

    def padded(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Any:
        return convolve(functional.pad(x, before), weight, bias, strides, padding, dilations, groups)

    shape = conv_shape(binding, arguments)
    return with_epilogue(binding, run if symmetric else padded, arguments, shape=shape, dtype=arguments[0].dtype)


def conv_shape(binding: Binding, arguments: Sequence[Argument]) -> tuple[int, ...]:
    """Shape of a convolution's result before its epilogue, which may broadcast it."""
    a, x, weight = binding.attributes, arguments[0].shape, arguments[1].shape
    rank = len(x) - 2
    sizes = [
        (x[2 + i] + a["pads"][i] + a["pads"][i + rank] - a["dilations"][i] * (weight[2 + i] - 1) - 1) // a["strides"][i]
        + 1
        for i in range(rank)
    ]
    return (x[0], weight[0], *sizes)


def conv_transpose(binding: Binding) -> Prepared:
    """``aten.conv_transpose``: what torch cannot pad itself is cropped or filled behind it."""
    a = binding.attributes
    arguments = _inputs(binding)
    rank = len(arguments[0].shape) - 2
    strides, dilations, groups = list(a["strides"]), list(a["dilations"]), int(a["groups"])
    begin, end, extra = list(a["pads"][:rank]), list(a["pads"][rank:]), list(a["output_pads"])
    x, weight = arguments[0].shape, arguments[1].shape
    full = [strides[i] * (x[2 + i] - 1) + dilations[i] * (weight[2 + i] - 1) + 1 for i in range(rank)]
    sizes = [full[i] + extra[i] - begin[i] - end[i] for i in range(rank)]
    shape = (x[0], weight[1] * groups, *sizes)
    direct = begin == end and min(begin) >= 0
    direct = direct and all(extra[i] < max(strides[i], dilations[i]) for i in range(rank))
    convolve: Callable[..., Any] = _CONV_TRANSPOSE[rank - 1]
    if direct:

        def run(x: Any, weight: Any, bias: Any = None) -> Any:
            return convolve(x, weight, bias, strides, begin, extra, groups, dilations)

        return with_epilogue(binding, run, arguments, shape=shape, dtype=arguments[0].dtype)
    after = axis_pads([-amount for amount in begin], [extra[i] - end[i] for i in range(rank)])
    column = (-1, *(1 for _ in range(rank)))

    def cropped(x: Any, weight: Any, bias: Any = None) -> Any:
        result = functional.pad(convolve(x, weight, None, strides, 0, 0, groups, dilations), after)
        # Behind the cropping, since also the rows that were filled in get the bias.
        return result if bias is None else result + bias.reshape(column)

    return with_epilogue(binding, cropped, arguments, shape=shape, dtype=arguments[0].dtype)
