"""Let a LayerNorm do the residual addition in front of it.

1. A LayerNorm of ``a + b``, two computed values of the same type, becomes one with ``residual``.
2. When others read the sum as well, or it is a graph output, it is the second output of the LayerNorm.

This comes after ``fuse_epilogue``: a layer that makes ``a`` or ``b`` adds for nothing, as its result is in
registers then. What is left for the normalisation are sums that no layer could take.
"""

from __future__ import annotations

from dataclasses import replace

from tamis.compiler.ir.graph import Graph, GraphEditor, Node
from tamis.compiler.ir.ops import Elementwise, LayerNorm
from tamis.compiler.passes.view import View


def fuse_residual_layernorm(graph: Graph) -> Graph:
    """The graph with additions moved into the normalisations behind them."""
    view = View(graph)
    editor = GraphEditor(graph)
    taken: set[str] = set()
    for node in graph.nodes:
        if not isinstance(node.op, LayerNorm) or node.op.residual:
            continue
        total = _residual_sum(view, node.inputs[0])
        if total is None or total.name in taken:
            continue
        taken.add(total.name)
        a, b = total.inputs if len(total.inputs) == 2 else (total.inputs[0], total.inputs[0])
        shared = view.sole_reader(total.output) is None
        editor.remove_node(total)
        editor.replace_node(
            node,
            replace(
                node,
                op=replace(node.op, residual=True),
                inputs=(a, *node.inputs[1:], b),
                outputs=(node.output, total.output) if shared else (node.output,),
                origin=tuple(dict.fromkeys((*total.origin, *node.origin))),
            ),
        )
    return editor.finish()


def _residual_sum(view: View, value: str) -> Node | None:
    """The node that adds two computed values of one type to make a value."""
    operands, node = view.binary(value, "add"), view.producer(value)
    if operands is None or node is None or not isinstance(node.op, Elementwise):
        return None
    computed = not any(view.graph.is_constant(operand) for operand in operands)
    same = all(view.type(operand) == view.type(value) for operand in operands)
    return node if computed and same else None
