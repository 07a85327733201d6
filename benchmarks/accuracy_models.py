"""The networks of ``bench_accuracy.py``, for images of 32 x 32: as they are before training."""

from __future__ import annotations

import torch
from torch import nn

from accuracy_data import CLASSES, SIZE
from models.layers import convolution
from models.resnet import BasicBlock, ResNet
from models.vit import VisionTransformer

HEAD = 64  # channels of an attention head


def resnet18(width: int = 64) -> nn.Module:
    """ResNet-18 as it is used on CIFAR: a 3x3 stem without pooling, then widths of 1, 2, 4 and 8 times ``width``."""
    model = ResNet(BasicBlock, (2, 2, 2, 2), width, CLASSES)
    model.stem = convolution(3, width, 3)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model


def vit(width: int = 192, depth: int = 8) -> nn.Module:
    """A vision transformer on patches of 4 x 4."""
    heads = max(width // HEAD, 1)
    model = VisionTransformer(size=SIZE, patch=4, width=width, depth=depth, heads=heads, classes=CLASSES)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
    with torch.no_grad():
        for parameter in (model.class_token, model.positions):
            nn.init.trunc_normal_(parameter, std=0.02)
    return model
