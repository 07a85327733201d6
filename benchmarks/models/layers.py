"""Blocks that several of the convolutional models share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


def convolution(
    inputs: int,
    outputs: int,
    kernel: int | tuple[int, int],
    stride: int = 1,
    *,
    groups: int = 1,
    activation: Callable[[], nn.Module] | None = nn.ReLU,
) -> nn.Sequential:
    """Convolution without bias that keeps the map (divided by `stride`), batch normalisation, activation."""
    sizes = (kernel, kernel) if isinstance(kernel, int) else kernel
    padding = (sizes[0] // 2, sizes[1] // 2)
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, sizes, stride, padding, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    if activation is not None:
        layers.append(activation())
    return nn.Sequential(*layers)


def divisible(value: float, by: int = 8) -> int:
    """The multiple of `by` nearest to `value`, never under 90 % of it (the rule of the MobileNet papers)."""
    rounded = max(by, int(value + by / 2) // by * by)
    return rounded + by if rounded < 0.9 * value else rounded


class SqueezeExcite(nn.Module):
    """Scale the channels by a gate computed from their averages (Hu et al., 2018)."""

    def __init__(
        self, channels: int, squeezed: int, activation: Callable[[], nn.Module], gate: Callable[[], nn.Module]
    ) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.activation = activation()
        self.expand = nn.Conv2d(squeezed, channels, 1)
        self.gate = gate()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gate(self.expand(self.activation(self.reduce(self.pool(x)))))


class InvertedResidual(nn.Module):
    """Expand, depthwise, optional squeeze-excite, project (MobileNetV2 and its successors)."""

    def __init__(
        self,
        inputs: int,
        hidden: int,
        outputs: int,
        kernel: int,
        stride: int,
        *,
        activation: Callable[[], nn.Module],
        squeezed: int = 0,
        gate: Callable[[], nn.Module] = nn.Sigmoid,
    ) -> None:
        super().__init__()
        self.residual = stride == 1 and inputs == outputs
        expand = [convolution(inputs, hidden, 1, activation=activation)] if hidden != inputs else []
        excite = [SqueezeExcite(hidden, squeezed, nn.ReLU if gate is nn.Hardsigmoid else nn.SiLU, gate)]
        self.branch = nn.Sequential(
            *expand,
            convolution(hidden, hidden, kernel, stride, groups=hidden, activation=activation),
            *(excite if squeezed else []),
        )
        self.project = convolution(hidden, outputs, 1, activation=None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.project(self.branch(x))
        return x + y if self.residual else y
