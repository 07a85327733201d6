"""Random weights that behave like trained ones: sane activations, non-trivial normalisation statistics.

A deep network with untouched random weights explodes, dies, or gives the same logits for every input, and
then a comparison of precisions measures nothing. Three steps avoid that: fan-in initialisation, scales and
shifts of the normalisation layers drawn at random, and running statistics taken from a calibration pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@contextmanager
def one_thread() -> Iterator[None]:
    """For results that are equal to the last bit, which the number of threads would change."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def images(batch: int, size: int, seed: int = 0) -> torch.Tensor:
    """Random images `[batch, 3, size, size]`, about zero mean and unit variance.

    They are sums of noise at several resolutions: white noise alone would make all images look alike to a
    network that ends with a global average.
    """
    generator = torch.Generator().manual_seed(seed)
    with one_thread():
        total = torch.zeros(batch, 3, size, size)
        for cells in (2, 4, 16, size):
            noise = torch.randn(batch, 3, cells, cells, generator=generator)
            total += functional.interpolate(noise, size=(size, size), mode="bilinear", align_corners=False)
        return total / total.std()


def sample_images(size: int) -> torch.Tensor:
    """Images for `calibrate`, others than `images` gives by default; the smaller, the more of them."""
    return images(max(4, min(32, 8 * 224**2 // size**2)), size, seed=1)


def initialise(model: nn.Module, seed: int = 0, *, gain: float = math.sqrt(2.0)) -> nn.Module:
    """Draw all convolution, linear and normalisation parameters of `model` in place, from `seed` alone.

    Args:
        gain: standard deviation of a weight times the square root of its fan-in; sqrt(2) suits ReLU networks
            (He et al., 2015), 1 suits residual networks with layer normalisation.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(parameter: torch.Tensor | None, std: float, mean: float = 0.0) -> None:
        if parameter is not None:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std + mean)

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.Linear, *CONVOLUTIONS)):
                normal(module.weight, gain / math.sqrt(module.weight[0].numel()))
                normal(module.bias, 0.05)
            elif isinstance(module, BATCH_NORMS):
                normal(module.weight, 0.1, mean=1.0)
                normal(module.bias, 0.3, mean=0.5)  # centred, each layer would amplify rounding errors
            elif isinstance(module, nn.LayerNorm):
                normal(module.weight, 0.1, mean=1.0)
                normal(module.bias, 0.1)
    return model


def damp(layers: Iterable[nn.Module], scale: float) -> None:
    """Multiply weight and bias of these layers: the last normalisation of each residual branch.

    Trained residual networks have small scales there; without it small errors grow from block to block.
    """
    with torch.no_grad():
        for layer in layers:
            layer.weight.mul_(scale)
            layer.bias.mul_(scale)


def calibrate(model: nn.Module, sample: torch.Tensor) -> nn.Module:
    """Set all batch-normalisation statistics to those of a pass over `sample`; return it in eval mode.

    Models without batch normalisation come back unchanged. Called again after pruning, because zeros shrink
    the variances.
    """
    norms = [module for module in model.modules() if isinstance(module, BATCH_NORMS)]
    model.eval()
    if not norms:
        return model
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain average of all batches seen since the reset: here, of one
        norm.train()
    with torch.no_grad(), one_thread():
        model(sample)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.eval()
