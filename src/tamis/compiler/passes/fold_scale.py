"""Fold constant scales and shifts per channel into the weights and bias of a layer.

An Elementwise node made only of additions, subtractions, multiplications and divisions with constants, and
of negations, computes ``x * a + b``. When ``a`` and ``b`` vary along the channels only:

1. Behind a Conv, ConvTranspose or Linear that nothing else reads and that has no epilogue yet, ``a`` scales
   the weights of each output channel and ``bias * a + b`` becomes the bias.
2. In front of a Conv, ConvTranspose or Linear that alone reads it, ``a`` scales the weights of each input
   channel. ``b`` adds what the weights make of it to the bias. With padding that is wrong at the border,
   where the zeros are not shifted: then, and for ConvTranspose, only a pure scale (b = 0) is folded.
3. A weight that is not finite after scaling stays as it was.

Rule 1 comes first: it needs nothing of the padding. Zeros of a weight stay zeros, exactly and positive, so a
2:4 weight stays 2:4. New weights are computed in float64 and rounded once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from tamis.compiler.ir.graph import Graph, GraphEditor, Node
from tamis.compiler.ir.ops import Conv, ConvTranspose, Elementwise, Linear, Pointwise
from tamis.compiler.passes.view import View, per_channel, to_fixed_point

Layer = Conv | ConvTranspose | Linear


@dataclass(frozen=True)
class Affine:
    """``x * scale + shift`` along the channels; both are float64 vectors."""

    scale: np.ndarray
    shift: np.ndarray


def fold_scale(graph: Graph) -> Graph:
    """The graph with scales and shifts folded into the layers beside them."""
    return to_fixed_point(graph, _sweep)


def _sweep(graph: Graph) -> Graph:
    view = View(graph)
    editor = GraphEditor(graph)
    done: set[str] = set()
    for node in graph.nodes:
        if not isinstance(node.op, Elementwise) or not node.op.program or node.name in done:
            continue
        layer = view.producer(node.inputs[0])
        after = view.sole_reader(node.output)
        free = layer is not None and layer.name not in done and view.sole_reader(node.inputs[0]) is node
        if free and layer is not None and _fold_behind(view, editor, layer, node):
            done |= {layer.name, node.name}
            continue
        if after is not None and after.name not in done and _fold_in_front(view, editor, node, after):
            done |= {after.name, node.name}
    return editor.finish()


def _is_layer(node: Node, view: View) -> bool:
    """Whether the node is a layer with constant weights and no epilogue."""
    if not isinstance(node.op, Conv | ConvTranspose | Linear) or node.op.epilogue:
        return False
    return all(view.graph.is_constant(value) for value in node.inputs[1:])


def _fold_behind(view: View, editor: GraphEditor, layer: Node, node: Node) -> bool:
    """Rule 1."""
    if not _is_layer(layer, view):
        return False
    op, weight = layer.op, view.graph.constants[layer.inputs[1]]
    assert isinstance(op, Layer)
    rank = len(view.shape(layer.output))
    axis = rank - 1 if isinstance(op, Linear) else 1
    affine = affine_of(view, node, axis)
    if affine is None:
        return False
    bias: np.ndarray | None = None
    if op.bias or np.any(affine.shift):
        bias = _bias_of(view, layer, len(affine.scale)) * affine.scale + affine.shift
    wide = _with_scaled_outputs(op, weight, affine.scale)
    return _replace_layer(view, editor, layer, node, (layer.inputs[0], wide, bias))


def _with_scaled_outputs(op: Layer, weight: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The weight with each output channel scaled; the very same array when nothing is to do."""
    if np.all(scale == 1):
        return weight
    wide = weight.astype(np.float64)
    if not isinstance(op, ConvTranspose):
        return np.asarray(wide * scale.reshape(-1, *(1,) * (wide.ndim - 1)))
    # [C, K/groups, ...]: the rows of group g make the output channels of group g.
    by_group = wide.reshape(op.groups, -1, *wide.shape[1:])
    factor = scale.reshape(op.groups, 1, wide.shape[1], *(1,) * (wide.ndim - 2))
    return np.asarray(by_group * factor).reshape(wide.shape)


def _bias_of(view: View, layer: Node, channels: int) -> np.ndarray:
    """The bias of a layer, zeros when it has none."""
    assert isinstance(layer.op, Layer)
    return view.graph.constants[layer.inputs[2]].astype(np.float64) if layer.op.bias else np.zeros(channels)


