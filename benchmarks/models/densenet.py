"""DenseNet-121 (Huang et al., 2016): layers read all before them, normalisation precedes convolution."""

from __future__ import annotations

import torch
from torch import nn

from models.conditioning import calibrate, initialise, sample_images
from models.layers import convolution


class DenseLayer(nn.Module):
    """Adds `growth` channels to its input."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.new = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.ReLU(),
            nn.Conv2d(inputs, 4 * growth, 1, bias=False),
            nn.BatchNorm2d(4 * growth),
            nn.ReLU(),
            nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat((x, self.new(x)), 1)


def densenet121(
    depths: tuple[int, ...] = (6, 12, 24, 16), growth: int = 32, classes: int = 1000, size: int = 224
) -> nn.Module:
    """DenseNet-121: input `[N, 3, size, size]`, output `[N, classes]`."""
    channels = 2 * growth
    layers: list[nn.Module] = [convolution(3, channels, 7, 2), nn.MaxPool2d(3, 2, 1)]
    for stage, depth in enumerate(depths):
        for _ in range(depth):
            layers.append(DenseLayer(channels, growth))
            channels += growth
        layers += [nn.BatchNorm2d(channels), nn.ReLU()]
        if stage < len(depths) - 1:
            layers += [nn.Conv2d(channels, channels // 2, 1, bias=False), nn.AvgPool2d(2)]
            channels //= 2
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]
    return calibrate(initialise(nn.Sequential(*layers)), sample_images(size))
