"""The dense parts of DLRM (Naumov et al., 2019), at the sizes of MLPerf.

The bottom network turns 13 numbers into a vector of 128. In the full model it meets 26 embedding vectors; the
27 * 26 / 2 = 351 dot products between them, behind the bottom's own 128, are the 479 inputs of the top
network.

`dlrm` is the two networks alone, chained as in the full model, with the 351 products as a second input: what
is timed is the perceptrons, and the data still flows from the bottom to the top. `dlrm_interaction` computes
the products. The embedding tables (gigabytes of look-ups, no arithmetic) are left out of both, and so is the
final sigmoid, which would only hide differences of precision.

The first layer of the bottom has too few inputs for 2:4; the last group of the top's 479 has three.
"""

from __future__ import annotations

import torch
from torch import nn

from models.conditioning import initialise
from models.mlp import perceptron


class Perceptrons(nn.Module):
    """Inputs `dense [N, 13]` and `products [N, 351]`, output `score [N, 1]`."""

    def __init__(self, bottom: tuple[int, ...], top: tuple[int, ...]) -> None:
        super().__init__()
        self.bottom = perceptron(*bottom, last_relu=True)
        self.top = perceptron(*top, last_relu=False)

    def forward(self, dense: torch.Tensor, products: torch.Tensor) -> torch.Tensor:
        return self.top(torch.cat((self.bottom(dense), products), 1))


class Interaction(nn.Module):
    """Inputs `dense [N, 13]` and `embeddings [N, tables, vector]`, output `score [N, 1]`."""

    def __init__(self, bottom: tuple[int, ...], top: tuple[int, ...], tables: int) -> None:
        super().__init__()
        self.bottom = perceptron(*bottom, last_relu=True)
        self.top = perceptron(*top, last_relu=False)
        rows, columns = torch.tril_indices(tables + 1, tables + 1, offset=-1)
        self.register_buffer("pairs", rows * (tables + 1) + columns, persistent=False)

    def forward(self, dense: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
        own = self.bottom(dense)
        vectors = torch.cat((own.unsqueeze(1), embeddings), 1)
        products = torch.bmm(vectors, vectors.transpose(1, 2)) / vectors.shape[2] ** 0.5
        return self.top(torch.cat((own, products.flatten(1)[:, self.pairs]), 1))


def dlrm(
    bottom: tuple[int, ...] = (13, 512, 256, 128), top: tuple[int, ...] = (479, 1024, 1024, 512, 256, 1)
) -> nn.Module:
    """The two networks; `products` fills the top's input behind the bottom's output."""
    return initialise(Perceptrons(bottom, top)).eval()


def dlrm_interaction(
    bottom: tuple[int, ...] = (13, 512, 256, 128),
    top: tuple[int, ...] = (1024, 1024, 512, 256, 1),
    tables: int = 26,
) -> nn.Module:
    """The two networks with the dot products between them; the top's input width follows from `tables`."""
    width = bottom[-1] + (tables + 1) * tables // 2
    return initialise(Interaction(bottom, (width, *top), tables)).eval()
