"""Swin transformer (Liu et al., 2021), from `transformers`: attention in windows, shifted by rolls."""

from __future__ import annotations

import torch
from torch import nn

from models.conditioning import initialise


class Classifier(nn.Module):
    """`transformers.SwinForImageClassification` with plain tensors in and out."""

    def __init__(
        self,
        *,
        size: int,
        patch: int,
        width: int,
        depths: tuple[int, ...],
        heads: tuple[int, ...],
        window: int,
        classes: int,
    ) -> None:
        super().__init__()
        from transformers import SwinConfig, SwinForImageClassification  # noqa: PLC0415 - slow to import

        config = SwinConfig(
            image_size=size,
            patch_size=patch,
            embed_dim=width,
            depths=list(depths),
            num_heads=list(heads),
            window_size=window,
            num_labels=classes,
        )
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(0)
            self.swin = SwinForImageClassification(config)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.swin(pixel_values=image, return_dict=True).logits


def swin(
    *,
    size: int = 224,
    patch: int = 4,
    width: int = 96,
    depths: tuple[int, ...] = (2, 2, 6, 2),
    heads: tuple[int, ...] = (3, 6, 12, 24),
    window: int = 7,
    classes: int = 1000,
) -> nn.Module:
    """A Swin transformer, Swin-T by default: input `[N, 3, size, size]`, output `[N, classes]`."""
    model = Classifier(size=size, patch=patch, width=width, depths=depths, heads=heads, window=window, classes=classes)
    return initialise(model, gain=1.0).eval()
