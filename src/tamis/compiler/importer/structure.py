"""Checks of the wiring of an ONNX graph: order, names, liveness. Nothing here looks inside an operator."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx

from tamis.errors import InvalidModel


def node_label(node: onnx.NodeProto, index: int | None = None) -> str:
    """The node's name, or one made from its type and place when it has none."""
    if node.name:
        return str(node.name)
    if index is not None:
        return f"{node.op_type}_{index}"
    return f"{node.op_type} -> {node.output[0] if node.output else '?'}"


def subgraphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The graphs among a node's attributes (the branches of an If, the body of a Loop)."""
    found = []
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            found.append(attribute.g)
        elif attribute.type == onnx.AttributeProto.GRAPHS:
            found.extend(attribute.graphs)
    return found


def reads(node: onnx.NodeProto) -> set[str]:
    """All names that a node reads, those that its subgraphs take from outside included."""
    names = {name for name in node.input if name}
    for graph in subgraphs(node):
        own = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
        own |= {name for inner in graph.node for name in inner.output}
        for inner in graph.node:
            names |= reads(inner) - own
        names |= {value.name for value in graph.output} - own
    return names


def ordered(nodes: Sequence[onnx.NodeProto], known: Iterable[str]) -> list[onnx.NodeProto]:
    """The nodes in an order in which every name is made before it is read; the given order where that works.

    Raises:
        InvalidModel: a name is made twice or read but never made, or nodes wait for each other.
    """
    available = set(known)
    maker: dict[str, onnx.NodeProto] = {}
    for node in nodes:
        for name in node.output:
            if name and (name in maker or name in available):
                raise InvalidModel(
                    f"'{name}' is produced twice, the second time by {node.op_type}", layer=node_label(node)
                )
            if name:
                maker[name] = node
    order: list[onnx.NodeProto] = []
    waiting = list(nodes)
    while waiting:
        late = []
        for node in waiting:
            missing = reads(node) - available
            for name in missing - maker.keys():
                raise InvalidModel(
                    f"{node.op_type} reads '{name}', which is neither an input, an initializer nor a result",
                    layer=node_label(node),
                )
            if missing:
                late.append(node)
            else:
                order.append(node)
                available |= set(node.output)
        if len(late) == len(waiting):
            raise InvalidModel(
                f"its result feeds back into its input (a cycle through {len(late)} nodes)",
                layer=node_label(_on_cycle(late, maker, available)),
            )
        waiting = late
    return order


def _on_cycle(late: Sequence[onnx.NodeProto], maker: dict[str, onnx.NodeProto], available: set[str]) -> onnx.NodeProto:
    """One node that truly lies on a cycle, not one that merely waits behind it."""
    node, seen = late[0], set()
    while id(node) not in seen:
        seen.add(id(node))
        node = maker[min(reads(node) - available)]
    return node


def live(nodes: Sequence[onnx.NodeProto], wanted: Iterable[str]) -> list[onnx.NodeProto]:
    """The nodes, in their order, whose results reach one of ``wanted``."""
    needed = set(wanted)
    kept = []
    for node in reversed(nodes):
        if needed & set(node.output):
            needed |= reads(node)
            kept.append(node)
    return kept[::-1]
