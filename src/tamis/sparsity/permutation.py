"""Reorder the channels between layers so that N:M pruning keeps more, without changing what the network computes.

Pool & Yu, "Channel Permutations for N:M Sparsity", 2021, on the dependency graph of Torch-Pruning.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree

from tamis.errors import SparsityError, first_line
from tamis.formats import NM
from tamis.sparsity.activations import as_arguments, require_finite, weight_matrices
from tamis.sparsity.channel_graph import Axis, ChannelGraph, ChannelGroup, Refused
from tamis.sparsity.dependency_graph import tensors_of
from tamis.sparsity.hold import require_unmasked
from tamis.sparsity.masks import TRANSPOSED, LayerChoice, as_pattern, nm_mask, prunable
from tamis.sparsity.permutation_search import search_order
from tamis.sparsity.scores import Scores

_TOLERANCE = 1e-6  # of the largest output; models that compute in float32 on the way need that much
_MOST_ROWS = 1 << 14  # that a search looks at; a residual stream has hundreds of thousands


@dataclass(frozen=True)
class PermutedLayer:
    """What a new order of its input channels does for one weight.

    Attributes:
        name: of the weight.
        before: the share of all scores that the pattern kept with the old order, 0 to 1.
        after: the share that it keeps now.
        reason: why the order of its inputs was not searched or could not change; None where it could.
    """

    name: str
    before: float
    after: float
    reason: str | None


@dataclass(frozen=True)
class PermutationReport:
    """What `permute_channels` did, layer by layer; printed, a table.

    Attributes:
        layers: all weights of linear, convolution and attention layers.
        before: the sum of all scores that the pattern kept.
        after: the sum that it keeps now; never less.
    """

    layers: tuple[PermutedLayer, ...]
    before: float
    after: float

    def __str__(self) -> str:
        gain = self.after / self.before - 1 if self.before else 0.0
        lines = [f"kept {self.before:.6g} before, {self.after:.6g} now ({gain:+.2%})"]
        for layer in self.layers:
            why = f" ({layer.reason})" if layer.reason else ""
            lines.append(f"  {layer.name}: {layer.before:.2%} kept, now {layer.after:.2%}{why}")
        return "\n".join(lines)


@dataclass
class _Work:
    """The model's float64 twin and what is known of it."""

    model: nn.Module
    arguments: tuple[Any, ...]
    named: dict[str, Any]
    pattern: NM
    layers: list[LayerChoice]
    scores: dict[int, torch.Tensor]  # by id of the weight; permuted with it
    outputs: list[torch.Tensor]


def permute_channels(
    model: nn.Module,
    example_inputs: Any,
    pattern: str | NM = "2:4",
    *,
    scores: Scores | None = None,
    escapes: int = 8,
    seed: int = 0,
    progress: Callable[[str, int, int, str], None] | None = None,
) -> PermutationReport:
    """Reorder channels between layers so that the pattern keeps more, before `prune`.

    The search is done on a copy in float64. Every new order is checked there by running it: if any output
    changes by more than rounding, the order is undone and the layer says so. The model in eval mode computes the
    same before and after, but for rounding.

    Args:
        model: changed in place; its parameters stay the same objects. An optimiser's state is not reordered, so
            make it afterwards.
        example_inputs: a tensor, a tuple of positional inputs or a mapping of named ones, that the model runs on.
            Numbers as in use or random ones: zeros would show no difference.
        pattern: `"2:4"`, another N:M, or an `NM`.
        scores: from a layer (of the copy) to scores in the shape of its weight, not negative; magnitude if None.
        escapes: how often the search goes on after it has found no swap that gains.
        seed: of the search; equal seeds give equal orders.
        progress: called with ("permute", layers done, layers in all, name of the layer).

    Raises:
        MissingLibrary: Torch-Pruning is not installed.
        SparsityError: the model is masked already, cannot be traced, or does not give finite outputs.
    """
    wanted = as_pattern(pattern)
    work = _prepare(model, example_inputs, wanted, scores)
    graph = ChannelGraph(work.model, work.arguments, work.named)
    originals = chain(model.parameters(), model.buffers())
    twins = dict(zip(map(id, chain(work.model.parameters(), work.model.buffers())), originals, strict=True))
    kept = {layer.full_name: _kept(work, layer) for layer in work.layers}
    reasons: dict[tuple[int, int], str | None] = {}  # by tensor and axis: groups have several layers
    for index, layer in enumerate(work.layers, 1):
        place = (id(layer.weight), layer.axis)
        if layer.reason is None and place not in reasons:
            reasons |= _permute_inputs(work, graph, layer, twins, escapes, seed)
        if progress:
            progress("permute", index, len(work.layers), layer.full_name)
    result, before, after = [], 0.0, 0.0
    for layer in work.layers:
        whole = max(float(work.scores[id(layer.weight)].sum()), 1e-300)
        now, then = _kept(work, layer), kept[layer.full_name]
        before, after = before + then, after + now
        reason = layer.reason or reasons[id(layer.weight), layer.axis]
        result.append(PermutedLayer(layer.full_name, then / whole, now / whole, reason))
    return PermutationReport(tuple(result), before, after)


