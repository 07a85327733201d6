"""Indices that come in at run time, for libraries that do not notice one that lies outside.

OpenVINO gathers zeros, or whatever lies there, for an index beyond its axis. So a region that gathers by indices from
outside looks at them first, at its border (``index_limits``); where that cannot be done, the layer stays out of
regions (``refuses_indices``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tamis.compiler.ir.graph import Graph, Node
from tamis.compiler.ir.ops import (
    ArgReduce,
    Cast,
    Expand,
    Gather,
    GatherElements,
    GatherND,
    Reshape,
    ScatterElements,
    ScatterND,
    Tile,
    TopK,
    Transpose,
)
from tamis.formats.dtype import DType

# They give every element of their input on, changed in nothing: a limit on the result is a limit on the input.
_CARRIES = (Expand, Reshape, Tile, Transpose)
_INTEGERS = (DType.INT8, DType.UINT8, DType.INT16, DType.UINT16, DType.INT32, DType.INT64)


def refuses_indices(graph: Graph, node: Node) -> str | None:
    """Why the indices of a layer cannot be checked where they enter a region, or None."""
    if isinstance(node.op, GatherND | ScatterND) and not graph.is_constant(node.inputs[1]):
        return "its indices are known at run time only, and an index outside would go unnoticed"
    size = _limit(graph, node)
    if size is None:
        return None
    producers = graph.producers()
    source = _path(producers, graph, node.inputs[1])[-1]
    if source in graph.inputs or _lies_within(graph, producers.get(source), source, size):
        return None
    return f"its indices are computed by '{producers[source].name}', and one that lies outside would go unnoticed"


def index_limits(graph: Graph, nodes: Sequence[Node], inputs: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """What to check at the border of a region of layers that ``refuses_indices`` let pass.

    Returns:
        Pairs of an index into ``inputs`` and a size: every element of that input must lie in ``-size ... size - 1``.
    """
    producers = graph.producers()
    sizes: dict[int, int] = {}
    for node in nodes:
        size = _limit(graph, node)
        if size is None:
            continue
        for value in _path(producers, graph, node.inputs[1]):
            if value in inputs:
                position = inputs.index(value)
                sizes[position] = min(size, sizes.get(position, size))
                break
    return tuple(sorted(sizes.items()))


def _limit(graph: Graph, node: Node) -> int | None:
    """The extent of the axis that run-time indices of a layer select from; None if it has no such indices."""
    if not isinstance(node.op, Gather | GatherElements | ScatterElements) or graph.is_constant(node.inputs[1]):
        return None
    return graph.types[node.inputs[0]].shape[node.op.axis]


def _path(producers: Mapping[str, Node], graph: Graph, value: str) -> list[str]:
    """A value, and those it was copied from, up to the one that was not copied."""
    path = [value]
    while (node := producers.get(path[-1])) is not None and (
        isinstance(node.op, _CARRIES) or (isinstance(node.op, Cast) and _keeps(graph, node))
    ):
        path.append(node.inputs[0])
    return path


def _keeps(graph: Graph, node: Node) -> bool:
    """Whether a cast gives those integers on that can be indices."""
    before, after = graph.types[node.inputs[0]].dtype, graph.types[node.output].dtype
    return before in _INTEGERS and after in (DType.INT32, DType.INT64)


def _lies_within(graph: Graph, node: Node | None, value: str, size: int) -> bool:
    """Whether a layer yields only positions below ``size``."""
    if node is None or not isinstance(node.op, ArgReduce | TopK):
        return False
    chosen = not isinstance(node.op, TopK) or value == node.outputs[1]
    return chosen and graph.types[node.inputs[0]].shape[node.op.axis] <= size
