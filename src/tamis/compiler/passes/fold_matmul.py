"""Make a product with a constant matrix a Linear layer, whose weight is [N, K].

1. ``x @ W`` with a constant W [K, N], perhaps under leading axes of size one, is ``Linear(x, W^T)``.
2. ``W @ x`` with a constant W [M, K] is ``Linear(x^T, W)^T``: the reduction runs along the second last axis
   of x, so both sides are transposed. ``clean_transposes`` joins these with what is around.

A weight that several products read is turned once. A Linear can take 2:4 weights, a bias and an epilogue.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tamis.compiler.ir.graph import Graph, GraphEditor, Node, TensorType
from tamis.compiler.ir.ops import Linear, MatMul, Transpose


def fold_matmul(graph: Graph) -> Graph:
    """The graph with products by constant matrices as Linear layers."""
    editor = GraphEditor(graph)
    weights: dict[tuple[str, bool], str] = {}
    for node in graph.nodes:
        if not isinstance(node.op, MatMul) or node.op.epilogue:
            continue
        a, b = node.inputs
        if graph.is_constant(b) and not graph.is_constant(a):
            weight = _weight(editor, weights, b, len(graph.types[a].shape), turn=True)
            if weight is not None:
                editor.replace_node(node, replace(node, op=Linear(), inputs=(a, weight)))
        elif graph.is_constant(a) and not graph.is_constant(b) and len(graph.types[b].shape) > 1:
            weight = _weight(editor, weights, a, len(graph.types[b].shape), turn=False)
            if weight is not None:
                _fold_left(editor, node, weight)
    return editor.finish()


def _weight(editor: GraphEditor, made: dict[tuple[str, bool], str], value: str, rank: int, *, turn: bool) -> str | None:
    """A constant as a weight [N, K]; None when it is not one matrix or would add axes to the result."""
    array = editor.graph.constants[value]
    if array.ndim < 2 or array.ndim > max(rank, 2) or any(size != 1 for size in array.shape[:-2]):
        return None
    if (value, turn) not in made:
        matrix = array.reshape(array.shape[-2:])
        matrix = np.ascontiguousarray(matrix.T) if turn else matrix
        same = not turn and array.ndim == 2
        made[value, turn] = value if same else editor.add_constant(f"{value}.matrix", matrix)
    return made[value, turn]


def _fold_left(editor: GraphEditor, node: Node, weight: str) -> None:
    """Rule 2."""
    x = node.inputs[1]
    shape, dtype = editor.graph.types[x].shape, editor.graph.types[x].dtype
    result = editor.graph.types[node.output].shape
    perm = (*range(len(shape) - 2), len(shape) - 1, len(shape) - 2)
    turned, product = editor.fresh(f"{node.output}.turned"), editor.fresh(f"{node.output}.product")
    first = Node(editor.fresh_node(f"{node.name}.turn"), Transpose(perm), (x,), (turned,), node.origin)
    editor.add_node(first, {turned: TensorType((*shape[:-2], shape[-1], shape[-2]), dtype)})
    last = Node(editor.fresh_node(f"{node.name}.back"), Transpose(perm), (product,), node.outputs, node.origin)
    editor.add_node(last, {product: TensorType((*result[:-2], result[-1], result[-2]), dtype)})
    editor.replace_node(node, replace(node, op=Linear(), inputs=(turned, weight), outputs=(product,)))
