"""Drop what no output depends on.

1. A node none of whose results reaches a graph output goes.
2. A constant, type or sparsity note of a value that no longer exists goes.
"""

from __future__ import annotations

from tamis.compiler.ir.graph import Graph, GraphEditor, drop_unused


def remove_dead(graph: Graph) -> Graph:
    """The graph without unused nodes and constants."""
    kept = drop_unused(list(graph.nodes), graph.outputs)
    used = {value for node in kept for value in (*node.inputs, *node.outputs)} | {
        *graph.inputs,
        *graph.outputs,
    }
    if len(kept) == len(graph.nodes) and used >= graph.types.keys() and used >= graph.constants.keys():
        return graph
    editor = GraphEditor(graph)
    editor.changed = True
    return editor.finish()
