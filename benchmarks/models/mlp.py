"""Plain multi-layer perceptrons: the weight-bandwidth case."""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from models.conditioning import initialise


def perceptron(*widths: int, last_relu: bool) -> nn.Sequential:
    """Linear layers of the given widths, ReLU between them and, if `last_relu`, after the last."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*(layers if last_relu else layers[:-1]))


def mlp(width: int = 4096, depth: int = 4) -> nn.Module:
    """`depth` layers width -> width, ReLU between; input and output `[N, width]`."""
    return initialise(perceptron(*[width] * (depth + 1), last_relu=False)).eval()
