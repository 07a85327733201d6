"""VGG-11 (Simonyan and Zisserman, 2014): convolutions with biases, no normalisation, large linear layers."""

from __future__ import annotations

from torch import nn

from models.conditioning import initialise


def vgg11(width: int = 64, hidden: int = 4096, classes: int = 1000, size: int = 224) -> nn.Module:
    """VGG-11: input `[N, 3, size, size]`, output `[N, classes]`."""
    layers: list[nn.Module] = []
    channels = 3
    for stage in ((1,), (2,), (4, 4), (8, 8), (8, 8)):
        for factor in stage:
            layers += [nn.Conv2d(channels, factor * width, 3, padding=1), nn.ReLU()]
            channels = factor * width
        layers.append(nn.MaxPool2d(2))
    features = channels * (size // 32) ** 2
    layers += [nn.Flatten(), nn.Linear(features, hidden), nn.ReLU(), nn.Dropout()]
    layers += [nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(), nn.Linear(hidden, classes)]
    return initialise(nn.Sequential(*layers)).eval()
