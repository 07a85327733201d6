"""Replace gathers that read in order by what moves no elements.

1. A Gather whose constant indices are 0, 1, ..., n-1 along the whole axis, and a GatherND whose constant
   indices name every element in row-major order, are a Reshape. (Exporters write ``as_strided`` and the
   broadcasting of masks this way.)
2. A Gather whose constant indices are consecutive is a Slice, and a Reshape if they are not a vector.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tamis.compiler.ir.graph import Graph, GraphEditor, Node, TensorType
from tamis.compiler.ir.ops import Gather, GatherND, Reshape, Slice


def simplify_gathers(graph: Graph) -> Graph:
    """The graph with orderly gathers as Reshape and Slice."""
    editor = GraphEditor(graph)
    for node in graph.nodes:
        if isinstance(node.op, Gather) and graph.is_constant(node.inputs[1]):
            _simplify_gather(editor, node)
        elif isinstance(node.op, GatherND) and graph.is_constant(node.inputs[1]):
            _simplify_gather_nd(editor, node)
    return editor.finish()


def _simplify_gather(editor: GraphEditor, node: Node) -> None:
    """Rules 1 and 2 for a Gather."""
    assert isinstance(node.op, Gather)
    graph = editor.graph
    shape, target = graph.types[node.inputs[0]].shape, graph.types[node.output].shape
    axis = node.op.axis % len(shape)
    size = shape[axis]
    indices = graph.constants[node.inputs[1]].reshape(-1).astype(np.int64)
    indices = np.where(indices < 0, indices + size, indices)
    if not indices.size or not np.array_equal(indices, np.arange(indices.size) + indices[0]):
        return
    start, stop = int(indices[0]), int(indices[-1]) + 1
    if start < 0 or stop > size:
        return
    value = node.inputs[0]
    if stop - start < size:
        cut = (*shape[:axis], stop - start, *shape[axis + 1 :])
        slice_ = Slice((axis,), (start,), (stop,), (1,))
        if cut == target:
            editor.replace_node(node, replace(node, op=slice_, inputs=(value,)))
            return
        part = editor.fresh(f"{node.output}.part")
        types = {part: TensorType(cut, graph.types[value].dtype)}
        editor.add_node(Node(editor.fresh_node(f"{node.name}.part"), slice_, (value,), (part,), node.origin), types)
        value = part
    editor.replace_node(node, replace(node, op=Reshape(target), inputs=(value,)))


def _simplify_gather_nd(editor: GraphEditor, node: Node) -> None:
    """Rule 1 for a GatherND."""
    assert isinstance(node.op, GatherND)
    graph = editor.graph
    shape, target = graph.types[node.inputs[0]].shape, graph.types[node.output]
    indices = graph.constants[node.inputs[1]].astype(np.int64)
    if node.op.batch_dims or indices.shape[-1] != len(shape) or target.elements != int(np.prod(shape)):
        return
    rows = indices.reshape(-1, len(shape))
    rows = np.where(rows < 0, rows + np.array(shape), rows)
    expected = np.stack(np.unravel_index(np.arange(target.elements), shape), axis=-1)
    if np.array_equal(rows, expected):
        editor.replace_node(node, replace(node, op=Reshape(target.shape), inputs=(node.inputs[0],)))
