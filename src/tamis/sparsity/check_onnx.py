"""Check an ONNX file: every layer with a constant weight, judged on the axis that its operator reduces over.

Needs only onnx and NumPy. What lies between a stored weight and the layer (a transpose, a cast, a
dequantisation, a reshape, whatever depends on constants alone) is computed first, so that the numbers judged are
those that the layer multiplies with.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tamis.formats import NM, statistics
from tamis.sparsity.check import NOT_FINITE, RUN_TIME, LayerCheck, Progress, broken_by_little, judge
from tamis.sparsity.masks import NO_ELEMENTS, as_pattern, axis_misfit
from tamis.sparsity.onnx_edit import Uses
from tamis.sparsity.onnx_graph import Key, OnnxGraph, open_graph
from tamis.sparsity.onnx_layers import OnnxLayer, layers
from tamis.sparsity.onnx_masks import stored_axis

if TYPE_CHECKING:
    import onnx

BAKE = "bake the mask in before the export, or with 'tamis prune'"
_SAMPLE = 1 << 20  # elements


def check_onnx(
    model: str | os.PathLike[str] | onnx.ModelProto, pattern: str | NM = "2:4", *, progress: Progress | None = None
) -> tuple[LayerCheck, ...]:
    """Check all layers with a constant operand, in graph order, those in bodies of `If`, `Loop` and `Scan` last.

    Layers are Conv, ConvTranspose, Gemm and MatMul, their quantised forms (QLinearConv, MatMulInteger, ...) and those
    that ONNX Runtime fuses. A weight whose zeros are made by a `Mul` or `Where` in the graph is dense in the file; it
    is reported as such. A weight that something else reads too, such as an embedding, or a layer that reduces over
    another axis of it, counts if it follows the pattern; if not, the layer cannot be made to follow it without changing
    the other.

    Args:
        model: a file (external data beside it is mapped into memory) or a model with its data loaded.
        pattern: the pattern to look for.
        progress: called with ("check", nodes done, nodes in all, name of the node).

    Raises:
        InvalidModel: the file is not an ONNX model.
    """
    wanted = as_pattern(pattern)
    _, graph, _ = open_graph(model)
    return check_graph(graph, wanted, progress)


def check_graph(graph: OnnxGraph, pattern: NM, progress: Progress | None = None) -> tuple[LayerCheck, ...]:
    """`check_onnx` of a graph that is open already."""
    checks: list[LayerCheck] = []
    weights: list[tuple[onnx.NodeProto, int]] = []
    axes: dict[Key, dict[int, int | None]] = defaultdict(dict)  # of each stored tensor, those that layers reduce over
    for place, layer in enumerate(layers(graph, progress)):
        checks.append(check_layer(layer, pattern))
        weights.append((layer.node, layer.port))
        for origin in layer.constant.origins:
            axes[origin.key][place] = None
        axes[layer.constant.origins[0].key][place] = stored_axis(layer)
    uses = Uses(graph)
    for key, own in axes.items():
        for place, axis in own.items():
            check = checks[place]
            if check.fits and check.first is not None and (reason := _conflict(key, axis, own, checks, uses, weights)):
                checks[place] = replace(check, reason=reason, fits=False)
    return tuple(checks)


def _conflict(
    key: Key,
    axis: int | None,
    axes: Mapping[int, int | None],
    checks: Sequence[LayerCheck],
    uses: Uses,
    weights: Sequence[tuple[onnx.NodeProto, int]],
) -> str | None:
    """Why a dense weight cannot be made to follow a pattern without changing what else reads it; None if it can."""
    if other := uses.other_than(weights, key):
        return f"its weight '{key[1]}' is {other}"
    for place, theirs in axes.items():
        if axis is not None and theirs is not None and theirs != axis:
            return f"its weight '{key[1]}' is shared with node '{checks[place].node}', which reduces over another axis"
    return None


def check_layer(layer: OnnxLayer, pattern: NM) -> LayerCheck:
    """Judge the weight of one layer."""
    masked_by = layer.masked_by
    weight = layer.weight
    misfit = axis_misfit(layer.inputs_per_group, layer.groups, pattern, matrix=weight.ndim == 2)
    check = judge(
        weight,
        layer.axis,
        pattern,
        misfit=misfit if weight.size else NO_ELEMENTS,
        run_time=RUN_TIME.format(masked_by, BAKE) if masked_by else None,
        name=layer.name,
        op=layer.node.op_type,
        node=layer.node.name,
        scope=layer.scope,
    )
    if check.fits and check.first is not None and (note := _nearly(weight, layer.axis, pattern)):
        return replace(check, reason=f"{check.reason}; {note}")
    return check


def _nearly(weight: NDArray[Any], axis: int, pattern: NM) -> str | None:
    """Say so if what breaks the pattern is small, judged by the first rows of a large weight, or no number."""
    if not np.isfinite(weight if weight.dtype == np.float64 else weight.astype(np.float32)).all():
        return NOT_FINITE
    rows = np.moveaxis(weight, axis, -1).reshape(-1, weight.shape[axis])
    sample = rows[: max(1, _SAMPLE // rows.shape[1])].astype(np.float32)
    return broken_by_little(statistics(sample, -1, pattern).relative_change)
