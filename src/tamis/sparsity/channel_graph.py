"""Which tensors have to be permuted together when the channels between layers change their order.

The graph is Torch-Pruning's (Fang et al., "DepGraph: Towards Any Structural Pruning", 2023), traced from a run of
the model. What couples channels for removal couples them for reordering too; but an order has further bounds,
which are found here: groups of convolutions and norms, and parts of a concatenation.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tamis.sparsity.dependency_graph import torch_pruning, traced
from tamis.sparsity.masks import CONVOLUTIONS, TRANSPOSED, is_depthwise

_NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.PReLU,
)
_MOST_PLACES = 1 << 20  # along one axis; a chain of reshapes in a circle counts without end
_PER_CHANNEL = ("weight", "bias", "running_mean", "running_var")


class Refused(Exception):
    """Channels that cannot change their order; says why."""


@dataclass(frozen=True)
class Axis:
    """An axis of a tensor along which channels lie.

    Attributes:
        tensor: a parameter or buffer.
        axis: the axis.
        roots: for each place along the axis, all groups counted, the channel that lies there; -1 for another.
        groups: of a convolution that reduces over the axis: its rows are as many groups, each with its own part
            of `roots`.
        bins: the places are as many bins in a row, which no channel may leave.
    """

    tensor: torch.Tensor
    axis: int
    roots: torch.Tensor
    groups: int = 1
    bins: int = 1

    def order(self, channels: torch.Tensor) -> torch.Tensor:
        """The place that each place takes its values from when channel i takes those of `channels[i]`."""
        places: dict[int, list[int]] = {}
        for place, root in enumerate(self.roots.tolist()):
            places.setdefault(root, []).append(place)
        order = torch.arange(len(self.roots))
        for channel, source in enumerate(channels.tolist()):
            if channel in places:
                order[places[channel]] = torch.tensor(places[source])
        return order

    def permute(self, tensor: torch.Tensor, channels: torch.Tensor) -> None:
        """Reorder `tensor`, which is shaped as `self.tensor`, in place."""
        order = self.order(channels)
        size = len(order) // self.groups
        for group, rows in enumerate(tensor.detach().chunk(self.groups, 0) if self.groups > 1 else [tensor.detach()]):
            local = order[group * size : (group + 1) * size] - group * size
            rows.copy_(rows.index_select(self.axis, local.to(tensor.device)))


@dataclass(frozen=True)
class ChannelGroup:
    """Axes that are permuted together.

    Attributes:
        axes: all of them, each tensor and axis once.
        classes: for each channel, a number; channels of one number may trade places.
    """

    axes: tuple[Axis, ...]
    classes: torch.Tensor


class ChannelGraph:
    """The dependency graph of a model; the model is run once, and its parameters need gradients for that."""

    def __init__(self, model: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        library = torch_pruning("channel permutation")
        self._index = library._helpers._HybridIndex  # a place, and the channel that it comes from
        remedy = "check that the model runs on the example inputs, in float64 too"
        self._graph = traced(library, model, arguments, named, remedy=remedy)

    def inputs_of(self, module: nn.Module, channels: int) -> ChannelGroup:
        """All axes that are permuted with the input channels of `module`; raises `Refused`."""
        if module not in self._graph.module2node:
            raise Refused("Torch-Pruning does not see what produces its inputs")
        axes: dict[tuple[int, int], Axis] = {}
        produced = False
        for (node, handler), roots in self._coupled(module, channels).items():
            is_input = bool(self._graph.is_in_channel_pruning_fn(handler))
            for axis in _axes(node.module, node.pruning_dim, is_input, roots):
                axes.setdefault((id(axis.tensor), axis.axis), axis)
            produced |= _produces(node.module, is_input)
        if not produced:
            raise Refused("its inputs come from outside of the model")
        return ChannelGroup(tuple(axes.values()), _classes(axes.values(), channels))

    def _coupled(self, module: nn.Module, channels: int) -> dict[tuple[Any, Any], dict[int, int]]:
        """All that is coupled with the input channels of `module`: by node and handler, from place to channel.

        As Torch-Pruning's `get_pruning_group`, which does not end where a chain of reshapes keeps giving the same
        places in another order, and keeps one of several channels of a place.
        """
        start = self._graph.module2node[module], self._graph.get_pruner_of_module(module).prune_in_channels
        reached: dict[tuple[Any, Any], dict[int, int]] = {}
        waiting = [(start, [self._index(channel, channel) for channel in range(channels)])]
        while waiting:
            place, indices = waiting.pop()
            known = reached.setdefault(place, {})
            new = [index for index in indices if index.idx not in known]
            known.update((index.idx, index.root_idx) for index in new)
            if any(known[index.idx] != index.root_idx for index in indices):
                raise Refused("one channel feeds several of its inputs")
            if any(index.root_idx is None or not 0 <= index.idx < _MOST_PLACES for index in new):
                raise Refused("Torch-Pruning loses track of its channels")
            node, handler = place
            for dependency in node.dependencies if new else ():
                if dependency.is_triggered_by(handler):
                    mapped = new
                    for mapping in dependency.index_mapping:
                        mapped = mapped if mapping is None else mapping(mapped)
                    waiting.append(((dependency.target, dependency.handler), mapped))
        return {place: roots for place, roots in reached.items() if roots}


def _produces(module: Any, is_input: bool) -> bool:
    """Whether the values of channels are made there, rather than passed on or read."""
    if isinstance(module, (nn.Embedding, nn.Parameter, nn.MultiheadAttention)):
        return True
    makes = isinstance(module, (nn.Linear, *CONVOLUTIONS, *TRANSPOSED)) and not is_depthwise(module)
    return makes and not is_input


def _axes(module: Any, dimension: int, is_input: bool, places: dict[int, int]) -> list[Axis]:
    """The axes of the tensors of a module along which the channels lie."""
    if isinstance(module, nn.Parameter):
        return [_axis(module, dimension % module.ndim, places)]
    if isinstance(module, nn.MultiheadAttention):
        return _attention(module, places)
    if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) != 1:
        raise Refused("a layer norm over several axes")
    if isinstance(module, _NORMS):
        bins = module.num_groups if isinstance(module, nn.GroupNorm) else 1
        if isinstance(module, nn.PReLU) and module.num_parameters == 1:
            return []
        return _along_first(module, _PER_CHANNEL, places, bins)
    if is_depthwise(module):
        return _along_first(module, ("weight", "bias"), places, 1)
    if isinstance(module, nn.Embedding):
        return [_axis(module.weight, 1, places)]
    if isinstance(module, nn.Linear):
        return [_axis(module.weight, 1, places)] if is_input else _along_first(module, ("weight", "bias"), places, 1)
    if isinstance(module, (*CONVOLUTIONS, *TRANSPOSED)):
        return _convolution(module, is_input, places)
    if type(module).__name__ == "_OutputOp":  # Torch-Pruning's mark
        raise Refused("the model gives these channels out")
    if isinstance(module, nn.Module) and next(module.parameters(), None) is not None:
        raise Refused(f"a {type(module).__name__} lies between")
    return []


def _convolution(module: nn.modules.conv._ConvNd, is_input: bool, places: dict[int, int]) -> list[Axis]:
    groups = module.groups
    if isinstance(module, TRANSPOSED):
        if groups != 1:
            raise Refused("a grouped transposed convolution")
        if is_input:
            return [_axis(module.weight, 0, places)]
        return [_axis(module.weight, 1, places), *_along_first(module, ("bias",), places, 1)]
    if is_input:
        return [Axis(module.weight, 1, _roots(module.in_channels, places), groups=groups, bins=groups)]
    return _along_first(module, ("weight", "bias"), places, groups)


def _attention(module: nn.MultiheadAttention, places: dict[int, int]) -> list[Axis]:
    """Attention as a part of a residual stream: it reads channels and adds to the same; its heads stay."""
    if module.in_proj_weight is None or module.bias_k is not None:
        raise Refused("an attention with several widths, or with biases for keys")
    projection = module.out_proj
    return [_axis(module.in_proj_weight, 1, places), *_along_first(projection, ("weight", "bias"), places, 1)]


def _along_first(module: nn.Module, names: Sequence[str], places: dict[int, int], bins: int) -> list[Axis]:
    tensors = [getattr(module, name, None) for name in names]
    return [_axis(tensor, 0, places, bins) for tensor in tensors if isinstance(tensor, torch.Tensor)]


def _axis(tensor: torch.Tensor, axis: int, places: dict[int, int], bins: int = 1) -> Axis:
    return Axis(tensor, axis, _roots(tensor.shape[axis], places), bins=bins)


def _roots(size: int, places: dict[int, int]) -> torch.Tensor:
    roots = torch.full((size,), -1, dtype=torch.long)
    if places:
        if max(places) >= size:
            raise Refused("Torch-Pruning's channels do not fit the tensors")
        roots[torch.tensor(list(places))] = torch.tensor(list(places.values()))
    return roots


def _classes(axes: Iterable[Axis], channels: int) -> torch.Tensor:
    """Number the channels by where they occur, how often, and in which bins."""
    occurrences: list[list[tuple[int, ...]]] = [[] for _ in range(channels)]
    for axis in axes:
        width = len(axis.roots) // axis.bins
        found: list[list[int]] = [[] for _ in range(channels)]
        for place, root in enumerate(axis.roots.tolist()):
            if root >= 0:
                found[root].append(place // width)
        for channel, bins in enumerate(found):
            occurrences[channel].append(tuple(bins))
    numbers: dict[tuple[tuple[int, ...], ...], int] = {}
    return torch.tensor([numbers.setdefault(tuple(each), len(numbers)) for each in occurrences])
