"""Multiplications and parameters of each layer of a model."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tamis.sparsity.masks import TRANSPOSED


@dataclass(frozen=True)
class LayerCost:
    """What a layer costs.

    Attributes:
        name: of the module.
        shape: of its weight.
        macs: multiplications with its weights for the example inputs, all calls counted.
        parameters: elements of its weights and biases.
    """

    name: str
    shape: tuple[int, ...]
    macs: int
    parameters: int


def layer_costs(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[LayerCost, ...]:
    """The cost of each linear, convolution and attention layer; a copy of the model is run once."""
    probe = copy.deepcopy(model).eval()
    attention = {
        child for module in probe.modules() if isinstance(module, nn.MultiheadAttention) for child in module.children()
    }
    kinds = (nn.Linear, nn.modules.conv._ConvNd, nn.MultiheadAttention)
    layers = {
        name: module for name, module in probe.named_modules() if isinstance(module, kinds) and module not in attention
    }
    macs = dict.fromkeys(layers, 0)
    for name, module in layers.items():

        def count(module: Any, given: tuple[Any, ...], made: Any, name: str = name) -> None:
            macs[name] += _macs(module, given, made)

        module.register_forward_hook(count)
    with torch.no_grad():
        probe(*inputs)
    return tuple(
        LayerCost(name, tuple(_weight(module).shape), macs[name], sum(each.numel() for each in module.parameters()))
        for name, module in layers.items()
    )


def _macs(module: Any, given: tuple[Any, ...], made: Any) -> int:
    if isinstance(module, nn.MultiheadAttention):
        weights = sum(each.numel() for name, each in module.named_parameters() if "weight" in name)
        return int(weights * made[0].numel() // module.embed_dim)
    if isinstance(module, TRANSPOSED):
        return int(given[0].numel() * module.weight[0].numel())
    return int(made.numel() * module.weight[0].numel())


def _weight(module: Any) -> torch.Tensor:
    weight: torch.Tensor | None = module.in_proj_weight if isinstance(module, nn.MultiheadAttention) else module.weight
    return module.q_proj_weight if weight is None else weight