def _permute_inputs(
    work: _Work,
    graph: ChannelGraph,
    layer: LayerChoice,
    twins: Mapping[int, torch.Tensor],
    escapes: int,
    seed: int,
) -> dict[tuple[int, int], str | None]:
    """Permute the input channels of a layer if that gains; for each axis that it concerns, why not."""
    reason = None
    group = None
    try:
        group = graph.inputs_of(layer.module, _channels(layer))
        order = _search(work, layer, group, escapes, seed)
        _try_order(work, group, order)
        for axis in group.axes:
            axis.permute(twins[id(axis.tensor)], order)
    except Refused as refusal:
        reason = str(refusal)
    axes = {(id(axis.tensor), axis.axis) for axis in group.axes} if group else {(id(layer.weight), layer.axis)}
    return dict.fromkeys(axes, reason)


def _prepare(model: nn.Module, example_inputs: Any, pattern: NM, scores: Scores | None) -> _Work:
    for layer in prunable(model, pattern):
        require_unmasked(layer, remedy="permute channels before pruning")
        require_finite(layer, layer.weight, "its weight holds", "mend or retrain the model")
    twin = copy.deepcopy(model).double().eval()
    for parameter in twin.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    arguments, named = as_arguments(_pytree.tree_map(_doubled, example_inputs))
    layers = prunable(twin, pattern)
    values: dict[int, torch.Tensor] = {}
    for layer in layers:
        value = layer.weight.detach().abs() if scores is None else scores(layer).detach().double()
        if value.shape != layer.weight.shape or not bool((value >= 0).all()):
            raise SparsityError(
                f"its scores must be {list(layer.weight.shape)} numbers, none negative or NaN", layer=layer.full_name
            )
        values[id(layer.weight)] = value.clone()
    work = _Work(twin, arguments, named, pattern, layers, values, [])
    work.outputs = _outputs(work)
    if not all(bool(torch.isfinite(output).all()) for output in work.outputs):
        raise SparsityError(
            "the model's outputs on the example inputs hold NaN or infinity", remedy="give other inputs"
        )
    return work


def _doubled(value: Any) -> Any:
    return value.double() if torch.is_tensor(value) and value.is_floating_point() else value


@torch.no_grad()
def _outputs(work: _Work) -> list[torch.Tensor]:
    try:
        outputs = work.model(*work.arguments, **work.named)
    except Exception as error:
        raise SparsityError(
            f"the model does not run on the example inputs in float64: {type(error).__name__}: {first_line(error)}",
            remedy="give a tensor, a tuple of positional inputs or a mapping of named ones",
        ) from error
    return [tensor for tensor in tensors_of(outputs) if tensor.is_floating_point()]


def _channels(layer: LayerChoice) -> int:
    groups = layer.module.groups if hasattr(layer.module, "groups") and not isinstance(layer.module, TRANSPOSED) else 1
    assert isinstance(groups, int)
    return int(layer.weight.shape[layer.axis]) * groups


def _kept(work: _Work, layer: LayerChoice) -> float:
    """The sum of the scores that the pattern keeps of a weight; all of them where it does not apply."""
    scores = work.scores[id(layer.weight)]
    if layer.reason:
        return float(scores.sum())
    return float((scores * nm_mask(scores, work.pattern, layer.axis)).sum())


