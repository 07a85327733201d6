"""ResNet-34 and ResNet-50 v1.5 (He et al., 2015; the stride sits in the 3x3 convolution of a bottleneck)."""

from __future__ import annotations

import torch
from torch import nn

from models.conditioning import calibrate, damp, initialise, sample_images
from models.layers import convolution


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            convolution(inputs, width, 3, stride), convolution(width, width, 3, activation=None)
        )
        self.shortcut = shortcut(inputs, width, stride)
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.branch(x) + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1 down, 3x3, 1x1 up beside a shortcut."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            convolution(inputs, width, 1),
            convolution(width, width, 3, stride),
            convolution(width, 4 * width, 1, activation=None),
        )
        self.shortcut = shortcut(inputs, 4 * width, stride)
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.branch(x) + self.shortcut(x))


def shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    """Identity, or a projection where the shape changes."""
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return convolution(inputs, outputs, 1, stride, activation=None)


class ResNet(nn.Module):
    """Stem, four stages, global average, classifier."""

    def __init__(
        self, block: type[BasicBlock] | type[Bottleneck], depths: tuple[int, ...], width: int, classes: int
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(convolution(3, width, 7, 2), nn.MaxPool2d(3, 2, 1))
        blocks: list[nn.Module] = []
        channels = width
        for stage, depth in enumerate(depths):
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(block(channels, width * 2**stage, stride))
                channels = width * 2**stage * block.expansion
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.pool(self.blocks(self.stem(image))).flatten(1))


def resnet34(
    depths: tuple[int, ...] = (3, 4, 6, 3), width: int = 64, classes: int = 1000, size: int = 224
) -> nn.Module:
    """ResNet-34: input `[N, 3, size, size]`, output `[N, classes]`."""
    return _settled(ResNet(BasicBlock, depths, width, classes), size)


def resnet50(
    depths: tuple[int, ...] = (3, 4, 6, 3), width: int = 64, classes: int = 1000, size: int = 224
) -> nn.Module:
    """ResNet-50 v1.5: input `[N, 3, size, size]`, output `[N, classes]`."""
    return _settled(ResNet(Bottleneck, depths, width, classes), size)


def _settled(model: ResNet, size: int) -> nn.Module:
    initialise(model)
    damp((block.branch[-1][1] for block in model.blocks), 0.3)
    return calibrate(model, sample_images(size))
