"""Vision transformer (Dosovitskiy et al., 2020)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from models.conditioning import initialise


class Attention(nn.Module):
    """Self-attention with one fused projection for queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.projections = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        split = self.projections(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        queries, keys, values = split.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = functional.scaled_dot_product_attention(queries, keys, values)
        return self.output(mixed.transpose(1, 2).reshape(batch, tokens, width))


class Block(nn.Module):
    """Attention and a two-layer perceptron, each after its normalisation and beside a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.before_attention = nn.LayerNorm(width, eps=1e-6)
        self.attention = Attention(width, heads)
        self.before_perceptron = nn.LayerNorm(width, eps=1e-6)
        self.perceptron = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.before_attention(x))
        return x + self.perceptron(self.before_perceptron(x))


class VisionTransformer(nn.Module):
    """Patches, class token, positions, blocks, normalisation, classifier on the class token."""

    def __init__(self, *, size: int, patch: int, width: int, depth: int, heads: int, classes: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        tokens = (size // patch) ** 2 + 1
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.class_token = nn.Parameter(torch.randn(1, 1, width, generator=generator))
        self.positions = nn.Parameter(0.3 * torch.randn(1, tokens, width, generator=generator))
        self.blocks = nn.Sequential(*[Block(width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.classifier = nn.Linear(width, classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.patches(image).flatten(2).transpose(1, 2)
        x = torch.cat((self.class_token.expand(x.shape[0], -1, -1), x), 1) + self.positions
        return self.classifier(self.norm(self.blocks(x))[:, 0])


def vit(
    *,
    size: int = 224,
    patch: int = 16,
    width: int = 768,
    depth: int = 12,
    heads: int = 12,
    classes: int = 1000,
) -> nn.Module:
    """A vision transformer, ViT-B/16 by default: input `[N, 3, size, size]`, output `[N, classes]`."""
    return initialise(
        VisionTransformer(size=size, patch=patch, width=width, depth=depth, heads=heads, classes=classes),
        gain=1.0,
    ).eval()
