"""Compute every value once (common subexpression elimination).

1. Constants that are equal in type and bits become one, up to ``COMPARED_BYTES`` (shapes, scales, masks;
   comparing large weights costs more than it gives).
2. Of nodes with the same operator and the same inputs, the first stays.

Exporters write the same shape arithmetic, the same mean and the same mask again and again; merging them makes
the patterns of the later passes recognisable. A graph output keeps a node of its own.
"""

from __future__ import annotations

from tamis.compiler.ir.graph import Graph, GraphEditor
from tamis.compiler.ir.ops import Op

COMPARED_BYTES = 1 << 16


def merge_duplicates(graph: Graph) -> Graph:
    """The graph without repeated constants and nodes."""
    editor = GraphEditor(graph)
    constants: dict[tuple[object, ...], str] = {}
    for value, array in graph.constants.items():
        if array.nbytes <= COMPARED_BYTES:
            first = constants.setdefault((array.dtype.name, array.shape, array.tobytes()), value)
            if first != value:
                editor.rename(value, first)
    seen: dict[tuple[Op, tuple[str, ...], int], tuple[str, ...]] = {}
    outputs = set(graph.outputs)
    for node in graph.nodes:
        key = (node.op, tuple(editor.resolve(value) for value in node.inputs), len(node.outputs))
        if key not in seen:
            seen[key] = node.outputs
        elif not outputs & set(node.outputs):
            editor.remove_node(node)
            for value, first in zip(node.outputs, seen[key], strict=True):
                editor.rename(value, first)
    return editor.finish()
