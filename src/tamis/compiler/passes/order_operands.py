"""Write pointwise steps one way, so that later passes look for one spelling only.

1. An Elementwise whose running value is a constant and whose first step has a computed operand exchanges
   the two: ``3 - x`` becomes ``x (swap -) 3``.
2. ``x - c`` and ``x / c`` keep their kind: turning them into ``x + (-c)`` or ``x * (1/c)`` would round.
"""

from __future__ import annotations

from dataclasses import replace

from tamis.compiler.ir.graph import Graph, GraphEditor
from tamis.compiler.ir.ops import Elementwise
from tamis.compiler.passes.view import exchanged


def order_operands(graph: Graph) -> Graph:
    """The graph with the constants of pointwise steps in second place."""
    editor = GraphEditor(graph)
    for node in graph.nodes:
        if not isinstance(node.op, Elementwise) or not node.op.program:
            continue
        first, *rest = node.op.program
        if first.operand in (None, 0) or any(step.operand in (0, first.operand) for step in rest):
            continue
        assert first.operand is not None
        if not graph.is_constant(node.inputs[0]) or graph.is_constant(node.inputs[first.operand]):
            continue
        inputs = list(node.inputs)
        inputs[0], inputs[first.operand] = inputs[first.operand], inputs[0]
        steps = (exchanged(first), *rest)
        editor.replace_node(node, replace(node, op=Elementwise(steps), inputs=tuple(inputs)))
    return editor.finish()
