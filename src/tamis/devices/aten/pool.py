"""Pooling with exactly ONNX's rules for padding, dilation and partial last windows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from tamis.devices.aten.binding import Binding, Prepared
from tamis.devices.aten.convolution import axis_pads

_MAX: tuple[Callable[..., Any], ...] = (torch.max_pool1d, torch.max_pool2d, torch.max_pool3d)
_AVERAGE: tuple[Callable[..., Any], ...] = (
    functional.avg_pool1d,
    functional.avg_pool2d,
    functional.avg_pool3d,
)
_CONV: tuple[Callable[..., Any], ...] = (torch.conv1d, torch.conv2d, torch.conv3d)


@dataclass(frozen=True)
class _Windows:
    """The windows along one axis. ``over``: cells by which the last one hangs over the padding (``ceil``)."""

    size: int
    count: int
    kernel: int
    stride: int
    dilation: int
    begin: int
    end: int

    @property
    def over(self) -> int:
        reach = (self.count - 1) * self.stride + self.dilation * (self.kernel - 1) + 1
        return max(reach - self.size - self.begin - self.end, 0)

    @property
    def simple(self) -> bool:
        """Whether torch's own padding will do: symmetric, at most half the kernel."""
        return self.begin == self.end and not self.over and 2 * self.begin <= self.kernel

    def counts(self, count_pads: bool) -> list[int]:
        """How many cells of each window count for an average; those beyond the padding never do."""
        first, last = (-self.begin, self.size + self.end) if count_pads else (0, self.size)
        return [
            sum(first <= window * self.stride - self.begin + tap * self.dilation < last for tap in range(self.kernel))
            for window in range(self.count)
        ]


def _windows(binding: Binding) -> list[_Windows]:
    a, x = binding.attributes, binding.argument(0)
    rank = len(a["kernel"])
    return [
        _Windows(
            x.shape[2 + i], binding.output_shape[2 + i], int(a["kernel"][i]), int(a["strides"][i]),
            int(a["dilations"][i]), int(a["pads"][i]), int(a["pads"][i + rank]),
        )
        for i in range(rank)
    ]  # fmt: skip


def pool(binding: Binding) -> Prepared:
    """``aten.pool``: torch's own padding where it is symmetric and small, else explicit padding."""
    windows = _windows(binding)
    if binding.attributes["kind"] == "max":
        return _max(binding, windows)
    counted = bool(binding.attributes.get("count_pads", False))
    if not all(axis.simple and axis.dilation == 1 for axis in windows):
        return _weighted_average(binding, windows, counted)
    average = _AVERAGE[len(windows) - 1]
    kernel, strides = [axis.kernel for axis in windows], [axis.stride for axis in windows]
    pads = [axis.begin for axis in windows]
    return Prepared(lambda x: average(x, kernel, strides, pads, False, counted), (binding.argument(0),))


def _max(binding: Binding, windows: list[_Windows]) -> Prepared:
    x = binding.argument(0)
    pooling = _MAX[len(windows) - 1]
    kernel, strides = [axis.kernel for axis in windows], [axis.stride for axis in windows]
    dilations = [axis.dilation for axis in windows]
    if x.dtype.is_floating_point and all(axis.simple for axis in windows):
        begin = [axis.begin for axis in windows]
        return Prepared(lambda x: pooling(x, kernel, strides, begin, dilations), (x,))
    # Torch pools floating point only; float64 holds every 32-bit integer.
    between = x.dtype if x.dtype.is_floating_point else torch.float64
    lowest = float("-inf") if x.dtype.is_floating_point else float(torch.iinfo(x.dtype).min)
    pads = axis_pads([axis.begin for axis in windows], [axis.end + axis.over for axis in windows])
    cut = tuple(slice(0, size) for size in binding.output_shape)

    def run(x: torch.Tensor) -> Any:
        padded = functional.pad(x.to(between), pads, value=lowest)
        return pooling(padded, kernel, strides, 0, dilations)[cut].to(x.dtype)

    return Prepared(run, (x,))


def _weighted_average(binding: Binding, windows: list[_Windows], counted: bool) -> Prepared:
    """Sum by a convolution with ones, channel by channel, times the reciprocal of the counted cells."""
    x = binding.argument(0)
    share = torch.ones(())
    for axis in windows:
        share = share.unsqueeze(-1) * torch.tensor(axis.counts(counted), dtype=torch.float32).clamp(min=1)
    share = share.reciprocal().to(x.dtype)
    ones = torch.ones((1, 1, *(axis.kernel for axis in windows)), dtype=x.dtype)
    strides, dilations = [axis.stride for axis in windows], [axis.dilation for axis in windows]
    pads = axis_pads([axis.begin for axis in windows], [axis.end + axis.over for axis in windows])
    convolve = _CONV[len(windows) - 1]
    cut = tuple(slice(0, size) for size in binding.output_shape)

    def run(x: torch.Tensor) -> Any:
        padded = functional.pad(x, pads)
        single = padded.reshape(-1, 1, *padded.shape[2:])
        total = convolve(single, ones, None, strides, 0, dilations)
        return total.reshape(*padded.shape[:2], *total.shape[2:])[cut] * share

    return Prepared(run, (x,))
