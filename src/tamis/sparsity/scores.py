"""How much each element of a weight matters: small pure functions, all larger where it matters more."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tamis.sparsity.masks import TRANSPOSED, LayerChoice

Scores = Callable[[LayerChoice], torch.Tensor]


def magnitude_scores(weight: torch.Tensor) -> torch.Tensor:
    """The absolute values."""
    return weight.detach().abs()


def wanda_scores(weight: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
    """Absolute values times the norms of the activations that they meet, in float32 or wider.

    Sun et al., "A Simple and Effective Pruning Approach for Large Language Models", 2023.

    Args:
        weight: of any shape.
        norms: L2 norm of each input channel over the calibration data, in a shape that broadcasts to `weight`.
    """
    wide = weight.detach().abs().to(torch.promote_types(weight.dtype, torch.float32))
    return wide * norms


def taylor_scores(weight: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """How far the loss moves, to first order, when an element becomes zero; in float32 or wider.

    Molchanov et al., "Importance Estimation for Neural Network Pruning", 2019, without the square.
    """
    wide = torch.promote_types(weight.dtype, torch.float32)
    return (weight.detach().to(wide) * gradient.to(wide)).abs()


def channel_norms(layer: LayerChoice, squares: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Norms of the input channels in a shape that broadcasts to the weight of `layer`.

    Args:
        layer: the layer.
        squares: sums of squares, each (groups, channels of a group), for equal portions of the rows.
    """
    trailing = (1,) * (layer.weight.ndim - 2)
    if isinstance(layer.module, TRANSPOSED):  # its input channels are the first axis, one group after another
        return squares[0].sqrt().reshape(-1, 1, *trailing)
    stacked = torch.cat(squares).sqrt()
    rows = layer.weight.shape[0] // len(stacked)
    return stacked.repeat_interleave(rows, 0).reshape(-1, stacked.shape[1], *trailing)
