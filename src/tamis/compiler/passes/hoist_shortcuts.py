"""Compute the shortcut of a residual block before the block's own layers.

Where an addition joins the results of two layers, and the later of them reads only what was there before the branch of
the earlier one, the later one moves up to what it reads. Two things come of it. The earlier layer, now the last, takes
the addition into its epilogue (``fuse_epilogue``), so that the other waits for nothing; and a device with several
streams can compute it beside the branch.

Rules: both operands are results of Conv, ConvTranspose, Linear or MatMul, each read by the addition alone; and
something stands between what the later one reads and the earlier one, so that there is a branch to go around.
"""

from __future__ import annotations

from dataclasses import replace

from tamis.compiler.ir.graph import Graph, Node
from tamis.compiler.ir.ops import Conv, ConvTranspose, Elementwise, Linear, MatMul
from tamis.compiler.passes.view import View

_LAYERS = (Conv, ConvTranspose, Linear, MatMul)


def hoist_shortcuts(graph: Graph) -> Graph:
    """The graph with shortcuts in front of what they go around."""
    nodes = list(graph.nodes)
    view = View(graph)
    for addition in graph.nodes:
        shortcut = _shortcut(view, addition)
        if shortcut is None:
            continue
        nodes.remove(shortcut)
        sources = {producer.name for v in shortcut.inputs if (producer := view.producer(v)) is not None}
        place = max((i for i, node in enumerate(nodes) if node.name in sources), default=-1) + 1
        nodes.insert(place, shortcut)
    return graph if nodes == list(graph.nodes) else replace(graph, nodes=tuple(nodes))


def _shortcut(view: View, addition: Node) -> Node | None:
    """The later layer that an addition joins, if it may move in front of the branch of the earlier one."""
    if not isinstance(addition.op, Elementwise) or len(addition.inputs) != 2:
        return None
    if [step.kind for step in addition.op.program[:1]] != ["add"]:
        return None
    layers = [view.producer(value) for value in addition.inputs]
    if not all(layer is not None and isinstance(layer.op, _LAYERS) for layer in layers):
        return None
    if any(view.sole_reader(value) is not addition for value in addition.inputs):
        return None
    earlier, later = sorted((layer for layer in layers if layer is not None), key=lambda n: view.position[n.name])
    sources = [view.producer(value) for value in later.inputs]
    last = max((view.position[node.name] for node in sources if node is not None), default=-1)
    return later if last + 1 < view.position[earlier.name] else None
