"""In the style of Inception-v3 (Szegedy et al., 2015): branches, 1x7 and 7x1 kernels, average pools."""

from __future__ import annotations

import torch
from torch import nn

from models.conditioning import calibrate, initialise, sample_images
from models.layers import convolution


class Branches(nn.Module):
    """Several paths over one input, their outputs side by side."""

    def __init__(self, *paths: nn.Module) -> None:
        super().__init__()
        self.paths = nn.ModuleList(paths)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([path(x) for path in self.paths], 1)


def square(inputs: int, w: int) -> Branches:
    """Branches of 1x1, 5x5, two 3x3 and an average pool: `7 w` channels."""
    return Branches(
        convolution(inputs, 2 * w, 1),
        nn.Sequential(convolution(inputs, w, 1), convolution(w, 2 * w, 5)),
        nn.Sequential(convolution(inputs, 2 * w, 1), convolution(2 * w, 2 * w, 3), convolution(2 * w, 2 * w, 3)),
        nn.Sequential(nn.AvgPool2d(3, 1, 1), convolution(inputs, w, 1)),
    )


def factorised(inputs: int, w: int) -> Branches:
    """Branches of 1x1, 1x7 and 7x1, twice that, and an average pool: `16 w` channels."""
    return Branches(
        convolution(inputs, 4 * w, 1),
        nn.Sequential(
            convolution(inputs, 2 * w, 1),
            convolution(2 * w, 2 * w, (1, 7)),
            convolution(2 * w, 4 * w, (7, 1)),
        ),
        nn.Sequential(
            convolution(inputs, 2 * w, 1),
            convolution(2 * w, 2 * w, (7, 1)),
            convolution(2 * w, 2 * w, (1, 7)),
            convolution(2 * w, 2 * w, (7, 1)),
            convolution(2 * w, 4 * w, (1, 7)),
        ),
        nn.Sequential(nn.AvgPool2d(3, 1, 1, count_include_pad=False), convolution(inputs, 4 * w, 1)),
    )


def reduction(inputs: int, w: int) -> Branches:
    """Halve the map by strided convolution and by max-pool: `inputs + 8 w` channels."""
    return Branches(convolution(inputs, 8 * w, 3, 2), nn.MaxPool2d(3, 2, 1))


def inception(width: int = 48, depth: int = 4, classes: int = 1000, size: int = 299) -> nn.Module:
    """An Inception-v3-like network: input `[N, 3, size, size]`, output `[N, classes]`."""
    w = width
    layers: list[nn.Module] = [
        nn.Sequential(convolution(3, w, 3, 2), convolution(w, w, 3), nn.MaxPool2d(3, 2)),
        convolution(w, 4 * w, 3, 2),
        square(4 * w, w),
        square(7 * w, w),
        reduction(7 * w, w),
        factorised(15 * w, w),
    ]
    layers += [factorised(16 * w, w) for _ in range(depth - 1)]
    layers += [reduction(16 * w, w), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24 * w, classes)]
    return calibrate(initialise(nn.Sequential(*layers)), sample_images(size))
