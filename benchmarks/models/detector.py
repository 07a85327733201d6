"""A one-stage detector of the YOLOv5s class: CSP backbone, PAN neck, three heads, decoding in the graph.

Written from the published structure (CSPNet, Wang et al., 2019; PANet, Liu et al., 2018). With the default
arguments it has YOLOv5s's widths and depths.
"""

from __future__ import annotations

import torch
from torch import nn

from models.conditioning import calibrate, damp, initialise, sample_images
from models.layers import convolution

ANCHORS = (  # width and height in pixels, three for each of the strides 8, 16 and 32
    ((10.0, 13.0), (16.0, 30.0), (33.0, 23.0)),
    ((30.0, 61.0), (62.0, 45.0), (59.0, 119.0)),
    ((116.0, 90.0), (156.0, 198.0), (373.0, 326.0)),
)
STRIDES = (8, 16, 32)


def conv(inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> nn.Sequential:
    """Convolution, normalisation, SiLU."""
    return convolution(inputs, outputs, kernel, stride, activation=nn.SiLU)


class Bottleneck(nn.Module):
    """1x1 and 3x3, beside a shortcut if asked."""

    def __init__(self, channels: int, residual: bool) -> None:
        super().__init__()
        self.branch = nn.Sequential(conv(channels, channels), conv(channels, channels, 3))
        self.residual = residual

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.branch(x) if self.residual else self.branch(x)


class CrossStage(nn.Module):
    """Half of the channels goes through the bottlenecks, half around them (C3)."""

    def __init__(self, inputs: int, outputs: int, depth: int, residual: bool = True) -> None:
        super().__init__()
        half = outputs // 2
        self.through = conv(inputs, half)
        self.around = conv(inputs, half)
        self.bottlenecks = nn.Sequential(*[Bottleneck(half, residual) for _ in range(depth)])
        self.merge = conv(outputs, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.merge(torch.cat((self.bottlenecks(self.through(x)), self.around(x)), 1))


class PyramidPooling(nn.Module):
    """Three 5x5 max-pools in a row, all results side by side (SPPF)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = conv(channels, channels // 2)
        self.pool = nn.MaxPool2d(5, 1, 2)
        self.merge = conv(2 * channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.reduce(x)
        second = self.pool(first)
        third = self.pool(second)
        return self.merge(torch.cat((first, second, third, self.pool(third)), 1))


class Decode(nn.Module):
    """A head: 1x1 convolution to three anchors, then boxes in pixels, objectness and class probabilities."""

    def __init__(self, inputs: int, classes: int, cells: int, level: int) -> None:
        super().__init__()
        self.stride, self.cells, self.outputs = STRIDES[level], cells, 5 + classes
        self.conv = nn.Conv2d(inputs, 3 * self.outputs, 1)
        rows, columns = torch.meshgrid(torch.arange(cells), torch.arange(cells), indexing="ij")
        grid = torch.stack((columns, rows), 2).float() - 0.5
        self.register_buffer("grid", grid.expand(1, 3, cells, cells, 2).clone(), persistent=False)
        anchors = torch.tensor(ANCHORS[level]).view(1, 3, 1, 1, 2)
        self.register_buffer("anchors", anchors.expand(1, 3, cells, cells, 2).clone(), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch = x.shape[0]
        y = self.conv(x).view(batch, 3, self.outputs, self.cells, self.cells).permute(0, 1, 3, 4, 2)
        centre, size, scores = y.sigmoid().split((2, 2, self.outputs - 4), 4)
        boxes = torch.cat(((centre * 2 + self.grid) * self.stride, (size * 2) ** 2 * self.anchors, scores), 4)
        return boxes.view(batch, 3 * self.cells**2, self.outputs)


class Detector(nn.Module):
    """Backbone, neck (top-down, then bottom-up) and heads."""

    def __init__(self, width: int, depth: int, classes: int, size: int) -> None:
        super().__init__()
        w = width
        self.stem = nn.Sequential(
            nn.Conv2d(3, w, 6, 2, 2, bias=False), nn.BatchNorm2d(w), nn.SiLU(), conv(w, 2 * w, 3, 2)
        )
        self.small = nn.Sequential(
            CrossStage(2 * w, 2 * w, depth), conv(2 * w, 4 * w, 3, 2), CrossStage(4 * w, 4 * w, 2 * depth)
        )
        self.medium = nn.Sequential(conv(4 * w, 8 * w, 3, 2), CrossStage(8 * w, 8 * w, 3 * depth))
        self.large = nn.Sequential(
            conv(8 * w, 16 * w, 3, 2),
            CrossStage(16 * w, 16 * w, depth),
            PyramidPooling(16 * w),
            conv(16 * w, 8 * w),
        )
        self.upsample = nn.Upsample(scale_factor=2.0, mode="nearest")
        self.medium_down = nn.Sequential(CrossStage(16 * w, 8 * w, depth, False), conv(8 * w, 4 * w))
        self.small_out = CrossStage(8 * w, 4 * w, depth, False)
        self.small_up = conv(4 * w, 4 * w, 3, 2)
        self.medium_out = CrossStage(8 * w, 8 * w, depth, False)
        self.medium_up = conv(8 * w, 8 * w, 3, 2)
        self.large_out = CrossStage(16 * w, 16 * w, depth, False)
        self.heads = nn.ModuleList(
            Decode(channels * w, classes, size // STRIDES[level], level) for level, channels in enumerate((4, 8, 16))
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        small = self.small(self.stem(image))
        medium = self.medium(small)
        large = self.large(medium)
        down = self.medium_down(torch.cat((self.upsample(large), medium), 1))
        small = self.small_out(torch.cat((self.upsample(down), small), 1))
        medium = self.medium_out(torch.cat((self.small_up(small), down), 1))
        large = self.large_out(torch.cat((self.medium_up(medium), large), 1))
        return torch.cat([head(x) for head, x in zip(self.heads, (small, medium, large), strict=True)], 1)


def detector(width: int = 32, depth: int = 1, classes: int = 80, size: int = 640) -> nn.Module:
    """YOLOv5s-class by default: input `[N, 3, size, size]`, output `[N, 63 (size / 32)^2, 5 + classes]`."""
    model = Detector(width, depth, classes, size)
    initialise(model)
    damp(
        (block.branch[1][1] for block in model.modules() if isinstance(block, Bottleneck) and block.residual),
        0.3,
    )
    damp((head.conv for head in model.heads), 0.3)  # scores and boxes away from the ends of the sigmoid
    return calibrate(model, sample_images(size))
