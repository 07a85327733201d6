"""Make one wide Linear of several that read the same value (the query, key and value of attention).

1. Linear layers with the same first input, constant weights and biases, and the same epilogue of unary steps
   become one: weights and biases joined along N, and a Split behind. One without a bias gets zeros.
2. Every result is read by Reshape, Transpose, Elementwise or Attention only, and is no graph output: a part
   of a wider tensor is not contiguous, which these take as it is while others would copy it.
3. Weights that are 2:4 are joined with each other, and so are those that are not: the wide weight is 2:4 only
   if all parts are.

One product of 3N columns uses all cores where three of N each wait for the last one three times. Convolutions
are not joined: their parts would be copied to become dense images again, which costs more than reading the
input twice.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tamis.compiler.ir.graph import Graph, GraphEditor, Node, TensorType
from tamis.compiler.ir.ops import Attention, Elementwise, Linear, Program, Reshape, Split, Transpose
from tamis.compiler.passes.view import View
from tamis.formats import TWO_FOUR, fits, is_nm

READERS = (Attention, Elementwise, Reshape, Transpose)


def merge_parallel_linear(graph: Graph) -> Graph:
    """The graph with parallel Linear layers joined."""
    view = View(graph)
    groups: dict[tuple[str, Program], list[Node]] = {}
    for node in graph.nodes:
        if isinstance(node.op, Linear) and _can_join(view, node):
            groups.setdefault((node.inputs[0], node.op.epilogue), []).append(node)
    editor = GraphEditor(graph)
    for members in groups.values():
        for nodes in _by_pattern(view, members) if len(members) > 1 else ():
            if len(nodes) > 1:
                _join(view, editor, nodes)
    return editor.finish()


def _can_join(view: View, node: Node) -> bool:
    """Rules 1 and 2 for one layer."""
    assert isinstance(node.op, Linear)
    if any(step.operand is not None for step in node.op.epilogue) or node.output in view.outputs:
        return False
    if not all(view.graph.is_constant(value) for value in node.inputs[1:]):
        return False
    return all(isinstance(reader.op, READERS) for reader in view.readers(node.output))


def _by_pattern(view: View, nodes: list[Node]) -> tuple[list[Node], list[Node]]:
    """Rule 3: the layers with 2:4 weights, and the others."""
    sparse: list[Node] = []
    dense: list[Node] = []
    for node in nodes:
        weight = view.graph.constants[node.inputs[1]]
        holds = fits(weight.shape, 1, TWO_FOUR.m) and is_nm(weight, TWO_FOUR, 1)
        (sparse if holds else dense).append(node)
    return sparse, dense


def _join(view: View, editor: GraphEditor, nodes: list[Node]) -> None:
    """Put one layer and a Split in the place of several layers."""
    constants = view.graph.constants
    first = nodes[0]
    weights = [constants[node.inputs[1]] for node in nodes]
    inputs = [first.inputs[0], editor.add_constant(f"{first.inputs[1]}.joined", np.concatenate(weights))]
    with_bias = [node for node in nodes if isinstance(node.op, Linear) and node.op.bias]
    if with_bias:
        parts = [
            constants[node.inputs[2]] if node in with_bias else np.zeros(weight.shape[0], weight.dtype)
            for node, weight in zip(nodes, weights, strict=True)
        ]
        inputs.append(editor.add_constant(f"{first.name}.bias.joined", np.concatenate(parts)))
    sizes = tuple(weight.shape[0] for weight in weights)
    type_ = view.type(first.output)
    wide = editor.fresh(f"{first.output}.joined")
    editor.set_type(wide, TensorType((*type_.shape[:-1], sum(sizes)), type_.dtype))
    origin = tuple(dict.fromkeys(name for node in nodes for name in node.origin))
    assert isinstance(first.op, Linear)
    op = replace(first.op, bias=bool(with_bias))
    for node in nodes[1:]:
        editor.remove_node(node)
    editor.replace_node(first, replace(first, op=op, inputs=tuple(inputs), outputs=(wide,), origin=origin))
    outputs = tuple(node.output for node in nodes)
    split = Split(len(type_.shape) - 1, sizes)
    editor.add_node(Node(editor.fresh_node(f"{first.name}.split"), split, (wide,), outputs, origin))
