"""MobileNetV2, MobileNetV3 and EfficientNet-B0: depthwise convolutions, inverted residuals, gates.

Sandler et al., 2018; Howard et al., 2019; Tan and Le, 2019.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from models.conditioning import calibrate, damp, initialise, sample_images
from models.layers import InvertedResidual, convolution, divisible


def mobilenet_v2(width: float = 1.0, depth: float = 1.0, classes: int = 1000, size: int = 224) -> nn.Module:
    """MobileNetV2 (ReLU6): input `[N, 3, size, size]`, output `[N, classes]`."""
    rows = (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )
    channels = divisible(32 * width)
    layers: list[nn.Module] = [convolution(3, channels, 3, 2, activation=nn.ReLU6)]
    for expansion, wanted, repeats, stride in rows:
        outputs = divisible(wanted * width)
        for index in range(max(1, round(repeats * depth))):
            step = stride if index == 0 else 1
            layers.append(InvertedResidual(channels, channels * expansion, outputs, 3, step, activation=nn.ReLU6))
            channels = outputs
    last = divisible(1280 * max(width, 0.1))
    layers.append(convolution(channels, last, 1, activation=nn.ReLU6))
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(last, classes)]
    return _settled(layers, size)


def mobilenet_v3(width: float = 1.0, classes: int = 1000, size: int = 224) -> nn.Module:
    """MobileNetV3-small (HardSwish, HardSigmoid): input `[N, 3, size, size]`, output `[N, classes]`."""
    rows = (  # kernel, expanded, outputs, squeeze, hard swish, stride
        *((3, 16, 16, True, False, 2), (3, 72, 24, False, False, 2), (3, 88, 24, False, False, 1)),
        *((5, 96, 40, True, True, 2), (5, 240, 40, True, True, 1), (5, 240, 40, True, True, 1)),
        *((5, 120, 48, True, True, 1), (5, 144, 48, True, True, 1), (5, 288, 96, True, True, 2)),
        *((5, 576, 96, True, True, 1), (5, 576, 96, True, True, 1)),
    )
    channels = divisible(16 * width)
    layers: list[nn.Module] = [convolution(3, channels, 3, 2, activation=nn.Hardswish)]
    for kernel, expanded, wanted, squeeze, hard, stride in rows:
        hidden, outputs = divisible(expanded * width), divisible(wanted * width)
        activation: Callable[[], nn.Module] = nn.Hardswish if hard else nn.ReLU
        squeezed = divisible(hidden / 4) if squeeze else 0
        layers.append(
            InvertedResidual(
                *(channels, hidden, outputs, kernel, stride),
                activation=activation,
                squeezed=squeezed,
                gate=nn.Hardsigmoid,
            )
        )
        channels = outputs
    layers.append(convolution(channels, 6 * channels, 1, activation=nn.Hardswish))
    hidden = divisible(1024 * width)
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6 * channels, hidden), nn.Hardswish()]
    layers += [nn.Dropout(0.2), nn.Linear(hidden, classes)]
    return _settled(layers, size)


def efficientnet_b0(width: float = 1.0, depth: float = 1.0, classes: int = 1000, size: int = 224) -> nn.Module:
    """EfficientNet-B0 (SiLU): input `[N, 3, size, size]`, output `[N, classes]`."""
    rows = (  # expansion, kernel, outputs, repeats, stride
        *((1, 3, 16, 1, 1), (6, 3, 24, 2, 2), (6, 5, 40, 2, 2), (6, 3, 80, 3, 2)),
        *((6, 5, 112, 3, 1), (6, 5, 192, 4, 2), (6, 3, 320, 1, 1)),
    )
    channels = divisible(32 * width)
    layers: list[nn.Module] = [convolution(3, channels, 3, 2, activation=nn.SiLU)]
    for expansion, kernel, wanted, repeats, stride in rows:
        outputs = divisible(wanted * width)
        for index in range(max(1, round(repeats * depth))):
            step = stride if index == 0 else 1
            hidden, squeezed = channels * expansion, max(1, channels // 4)
            layers.append(
                InvertedResidual(*(channels, hidden, outputs, kernel, step), activation=nn.SiLU, squeezed=squeezed)
            )
            channels = outputs
    last = divisible(1280 * width)
    layers.append(convolution(channels, last, 1, activation=nn.SiLU))
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(last, classes)]
    return _settled(layers, size)


def _settled(layers: list[nn.Module], size: int) -> nn.Module:
    model = initialise(nn.Sequential(*layers))
    damp((block.project[1] for block in model if isinstance(block, InvertedResidual) and block.residual), 0.3)
    return calibrate(model, sample_images(size))
