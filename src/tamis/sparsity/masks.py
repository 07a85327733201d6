"""Which parameters of a torch model can be sparse, along which axis, and the masks that make them so.

Sparse tensor cores skip zeros along the reduction of a matrix product. For a linear layer `y = x W^T` that is
the second axis of the weight; for a convolution it is the input channels: the groups of four are `w[k,
4c:4c+4, r, s]`, within one tap of the filter, never along the last axis of the tensor.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from tamis.errors import SparsityError
from tamis.formats import NM, divides, parse_pattern
from tamis.formats.pattern import misfit
from tamis.sparsity.computed import present_weight

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NO_ELEMENTS = "its weight holds no elements"
_ATTENTION_WEIGHTS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


@dataclass(frozen=True)
class LayerChoice:
    """A weight of a layer that computes matrix products or convolutions.

    Attributes:
        name: qualified name of the module.
        module: the module that owns the weight.
        parameter: name of the weight within the module, such as `weight` or `in_proj_weight`.
        axis: the reduction axis of the weight.
        reason: why the weight cannot follow the pattern; None where it can.
    """

    name: str
    module: nn.Module
    parameter: str
    axis: int
    reason: str | None = None

    @property
    def full_name(self) -> str:
        """Name of the weight as in the state dict of an unpruned model."""
        return f"{self.name}.{self.parameter}" if self.name else self.parameter

    @property
    def identity(self) -> int | str:
        """Equal for layers that share one parameter."""
        weight = self.weight
        return id(weight) if isinstance(weight, nn.Parameter) else self.full_name

    @property
    def weight(self) -> torch.Tensor:
        """The weight as the module sees it, masks applied."""
        return present_weight(self.module, self.parameter)


def as_pattern(pattern: str | NM) -> NM:
    """The N:M pattern written as `"2:4"`, or the pattern itself; raises `FormatError` or `SparsityError`."""
    parsed = parse_pattern(pattern) if isinstance(pattern, str) else pattern
    if not isinstance(parsed, NM):
        raise SparsityError(f"'{parsed}' is not an n:m pattern", remedy="write it as '2:4'")
    return parsed


def prunable(model: nn.Module, pattern: str | NM = "2:4") -> list[LayerChoice]:
    """Every weight of a linear, convolution or attention layer, with its reduction axis.

    Weights that the pattern does not fit carry a reason: depthwise and grouped convolutions with too few
    channels per group, a number of channels such as the three of an image, weights shared with a layer that
    is not a matrix product. A weight shared by several layers appears once for each.
    """
    wanted = as_pattern(pattern)
    if not isinstance(model, nn.Module):
        raise SparsityError(f"the model is a {type(model).__name__}", remedy="give a torch module")
    layers = [
        LayerChoice(name, module, parameter, axis)
        for name, module in model.named_modules()
        for parameter, axis in _weights(module)
    ]
    axes = {layer.full_name: layer.axis for layer in layers}
    owners: dict[int, list[str]] = defaultdict(list)
    for name, tensor in model.named_parameters(remove_duplicate=False):
        owners[id(tensor)].append(name)
    return [
        replace(layer, reason=shape_misfit(layer, wanted) or _conflict(layer, owners[id(layer.weight)], axes))
        for layer in layers
    ]


def is_depthwise(module: nn.Module) -> bool:
    """Whether a module is a convolution of many groups with one channel in and out each."""
    if not isinstance(module, (*CONVOLUTIONS, *TRANSPOSED)):
        return False
    return 1 < module.groups == module.in_channels == module.out_channels


def follows(mask: torch.Tensor, pattern: NM, axis: int) -> bool:
    """Whether no group along the axis has more than `pattern.n` members that are true; the last may be shorter."""
    members = torch.unflatten(lengthened(mask, pattern.m, axis, False), axis, (-1, pattern.m))
    return not bool((members.sum(axis % mask.ndim + 1) > pattern.n).any())


def nm_mask(scores: torch.Tensor, pattern: NM, axis: int) -> torch.Tensor:
    """Mask that keeps the `pattern.n` highest scores of each aligned group of `pattern.m` along `axis`.

    Equal scores: the lower index wins, so masks are the same on every machine. The last group of a long axis may be
    shorter (`tamis.formats.divides`). For groups of four, memory moves 13.5 bytes an element and 5.25 times its size:
    34.5 bytes in float32, 24 in 16 bits.

    Raises:
        SparsityError: groups of `pattern.m` do not cover the axis, or a score is NaN.
    """
    whole = torch.uint8 if scores.dtype == torch.bool else scores.dtype
    lowest = float("-inf") if whole.is_floating_point else torch.iinfo(whole).min
    return _mask(scores, pattern, axis, torch.Tensor.copy_, lowest)


def magnitude_mask(weight: torch.Tensor, pattern: NM, axis: int) -> torch.Tensor:
    """`nm_mask` by absolute value; equal to `tamis.formats.magnitude_mask` on the same numbers."""
    return _mask(weight, pattern, axis, lambda members, values: torch.abs(values, out=members), 0.0)


def lengthened(tensor: torch.Tensor, m: int, axis: int, filler: float) -> torch.Tensor:
    """The tensor with its last group along the axis filled up to `m` members; itself where nothing is missing."""
    missing = -tensor.shape[axis] % m
    if not missing:
        return tensor
    shape = list(tensor.shape)
    shape[axis] = missing
    return torch.cat((tensor, tensor.new_full(shape, filler)), axis)


def _mask(
    scores: torch.Tensor,
    pattern: NM,
    axis: int,
    bring: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    lowest: float,
) -> torch.Tensor:
    """As `nm_mask`, of what `bring` makes of the scores when it writes them into its first argument.

    `lowest` is what a shorter last group is filled up with: no more than any score.
    """
    axis %= scores.ndim
    size = scores.shape[axis]
    if not divides(pattern.m, size):
        raise SparsityError(f"axis {axis} has {size} elements, not a multiple of {pattern.m}")
    if size % pattern.m:
        whole = lengthened(scores.detach(), pattern.m, axis, lowest)
        return _mask(whole, pattern, axis, bring, lowest).narrow(axis, 0, size).contiguous()
    # One contiguous plane for each member of the groups: comparisons then read memory in order, which sorting
    # 4 million groups of four, or comparing within them, does not.
    grouped = torch.unflatten(scores.detach(), axis, (size // pattern.m, pattern.m)).movedim(axis + 1, 0)
    members = bring(torch.empty(grouped.shape, dtype=grouped.dtype, device=grouped.device), grouped)
    # How many members of the group come before each one: at first, all that stand behind it.
    kind = torch.uint8 if pattern.m < 256 else torch.int32
    rank = torch.arange(pattern.m - 1, -1, -1, dtype=kind, device=scores.device)
    rank = rank.view(-1, *[1] * scores.ndim).expand(members.shape).contiguous()
    for index in range(pattern.m - 1):
        first = members[index] >= members[index + 1 :]
        rank[index + 1 :] += first
        rank[index] -= first.sum(0, dtype=kind)
    mask = torch.empty(scores.shape, dtype=torch.bool, device=scores.device)
    torch.lt(rank.movedim(0, axis + 1), pattern.n, out=torch.unflatten(mask, axis, (-1, pattern.m)))
    # At the end, since a GPU is waited for here; NaN passes through a maximum.
    if members.numel() and bool(torch.isnan(members.amax())):
        raise SparsityError("scores contain NaN", remedy="prune a model whose weights are finite")
    return mask


def _weights(module: nn.Module) -> Iterator[tuple[str, int]]:
    """The weights of a module that take part in products, each with its reduction axis."""
    if isinstance(module, (nn.Linear, *CONVOLUTIONS)):
        yield "weight", 1
    elif isinstance(module, TRANSPOSED):
        yield "weight", 0
    elif isinstance(module, nn.MultiheadAttention):
        for parameter in _ATTENTION_WEIGHTS:
            if getattr(module, parameter, None) is not None:
                yield parameter, 1


def unlike(tensor: torch.Tensor, weight: torch.Tensor, what: str = "mask") -> str | None:
    """Why a mask, or what else has one value for each element, does not belong to a weight; None if it may."""
    if tensor.shape == weight.shape:
        return None
    return f"its {what} has shape {list(tensor.shape)}, its weight {list(weight.shape)}"


def shape_misfit(layer: LayerChoice, pattern: NM) -> str | None:
    """Why the shape of a weight does not fit the pattern; None if it does.

    Raises `SparsityError` if it has no shape yet.
    """
    module, groups = layer.module, 1
    weight = getattr(module, layer.parameter)
    if isinstance(weight, UninitializedParameter):
        raise SparsityError("its weight has no shape yet", layer=layer.full_name, remedy="run the model once")
    if not weight.numel():
        return NO_ELEMENTS
    size = int(weight.shape[layer.axis])
    if isinstance(module, (*CONVOLUTIONS, *TRANSPOSED)):
        groups = module.groups
        size = module.in_channels // groups
    return axis_misfit(size, groups, pattern, matrix=weight.ndim == 2)


def require_values(layer: LayerChoice) -> None:
    """Raise `SparsityError` if a weight is on the meta device, which knows shapes alone."""
    if layer.weight.is_meta:
        raise SparsityError(
            "its weight is on the meta device and has no values", layer=layer.full_name, remedy="load the weights first"
        )


def axis_misfit(size: int, groups: int, pattern: NM, *, matrix: bool) -> str | None:
    """Why a reduction over `size` inputs (for each of `groups` groups) cannot follow the pattern, or None.

    `matrix`: the weight is one, whose last group may be shorter.
    """
    reason = misfit(size, pattern.m, matrix=matrix)
    if reason is None:
        return None
    if groups > 1 and size == 1:
        return "depthwise: one input channel per group"
    where = f"in each of {groups} groups" if groups > 1 else "to reduce over"
    return f"{size} inputs {where}, {reason}"


def _conflict(layer: LayerChoice, sharing: list[str], axes: dict[str, int]) -> str | None:
    """Why a weight cannot be masked: another module, among the names `sharing` it, uses it otherwise."""
    others = [name for name in sharing if axes.get(name) != layer.axis]
    return f"shared with '{others[0]}', which does not reduce over the same axis" if others else None
