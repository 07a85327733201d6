"""The activations that meet a weight, as the matrix that it is multiplied with.

A convolution is a matrix product of its filters with patches of its input. Both are written here with columns
ordered (tap, channel), channels innermost: aligned groups of columns are then aligned groups of channels within
one tap, which is how sparse tensor cores group them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from tamis.errors import SparsityError
from tamis.sparsity.masks import CONVOLUTIONS, TRANSPOSED, LayerChoice

_PATCH_ELEMENTS = 1 << 24  # of patches held at a time, 64 MB

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def as_arguments(batch: Any) -> Arguments:
    """The arguments of a call: a tensor, a tuple of positional inputs or a mapping of named ones."""
    if isinstance(batch, Mapping):
        return (), dict(batch)
    return (tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)), {}


def weight_matrices(layer: LayerChoice, weight: torch.Tensor) -> torch.Tensor:
    """A weight as (groups, rows, columns): one matrix for each group of a convolution, else one in all."""
    if not isinstance(layer.module, CONVOLUTIONS):
        return weight[None]
    grouped = torch.unflatten(weight.flatten(2), 0, (layer.module.groups, -1))
    return grouped.transpose(2, 3).flatten(2)


def from_matrices(layer: LayerChoice, matrices: torch.Tensor) -> torch.Tensor:
    """The inverse of `weight_matrices`."""
    if not isinstance(layer.module, CONVOLUTIONS):
        return matrices[0]
    shape = layer.weight.shape
    return torch.unflatten(matrices, 2, (-1, shape[1])).transpose(2, 3).reshape(shape)


def input_matrices(module: nn.Module, inputs: torch.Tensor) -> Iterator[torch.Tensor]:
    """The inputs of a linear or convolution layer as (groups, samples, columns), float32 or wider, in portions.

    Convolutions with their padding (of any mode), stride and dilation; a sample is then one output position.
    """
    wide = inputs.detach().to(torch.promote_types(inputs.dtype, torch.float32))
    if not isinstance(module, CONVOLUTIONS):
        yield wide.reshape(1, -1, wide.shape[-1])
        return
    rank = len(module.kernel_size)
    batched = wide if wide.ndim == rank + 2 else wide[None]
    padded = F.pad(
        batched, _padding(module), mode="constant" if module.padding_mode == "zeros" else module.padding_mode
    )
    positions = math.prod(_outputs(module, padded.shape[2:]))
    portion = max(1, _PATCH_ELEMENTS // max(1, positions * math.prod(module.kernel_size) * module.in_channels))
    for images in torch.split(padded, portion):
        patches = torch.unflatten(images, 1, (module.groups, -1))
        for axis, (size, step, gap) in enumerate(zip(module.kernel_size, module.stride, module.dilation, strict=True)):
            windows = patches.unfold(axis + 3, gap * (size - 1) + 1, step)
            patches = windows[..., ::gap]
        # images, groups, channels, positions ..., taps ...  ->  groups, images, positions ..., taps ..., channels
        order = (1, 0, *range(3, 3 + 2 * rank), 2)
        yield patches.permute(order).reshape(module.groups, images.shape[0] * positions, -1)


def channel_squares(layer: LayerChoice, inputs: torch.Tensor) -> torch.Tensor:
    """The sum of squares of each input channel, in the shape (groups, channels of a group)."""
    wide = inputs.detach().to(torch.promote_types(inputs.dtype, torch.float32))
    if not isinstance(layer.module, (*CONVOLUTIONS, *TRANSPOSED)):
        return wide.reshape(-1, wide.shape[-1]).square().sum(0)[None]
    rank = len(layer.module.kernel_size)
    batched = wide if wide.ndim == rank + 2 else wide[None]
    return batched.transpose(0, 1).flatten(1).square().sum(1).reshape(layer.module.groups, -1)


def hessian(layer: LayerChoice, inputs: torch.Tensor) -> torch.Tensor:
    """The sum of the products of all pairs of columns over the samples: (groups, columns, columns).

    Half of the Hessian of the squared output error of each row of the weight.
    """
    total: torch.Tensor | None = None
    for matrix in input_matrices(layer.module, inputs):
        if total is None:
            total = matrix.mT @ matrix
        else:
            total.baddbmm_(matrix.mT, matrix)
    assert total is not None
    return total


def met_by(owner: nn.Module, layer: LayerChoice, arguments: Arguments) -> tuple[torch.Tensor, ...]:
    """The activations that meet the weight of `layer` when `owner` is called with `arguments`.

    One tensor; three for the fused input projection of an attention, whose rows are those of the queries, keys
    and values, in this order.
    """
    positional, named = arguments
    if owner is layer.module and not isinstance(owner, nn.MultiheadAttention):
        return ((*positional, *named.values())[0],)
    query, key, value = (
        positional[index] if index < len(positional) else named[name]
        for index, name in enumerate(("query", "key", "value"))
    )
    if owner is layer.module:
        fused = (query, key, value)
        return fused if layer.parameter == "in_proj_weight" else (fused["qkv".index(layer.parameter[0])],)
    return (_attended(owner, arguments),)


def _attended(attention: nn.Module, arguments: Arguments) -> torch.Tensor:
    """What an attention's output projection is given: the attention computed once more, with it as the identity.

    PyTorch calls no module for that projection, so that nothing can listen there.
    """
    projection = attention.out_proj
    assert isinstance(projection, nn.Module)
    weight = projection.weight
    assert isinstance(weight, torch.Tensor)
    stand_in = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        stand_in.weight.copy_(torch.eye(*weight.shape))
    attention.out_proj = stand_in
    try:
        with torch.no_grad():
            output = attention.forward(*arguments[0], **arguments[1])[0]
    finally:
        attention.out_proj = projection
    assert isinstance(output, torch.Tensor)
    return output


def require_finite(
    layer: LayerChoice,
    tensor: torch.Tensor,
    what: str = "its inputs hold",
    remedy: str = "look at the calibration data, and at the layers before it",
) -> None:
    """Raise `SparsityError` if a tensor of a layer holds NaN or infinity."""
    if not bool(torch.isfinite(tensor).all()):
        raise SparsityError(f"{what} NaN or infinity", layer=layer.full_name, remedy=remedy)


def _padding(module: nn.modules.conv._ConvNd) -> list[int]:
    """The padding as `torch.nn.functional.pad` takes it: last axis first, before and after."""
    return list(module._reversed_padding_repeated_twice)


def _outputs(module: nn.modules.conv._ConvNd, padded: torch.Size) -> list[int]:
    sizes = zip(padded, module.kernel_size, module.stride, module.dilation, strict=True)
    return [(size - gap * (kernel - 1) - 1) // step + 1 for size, kernel, step, gap in sizes]
