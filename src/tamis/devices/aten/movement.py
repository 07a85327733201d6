"""Operators that move elements without computing: views where torch has them, one copy elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from tamis.devices.aten.binding import Argument, Binding, Prepared
from tamis.devices.tensors import memory_format


def _copied(view: Callable[[Any], Any], x: Argument) -> Prepared:
    """A view; into given memory it is one copy."""
    return Prepared(view, (x,), lambda x, out: out.copy_(view(x)))


def reshape(binding: Binding) -> Prepared:
    """``aten.reshape``: a view where the memory order allows it."""
    shape = binding.output_shape
    return _copied(lambda x: x.reshape(shape), binding.argument(0))


def transpose(binding: Binding) -> Prepared:
    """``aten.transpose``."""
    perm = tuple(int(axis) for axis in binding.attributes["perm"])
    return _copied(lambda x: x.permute(perm), binding.argument(0))


def expand(binding: Binding) -> Prepared:
    """``aten.expand``."""
    shape = binding.output_shape
    return _copied(lambda x: x.expand(shape), binding.argument(0))


def convert(binding: Binding) -> Prepared:
    """``aten.convert``: the format of the output, type and memory order in one pass."""
    dtype = binding.output_dtype
    order = memory_format(len(binding.output_shape), binding.outputs[0].format)
    x = binding.argument(0)
    if x.dtype is dtype:
        return Prepared(lambda x: x.contiguous(memory_format=order), (x,), lambda x, out: out.copy_(x))
    return Prepared(lambda x: x.to(dtype, memory_format=order), (x,), lambda x, out: out.copy_(x))


def concat(binding: Binding) -> Prepared:
    """``aten.concat``."""
    axis = int(binding.attributes["axis"])
    arguments = binding.present()
    same = all(argument.dtype is binding.output_dtype for argument in arguments)

    def into(*tensors: Any, out: Any) -> Any:
        return torch.cat(tensors, axis, out=out)

    return Prepared(lambda *tensors: torch.cat(tensors, axis), arguments, into if same else None)


def split(binding: Binding) -> Prepared:
    """``aten.split``."""
    axis, sizes = int(binding.attributes["axis"]), [int(size) for size in binding.attributes["sizes"]]
    x = binding.argument(0)
    if len(sizes) == 1:
        return _copied(lambda x: x.narrow(axis, 0, sizes[0]), x)
    return Prepared(lambda x: torch.split_with_sizes(x, sizes, axis), (x,))


def slice_(binding: Binding) -> Prepared:
    """``aten.slice``: a view; backward steps pick the elements by index."""
    a = binding.attributes
    x = binding.argument(0)
    steps: list[Callable[[Any], Any]] = []
    for axis, start, stop, step in zip(a["axes"], a["starts"], a["stops"], a["steps"], strict=True):
        size = x.shape[axis]
        first, last, stride = slice(start, stop, step).indices(size)
        count = len(range(first, last, stride))
        if stride == 1 and count == size:
            continue
        steps.append(_cut(int(axis), first, count, stride))
    if not steps:
        return _copied(lambda x: x.narrow(0, 0, x.shape[0]) if x.dim() else x, x)
    if len(steps) == 1:
        return _copied(steps[0], x)

    def run(x: Any) -> Any:
        for step in steps:
            x = step(x)
        return x

    return _copied(run, x)


def _cut(axis: int, first: int, count: int, stride: int) -> Callable[[Any], Any]:
    if count == 0:
        return lambda x: x.narrow(axis, 0, 0)
    if stride == 1:
        return lambda x: x.narrow(axis, first, count)
    if stride > 1:
        cut: Any = torch.ops.aten.slice.Tensor
        end = first + (count - 1) * stride + 1
        return lambda x: cut(x, axis, first, end, stride)
    index = torch.arange(first, first + count * stride, stride)
    return lambda x: torch.index_select(x, axis, index)


def tile(binding: Binding) -> Prepared:
    """``aten.tile``."""
    repeats = tuple(int(count) for count in binding.attributes["repeats"])
    return Prepared(lambda x: x.repeat(repeats), (binding.argument(0),))


def pad(binding: Binding) -> Prepared:
    """``aten.pad``: by a constant in one call, else elements picked by index along each axis."""
    a = binding.attributes
    x = binding.argument(0)
    rank = len(x.shape)
    begin, end = list(a["pads"][:rank]), list(a["pads"][rank:])
    if a.get("mode", "constant") == "constant":
        value = float(a.get("value", 0.0))
        fill: Any = value if x.dtype.is_floating_point else bool(value) if x.dtype is torch.bool else int(value)
        pads = [amount for axis in reversed(range(rank)) for amount in (begin[axis], end[axis])]
        return Prepared(lambda x: functional.pad(x, pads, value=fill), (x,))
    picks = [
        (axis, _padded_index(x.shape[axis], begin[axis], end[axis], str(a["mode"])))
        for axis in range(rank)
        if begin[axis] or end[axis]
    ]

    def run(x: torch.Tensor) -> torch.Tensor:
        for axis, index in picks:
            x = torch.index_select(x, axis, index)
        return x if picks else x.clone()

    return Prepared(run, (x,))


def _padded_index(size: int, begin: int, end: int, mode: str) -> torch.Tensor:
    """Which element each position of a padded axis repeats. Negative amounts crop before padding."""
    first, last = max(-begin, 0), size - max(-end, 0)
    count = last - first
    position = torch.arange(-max(begin, 0), count + max(end, 0))
    if mode == "edge":
        position = position.clamp(0, count - 1)
    elif mode == "wrap":
        position = position.remainder(count)
    elif count == 1:
        position = torch.zeros_like(position)
    else:
        period = 2 * (count - 1)
        position = position.remainder(period)
        position = torch.minimum(position, period - position)
    return position + first


def depth_to_space(binding: Binding) -> Prepared:
    """``aten.depth_to_space``."""
    x = binding.argument(0)
    n, c, h, w = x.shape
    b, shape = int(binding.attributes["block"]), binding.output_shape
    if binding.attributes.get("mode", "DCR") == "DCR":
        cut, perm = (n, b, b, c // b**2, h, w), (0, 3, 4, 1, 5, 2)
    else:
        cut, perm = (n, c // b**2, b, b, h, w), (0, 1, 4, 2, 5, 3)
    return Prepared(lambda x: x.reshape(cut).permute(perm).reshape(shape), (x,))


def space_to_depth(binding: Binding) -> Prepared:
    """``aten.space_to_depth``."""
    x = binding.argument(0)
    n, c, h, w = x.shape
    b, shape = int(binding.attributes["block"]), binding.output_shape
    cut = (n, c, h // b, b, w // b, b)
    return Prepared(lambda x: x.reshape(cut).permute(0, 3, 5, 1, 2, 4).reshape(shape), (x,))
