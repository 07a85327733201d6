"""Layers of a torch model by the names that a compiler or a plan has for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from torch import nn

from tamis.errors import SparsityError
from tamis.formats import NM
from tamis.sparsity.masks import LayerChoice, as_pattern, prunable
from tamis.sparsity.prune_plan import PrunePlan


def find_layers(
    layers: Sequence[LayerChoice], weights: Iterable[str], modules: Iterable[str]
) -> tuple[LayerChoice, ...] | None:
    """The layers whose weights have these names; where a name is not found, those of these modules; or None.

    An ONNX exporter keeps the names of weights, but for those that it transposes or folds into new ones. Modules are
    what it writes down beside.
    """
    by_weight = {layer.full_name: layer for layer in layers}
    found = [by_weight.get(name) for name in weights]
    if found and all(layer is not None for layer in found):
        return tuple(layer for layer in found if layer is not None)
    names = set(modules)
    return tuple(layer for layer in layers if layer.name in names) or None


def planned_layers(
    model: nn.Module, plan: PrunePlan | Mapping[str, str | NM]
) -> tuple[list[LayerChoice], dict[str, NM]]:
    """All layers, with a reason where the plan does not name them, and the patterns of those it names, by weight.

    A weight that several layers share is pruned for all of them.

    Raises:
        SparsityError: the plan is empty, or names a layer that the model does not have, that its pattern does not fit,
            or twice with different patterns.
    """
    if isinstance(plan, PrunePlan):
        wishes = [(layer.name, layer.weights, layer.modules, as_pattern(layer.pattern)) for layer in plan.layers]
    else:
        wishes = [(name, (name,), (), as_pattern(pattern)) for name, pattern in plan.items()]
    if not wishes:
        raise SparsityError("the plan names no layer", remedy="allow a larger loss, or do not prune")
    patterns: dict[str, NM] = {}
    layers = prunable(model, wishes[0][3])
    for name, weights, modules, pattern in wishes:
        found = find_layers(layers, weights, modules)
        if found is None:
            raise SparsityError(
                f"the plan names '{', '.join(weights)}', which is no weight of the model",
                layer=name,
                remedy="name weights as in the state dict: plan={'encoder.0.weight': '2:4'}",
            )
        identities = {layer.identity for layer in found}
        fitting = {layer.full_name: layer for layer in prunable(model, pattern)}
        for layer in layers:
            if layer.identity in identities:
                if reason := fitting[layer.full_name].reason:
                    raise SparsityError(f"cannot follow {pattern}: {reason}", layer=layer.full_name)
                if patterns.setdefault(layer.full_name, pattern) != pattern:
                    raise SparsityError("the plan names it twice, at different patterns", layer=layer.full_name)
    kept = [
        replace(layer, reason=None if layer.full_name in patterns else layer.reason or "not in the plan")
        for layer in layers
    ]
    return kept, patterns
