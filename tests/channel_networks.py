"""Small networks with the joins that channels meet in real ones; weights and norms drawn at random, in float64."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, groups: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False, groups=groups)
        self.second_norm = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.first_norm(self.first(x)))
        return F.relu(self.second_norm(self.second(inner)) + self.shortcut(x))


class ResNet(nn.Module):
    def __init__(self, groups: int = 1) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.blocks = nn.Sequential(
            Residual(16, 16, 1, groups), Residual(16, 32, 2, groups), Residual(32, 32, 1, groups)
        )
        self.classify = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.classify(self.blocks(self.stem(x)).mean((2, 3)))
        return scores


class Inverted(nn.Sequential):
    def __init__(self, inputs: int, wide: int, outputs: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, wide, 1, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU6(),
            nn.Conv2d(wide, wide, 3, 1, 1, groups=wide, bias=False),
            nn.BatchNorm2d(wide),
            nn.PReLU(wide),
            nn.Conv2d(wide, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.joined = inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = super().forward(x)
        return x + y if self.joined else y


def mobile_net() -> nn.Sequential:
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU6()),
        Inverted(16, 32, 16),
        Inverted(16, 48, 24),
        Inverted(24, 48, 24),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 10),
    )


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        apart = [each(y).unflatten(2, (self.heads, -1)).transpose(1, 2) for each in (self.query, self.key, self.value)]
        joined: Tensor = self.out(F.scaled_dot_product_attention(*apart).transpose(1, 2).flatten(2))
        return x + joined


class SharedHeads(nn.Module):
    """Attention of four heads of queries over two of keys and values, each used twice."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.query, self.out = nn.LayerNorm(width), nn.Linear(width, width), nn.Linear(width, width)
        self.key, self.value = nn.Linear(width, width // 2), nn.Linear(width, width // 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        query = self.query(y).unflatten(2, (4, -1)).transpose(1, 2)
        twice = []
        for each in (self.key, self.value):
            heads = each(y).unflatten(2, (2, -1)).transpose(1, 2)
            size = heads.shape
            twice.append(heads[:, :, None].expand(size[0], 2, 2, *size[2:]).reshape(size[0], 4, *size[2:]))
        joined: Tensor = self.out(F.scaled_dot_product_attention(query, *twice).transpose(1, 2).flatten(2))
        return x + joined


class Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        inner: Tensor = self.down(F.gelu(self.up(self.norm(x))))
        return x + inner


class Transformer(nn.Module):
    """Token and position embeddings, attention written out, and MLPs; or PyTorch's own encoder."""

    def __init__(self, own: bool, shared: bool = False) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(50, 32), nn.Parameter(torch.randn(1, 7, 32))
        self.blocks: nn.Module = nn.Sequential(Attention(32, 4), Mlp(32), Attention(32, 4), Mlp(32))
        if not own:
            self.blocks = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 2)
        if shared:
            self.blocks = nn.Sequential(SharedHeads(32), Mlp(32), SharedHeads(32), Mlp(32))
        self.norm, self.classify = nn.LayerNorm(32), nn.Linear(32, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        scores: Tensor = self.classify(self.norm(self.blocks(self.tokens(tokens) + self.positions)))
        return scores


class Joined(nn.Module):
    """A concatenation that is normed in groups, a part of which is read elsewhere, and a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 8, 3, padding=1)
        self.norm, self.mix = nn.GroupNorm(2, 24), nn.Conv2d(24, 16, 3)
        self.narrow, self.up, self.end = nn.Conv2d(16, 8, 1), nn.ConvTranspose2d(8, 16, 2), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        left = F.relu(self.left(x))
        x = F.relu(self.mix(self.norm(torch.cat([left, self.right(left)], 1))))
        ended: Tensor = self.end(F.relu(self.up(F.relu(self.narrow(x)))))
        return ended


class Divided(nn.Module):
    """Channels cut in two, and one of them used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(3, 16, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(24, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.first(x).relu().chunk(2, 1)
        ended: Tensor = self.third(torch.cat([one, self.second(other), one], 1))
        return ended


class Flattened(nn.Module):
    """A convolution whose map is flattened into a linear layer, and a residual join in front."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.hidden, self.end = nn.Linear(16 * 16, 32), nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        x = F.relu(x + self.second(x)).flatten(1)
        ended: Tensor = self.end(F.relu(self.hidden(x)))
        return ended


IMAGES = (2, 3, 16, 16)
NETWORKS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "resnet": (ResNet, IMAGES),
    "resnext": (lambda: ResNet(groups=2), IMAGES),
    "mobilenet": (mobile_net, IMAGES),
    "transformer": (lambda: Transformer(own=True), ()),
    "encoder": (lambda: Transformer(own=False), ()),
    "shared-heads": (lambda: Transformer(own=True, shared=True), ()),
    "joined": (Joined, (2, 3, 8, 8)),
    "divided": (Divided, (2, 3, 8, 8)),
    "flattened": (Flattened, (2, 3, 4, 4)),
}


def network(name: str) -> tuple[nn.Module, Tensor]:
    """A network in eval mode, and inputs for it."""
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    model: nn.Module = make()
    for module in model.modules():
        for tensor in (getattr(module, "running_mean", None), getattr(module, "bias", None)):
            if isinstance(tensor, Tensor):
                nn.init.normal_(tensor, 0, 0.3)
        if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm, nn.PReLU)):
            nn.init.normal_(module.weight, 1, 0.3)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
        if isinstance(module, (nn.Linear, nn.Conv2d)):  # some inputs matter more, as in trained networks
            size = module.weight.shape[1]
            module.weight.data *= 3 * torch.rand(size).pow(2).reshape(1, size, *(1,) * (module.weight.ndim - 2))
    inputs = torch.randn(shape, dtype=torch.float64) if shape else torch.randint(50, (2, 7))
    return model.double().eval(), inputs
