"""Prune what belongs together in an ONNX graph: layers that share stored tensors, and all tensors of these layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from tamis.errors import SparsityError
from tamis.formats import NM, is_nm
from tamis.sparsity.check import LayerCheck
from tamis.sparsity.masks import magnitude_mask
from tamis.sparsity.onnx_edit import Uses, store
from tamis.sparsity.onnx_graph import Key, OnnxGraph, Step
from tamis.sparsity.onnx_layers import OnnxLayer, layer_of
from tamis.sparsity.onnx_masks import StoredMask, stored_masks

if TYPE_CHECKING:
    import onnx

Place = tuple[OnnxGraph, "onnx.NodeProto"]


@dataclass(frozen=True)
class OnnxPrunedLayer:
    """What happened to the weight of one layer of an ONNX file.

    Attributes:
        name: of the stored tensor; of several that are joined, with " + " between.
        op: the operator of the layer.
        node: the name of its node.
        pattern: the pattern asked for.
        axis: the reduction axis of the weight as the layer sees it.
        shape: the shape of the weight as the layer sees it.
        zeros: the fraction of its elements that are zero now, 0 to 1.
        kept: the share of the sum of all magnitudes that is left, 0 to 1; None where there is no such sum.
        reason: why it was skipped; None if it follows the pattern.
        changed: whether its zeros were made now: they were neither there nor made by a mask in the graph.
    """

    name: str
    op: str
    node: str
    pattern: NM
    axis: int
    shape: tuple[int, ...]
    zeros: float
    kept: float | None
    reason: str | None
    changed: bool


@dataclass(frozen=True)
class Member:
    """A layer of a group: where it is, what was found there, and why it is not to be pruned, if it is not."""

    place: Place
    check: LayerCheck
    reason: str | None


def connected(keys: Sequence[Iterable[object]]) -> list[list[int]]:
    """The places of a sequence in groups, so that those with a key in common are together."""
    owner: dict[object, int] = {}
    groups: dict[int, list[int]] = {}
    for place, own in enumerate(keys):
        joined = sorted({owner[key] for key in own if key in owner})
        members = [*(member for other in joined for member in groups.pop(other)), place]
        groups[members[0]] = members
        owner |= dict.fromkeys((key for member in members for key in keys[member]), members[0])
    return [sorted(members) for _, members in sorted(groups.items())]


def prune_group(members: Sequence[Member], uses: Uses, pattern: NM, masks: list[Step]) -> list[OnnxPrunedLayer]:
    """Prune the stored tensors behind a group of layers, or say of each layer why it is left as it is.

    Layers that use different parts of a tensor do not hinder each other. The nodes that masked what was pruned are
    added to `masks`.
    """
    if all(member.reason for member in members):
        return [_skipped(member.check, pattern, member.reason or "") for member in members]
    group = [layer for member in members if (layer := layer_of(*member.place)) is not None]
    homes = {origin.key: origin.home for layer in group for origin in layer.constant.origins}
    refusals = {key: _refusal(group, key, home, uses) for key, home in homes.items()}
    reasons = [
        member.reason or next((why for origin in layer.constant.origins if (why := refusals[origin.key])), None)
        for member, layer in zip(members, group, strict=True)
    ]
    changed: dict[Key, NDArray[Any]] = {}
    results: list[OnnxPrunedLayer | str] = [""] * len(group)
    for cluster in _overlapping(group):
        layers = [group[index] for index in cluster]
        against = next((index for index in cluster if reasons[index]), None)
        if against is not None:
            shared = f"shares its weight with node '{group[against].node.name}': {reasons[against]}"
            pruned: list[OnnxPrunedLayer] | str = shared
        else:
            pruned = _prune_cluster(layers, changed, pattern, masks)
        for place, index in enumerate(cluster):
            results[index] = reasons[index] or pruned if isinstance(pruned, str) else pruned[place]
    for key, value in changed.items():
        tensor = homes[key].stored(key[1])
        assert tensor is not None
        store(tensor, value)
    return [
        _skipped(member.check, pattern, result) if isinstance(result, str) else result
        for member, result in zip(members, results, strict=True)
    ]


def _refusal(group: Sequence[OnnxLayer], key: Key, home: OnnxGraph, uses: Uses) -> str | None:
    """Why a stored tensor cannot be changed."""
    if home.stored(key[1]) is None:
        return f"its weight '{key[1]}' is not a plain stored tensor"
    if other := uses.other_than([(layer.node, layer.port) for layer in group], key):
        return f"its weight '{key[1]}' is {other}"
    return None


def _overlapping(group: Sequence[OnnxLayer]) -> list[list[int]]:
    """The places of layers, together where they use the same elements of a stored tensor."""
    if len(group) == 1:
        return [[0]]
    used: list[dict[Key, NDArray[np.bool_] | None]] = []
    for layer in group:
        nothing = stored_masks(layer, np.zeros(layer.constant.value.shape, np.bool_))
        if isinstance(nothing, str):  # it cannot be followed: as if all were used
            used.append({origin.key: None for origin in layer.constant.origins})
        else:
            used.append({key: ~mask.keep for key, mask in nothing.items()})
    pairs: list[set[object]] = [{index} for index in range(len(group))]
    for one in range(len(group)):
        for other in range(one):
            if any(_meet(used[one][key], used[other][key]) for key in used[one].keys() & used[other].keys()):
                pairs[one].add(other)
    return connected(pairs)


def _meet(one: NDArray[np.bool_] | None, other: NDArray[np.bool_] | None) -> bool:
    return one is None or other is None or bool((one & other).any())


def _prune_cluster(
    group: Sequence[OnnxLayer], changed: dict[Key, NDArray[Any]], pattern: NM, masks: list[Step]
) -> list[OnnxPrunedLayer] | str:
    """Prune layers that use the same elements, or say why they are left as they are; new values go to `changed`."""
    views = [layer.weight for layer in group]
    for layer, view in zip(group, views, strict=True):
        if bool(np.isnan(view.astype(np.float32)).any()):
            raise SparsityError(
                f"its weight '{layer.name}' holds NaN",
                layer=layer.node.name,
                remedy="mend the model, or exclude the layer",
            )
    if _all_hold(group, views, pattern) and not any(layer.masked_by for layer in group):
        return [_pruned(layer, view, view, pattern) for layer, view in zip(group, views, strict=True)]
    problem = ""
    for layer, view in zip(group, views, strict=True):
        wanted = stored_masks(layer, _keep(view, pattern, layer.axis))
        if isinstance(wanted, str):
            problem = wanted
            continue
        values = {**changed, **_applied(layer, wanted, changed)}
        after = [each.changed(values) for each in group]
        if all(map(_is_pruned, views, after)) and _all_hold(group, after, pattern):
            changed.update(values)
            masks += [
                step
                for each in group
                if each.constant.masks
                for origin in each.constant.origins
                for step in origin.steps
            ]
            return [_pruned(*each, pattern) for each in zip(group, views, after, strict=True)]
        axes = " and ".join(f"axis {each.axis} of '{each.node.name}'" for each in group)
        problem = f"shared by layers whose masks do not agree: {axes}"
        if len(group) == 1:
            problem = f"zeros in '{layer.name}' would change more of what the layer sees"
    return problem


def _applied(
    layer: OnnxLayer, wanted: Mapping[Key, StoredMask], changed: Mapping[Key, NDArray[Any]]
) -> dict[Key, NDArray[Any]]:
    """The values of the stored tensors of a layer with masks applied, on top of what is changed already."""
    values = {}
    for origin in layer.constant.origins:
        stored = changed.get(origin.key)
        if stored is None:
            constant = origin.home.constant(origin.source)
            assert constant is not None
            stored = constant.value
        values[origin.key] = wanted[origin.key].applied(stored)
    return values


def _all_hold(group: Sequence[OnnxLayer], views: Sequence[NDArray[np.generic]], pattern: NM) -> bool:
    """Whether every layer of a group sees the pattern in its weight."""
    return all(is_nm(np.asarray(view != 0), pattern, layer.axis) for layer, view in zip(group, views, strict=True))


def _keep(view: NDArray[np.generic], pattern: NM, axis: int) -> NDArray[np.bool_]:
    """Where the weight stays: the largest of each group, and what a mask in the graph has left of them."""
    numbers = view if view.dtype == np.float64 else view.astype(np.float32)
    largest = magnitude_mask(torch.from_numpy(np.ascontiguousarray(numbers)), pattern, axis).numpy()
    return np.asarray(largest & (numbers != 0))


def _is_pruned(before: NDArray[np.generic], after: NDArray[np.generic]) -> bool:
    """Whether elements became zero and nothing else changed."""
    return bool(((after == before) | (after == 0)).all())


def _pruned(layer: OnnxLayer, before: NDArray[np.generic], after: NDArray[np.generic], pattern: NM) -> OnnxPrunedLayer:
    total = float(np.abs(before.astype(np.float64)).sum())
    left = float(np.abs(after.astype(np.float64)).sum())
    return OnnxPrunedLayer(
        name=layer.name,
        op=layer.node.op_type,
        node=layer.node.name,
        pattern=pattern,
        axis=layer.axis,
        shape=tuple(before.shape),
        zeros=1.0 - float(np.count_nonzero(after != 0)) / max(after.size, 1),
        kept=left / total if 0 < total < float("inf") else None,
        reason=None,
        changed=bool((after != before).any()),
    )


def _skipped(check: LayerCheck, pattern: NM, reason: str) -> OnnxPrunedLayer:
    return OnnxPrunedLayer(
        check.name, check.op, check.node, pattern, check.axis, check.shape, check.zeros, None, reason, False
    )