def _search(work: _Work, layer: LayerChoice, group: ChannelGroup, escapes: int, seed: int) -> torch.Tensor:
    """The order of the input channels of `layer` that keeps most, in it and in all that read the same channels."""
    if len(group.classes) % work.pattern.m:
        raise Refused("the last group of its inputs is shorter")
    if len(torch.unique(group.classes)) == len(group.classes):
        raise Refused("no two of its input channels can trade places")
    rows: list[torch.Tensor] = []
    seen: set[int] = set()
    for reader in work.layers:
        axis = next((axis for axis in group.axes if _reads(reader, axis)), None)
        if axis is not None and id(reader.weight) not in seen and _aligned(axis, work.pattern):
            seen.add(id(reader.weight))
            rows.append(_by_channel(reader, axis, work.scores[id(reader.weight)], len(group.classes)))
    classes = group.classes.to(rows[0].device)
    stacked = torch.cat(rows)
    if len(stacked) > _MOST_ROWS:
        sample = torch.randperm(len(stacked), generator=torch.Generator().manual_seed(seed))[:_MOST_ROWS]
        stacked = stacked[sample.to(stacked.device)]
    return search_order(stacked, classes, work.pattern, escapes=escapes, seed=seed).cpu()


def _reads(layer: LayerChoice, axis: Axis) -> bool:
    return layer.reason is None and layer.weight is axis.tensor and layer.axis == axis.axis


def _aligned(axis: Axis, pattern: NM) -> bool:
    """Whether channels lie along the axis in the order of the group, in the same aligned groups of M."""
    places = (axis.roots >= 0).nonzero()[:, 0]
    offsets = places - axis.roots[places]
    return bool((offsets == offsets[0]).all()) and int(offsets[0]) % pattern.m == 0


def _by_channel(layer: LayerChoice, axis: Axis, scores: torch.Tensor, channels: int) -> torch.Tensor:
    """Scores as (rows, channels); zero for channels that the layer does not read."""
    if isinstance(layer.module, TRANSPOSED):
        flat = scores.flatten(1).T
    else:  # (groups, rows, taps x channels of a group) -> rows, channels of all groups
        matrices = weight_matrices(layer, scores)
        width = scores.shape[1]
        flat = torch.unflatten(matrices, 2, (-1, width)).permute(1, 2, 0, 3).flatten(0, 1).flatten(1)
    places = (axis.roots >= 0).nonzero()[:, 0]
    result = flat.new_zeros(flat.shape[0], channels)
    result[:, axis.roots[places].to(flat.device)] = flat[:, places.to(flat.device)]
    return result


def _try_order(work: _Work, group: ChannelGroup, order: torch.Tensor) -> None:
    """Apply an order to the twin and its scores; undo it and refuse if the outputs change or less is kept."""
    touched = [layer for layer in _unique(work.layers) if any(layer.weight is axis.tensor for axis in group.axes)]
    before = sum(_kept(work, layer) for layer in touched)
    _apply(work, group, order)
    try:
        if not _same(work.outputs, _outputs(work)):
            raise Refused("the model's outputs depend on the order of these channels")
        if sum(_kept(work, layer) for layer in touched) <= before:
            raise Refused("no order that keeps more was found")
    except Refused:
        _apply(work, group, torch.argsort(order))
        raise


def _unique(layers: Sequence[LayerChoice]) -> list[LayerChoice]:
    return list({id(layer.weight): layer for layer in layers}.values())


def _apply(work: _Work, group: ChannelGroup, order: torch.Tensor) -> None:
    for axis in group.axes:
        axis.permute(axis.tensor, order)
        if id(axis.tensor) in work.scores:
            axis.permute(work.scores[id(axis.tensor)], order)


def _same(expected: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]) -> bool:
    for one, other in zip(expected, outputs, strict=True):
        scale = max(float(one.abs().max()), 1e-300) if one.numel() else 1.0
        if (
            one.shape != other.shape
            or not float((one - other).abs().max() if one.numel() else 0.0) <= _TOLERANCE * scale
        ):
            return False
    return True