def _fold_in_front(view: View, editor: GraphEditor, node: Node, layer: Node) -> bool:
    """Rule 2."""
    if not _is_layer(layer, view) or layer.inputs[0] != node.output:
        return False
    op, weight = layer.op, view.graph.constants[layer.inputs[1]].astype(np.float64)
    assert isinstance(op, Layer)
    rank = len(view.shape(node.output))
    affine = affine_of(view, node, rank - 1 if isinstance(op, Linear) else 1)
    if affine is None:
        return False
    shifts = bool(np.any(affine.shift))
    if shifts and (isinstance(op, ConvTranspose) or (isinstance(op, Conv) and any(op.pads))):
        return False
    if isinstance(op, ConvTranspose):
        wide = weight * affine.scale.reshape(-1, *(1,) * (weight.ndim - 1))
    else:
        groups = op.groups if isinstance(op, Conv) else 1
        scale, shift = (_rows_of_groups(part, groups, weight) for part in (affine.scale, affine.shift))
        wide = weight * scale
    bias: np.ndarray | None = None
    if op.bias or shifts:
        bias = _bias_of(view, layer, weight.shape[0])
        if shifts:
            bias = bias + (weight * shift).sum(axis=tuple(range(1, weight.ndim)))
    return _replace_layer(view, editor, layer, node, (node.inputs[0], wide, bias))


def _rows_of_groups(vector: np.ndarray, groups: int, weight: np.ndarray) -> np.ndarray:
    """A vector over input channels laid out as the weight [K, C/groups, ...] sees it."""
    rows = np.repeat(vector.reshape(groups, -1), weight.shape[0] // groups, axis=0)
    return rows.reshape(*rows.shape, *(1,) * (weight.ndim - 2))


def _replace_layer(
    view: View,
    editor: GraphEditor,
    layer: Node,
    node: Node,
    parts: tuple[str, np.ndarray, np.ndarray | None],
) -> bool:
    """Put a layer with new weights in the place of the layer and the affine node; False by rule 3."""
    source, weight, bias = parts
    dtype = view.type(layer.inputs[1]).dtype.numpy
    same = weight is view.graph.constants[layer.inputs[1]]
    # Adding 0.0 turns the negative zeros that a negative scale makes of zeros into plain ones.
    scaled = weight if same else (weight + 0.0).astype(dtype)
    shifted = None if bias is None else (bias + 0.0).astype(dtype)
    if not all(np.isfinite(array.astype(np.float32)).all() for array in (scaled, shifted) if array is not None):
        return False
    assert isinstance(layer.op, Layer)
    names = [layer.inputs[1] if same else editor.add_constant(f"{layer.inputs[1]}.scaled", scaled)]
    if shifted is not None:
        names.append(editor.add_constant(f"{layer.name}.bias", shifted))
    fused = replace(
        layer,
        op=replace(layer.op, bias=bias is not None),
        inputs=(source, *names),
        outputs=node.outputs if source == layer.inputs[0] else layer.outputs,
        origin=tuple(dict.fromkeys((*layer.origin, *node.origin))),
    )
    editor.remove_node(node)
    editor.replace_node(layer, fused)
    return True


def affine_of(view: View, node: Node, axis: int) -> Affine | None:
    """The scale and shift that an Elementwise node applies along ``axis``, if that is all it does."""
    assert isinstance(node.op, Elementwise)
    shape = view.shape(node.inputs[0])
    if view.shape(node.output) != shape or not view.type(node.output).dtype.is_float or axis >= len(shape):
        return None
    affine = Affine(np.ones(shape[axis]), np.zeros(shape[axis]))
    for step in node.op.program:
        array = None if step.operand is None else view.array(node.inputs[step.operand])
        vector = None if array is None else per_channel(array, len(shape), axis, shape[axis])
        with np.errstate(all="ignore"):  # what is not finite is refused by rule 3
            after = _apply(affine, step, vector)
        if after is None:
            return None
        affine = after
    return affine


def _apply(affine: Affine, step: Pointwise, vector: np.ndarray | None) -> Affine | None:
    """The affine map followed by one more step; None when the result is not one."""
    scale, shift = affine.scale, affine.shift
    if step.kind == "neg":
        return Affine(-scale, -shift)
    if vector is None:
        return None
    match step.kind, step.swap:
        case "add", _:
            return Affine(scale, shift + vector)
        case "mul", _:
            return Affine(scale * vector, shift * vector)
        case "sub", False:
            return Affine(scale, shift - vector)
        case "sub", True:
            return Affine(-scale, vector - shift)
        case "div", False if np.all(vector != 0):
            return Affine(scale / vector, shift / vector)
        case _:
            return None
