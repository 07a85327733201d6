"""Compute at build time what depends on constants only.

1. A node all of whose inputs are constants is evaluated, and its results become constants.
2. Unless that would store much more than it reads: ``Expand`` and ``Tile`` repeat data that most readers
   broadcast anyway, so theirs stays computed beyond ``REPEATED_ELEMENTS``; any other result may be larger
   than what it is made from up to ``GROWN_ELEMENTS`` (relative-position tables, masks, anchors).
3. A copy (empty Elementwise) that gives a constant its public name as a graph output stays.
"""

from __future__ import annotations

import numpy as np

from tamis.compiler.ir.evaluate import evaluate
from tamis.compiler.ir.graph import Graph, GraphEditor, Node
from tamis.compiler.ir.ops import Elementwise, Expand, Tile

REPEATED_ELEMENTS = 1 << 14
GROWN_ELEMENTS = 1 << 22


def fold_constants(graph: Graph) -> Graph:
    """The graph with every cheap constant expression computed."""
    known: dict[str, np.ndarray] = dict(graph.constants)
    outputs = set(graph.outputs)
    editor = GraphEditor(graph)
    for node in graph.nodes:
        if not all(value in known for value in node.inputs) or not _worth_storing(graph, node):
            continue
        if node.op == Elementwise(()) and outputs & set(node.outputs):
            continue
        editor.remove_node(node)
        with np.errstate(all="ignore"):
            results = evaluate(node.op, [known[value] for value in node.inputs])
        for value, array in zip(node.outputs, results, strict=True):
            known[value] = array
            editor.rename(value, editor.add_constant(f"{value}.folded", array))
    return editor.finish()


def _worth_storing(graph: Graph, node: Node) -> bool:
    """Rule 2."""
    read = sum(graph.types[value].elements for value in node.inputs)
    stored = sum(graph.types[value].elements for value in node.outputs)
    limit = REPEATED_ELEMENTS if isinstance(node.op, Expand | Tile) else GROWN_ELEMENTS
    return stored <= max(read, limit)
