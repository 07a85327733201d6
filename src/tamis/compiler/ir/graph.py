"""The graph that every stage of the compiler reads and writes.

A graph is plain frozen data: values have names, a node computes values from values, constants are NumPy
arrays. Nodes stand in topological order. A pass takes a graph and returns a new one; nothing is changed in
place. ``GraphEditor`` collects the edits of one pass and makes the new graph at the end.

Shapes are logical and always concrete; an image is ``[N, C, H, W]`` whatever its memory order will be.
Floating point is ``float32`` inside the graph: the precision a layer runs in is the planner's choice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import prod

import numpy as np

from tamis.compiler.ir.ops import Elementwise, Op
from tamis.formats.dtype import DType


@dataclass(frozen=True)
class TensorType:
    """Shape (elements along each axis) and element type of a value."""

    shape: tuple[int, ...]
    dtype: DType = DType.FLOAT32

    @property
    def elements(self) -> int:
        """How many elements a tensor of this type has."""
        return prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Bytes of a dense tensor of this type."""
        return self.elements * self.dtype.size_bytes

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Node:
    """One layer: ``outputs = op(inputs)``.

    ``origin`` lists the names of the ONNX nodes that this layer came from, for reports and messages.
    """

    name: str
    op: Op
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    origin: tuple[str, ...] = ()

    @property
    def output(self) -> str:
        """The first output; most layers have just one."""
        return self.outputs[0]


@dataclass(frozen=True)
class SparsityNote:
    """What was found in a constant weight, looking along its reduction axis.

    ``pattern`` is ``"2:4"`` or ``"dense"``; ``zeros`` and ``good_groups`` are fractions between 0 and 1;
    ``reason`` says why the weight is not eligible, and is empty when it is.
    """

    pattern: str
    axis: int
    zeros: float
    good_groups: float
    reason: str = ""


@dataclass(frozen=True)
class Graph:
    """A network: typed values, constants and nodes in topological order."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    types: Mapping[str, TensorType]
    constants: Mapping[str, np.ndarray]
    sparsity: Mapping[str, SparsityNote] = field(default_factory=dict)

    def producers(self) -> dict[str, Node]:
        """The node that computes each value; graph inputs and constants have none."""
        return {value: node for node in self.nodes for value in node.outputs}

    def consumers(self) -> dict[str, list[Node]]:
        """The nodes that read each value, in order; a node that reads it twice is listed once."""
        readers: dict[str, list[Node]] = {}
        for node in self.nodes:
            for value in dict.fromkeys(node.inputs):
                readers.setdefault(value, []).append(node)
        return readers

    def is_constant(self, value: str) -> bool:
        """Whether a value is known at build time."""
        return value in self.constants


class GraphEditor:
    """Collects the edits of one pass over a graph, then makes the new graph.

    Typical use in a pass::

        editor = GraphEditor(graph)
        for node in graph.nodes:
            if matches(node):
                editor.replace_node(node, replace(node, op=better))
        return editor.finish()

    Edits see the original graph; ``finish`` renames, drops unused nodes and constants, and sorts the nodes.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._nodes: dict[str, Node | None] = {node.name: node for node in graph.nodes}
        self._added: list[Node] = []
        self._added_names: set[str] = set()
        self._types = dict(graph.types)
        self._constants = dict(graph.constants)
        self._renames: dict[str, str] = {}
        self.changed = False

    def replace_node(self, old: Node, new: Node) -> None:
        """Put ``new`` in the place of ``old``; outputs that nothing reads any more may be missing."""
        self._nodes[old.name] = new
        self.changed = True

    def add_node(self, node: Node, types: Mapping[str, TensorType] | None = None) -> None:
        """Add a node; ``types`` names the types of its outputs when they are new values."""
        self._added.append(node)
        self._added_names.add(node.name)
        self._types.update(types or {})
        self.changed = True

    def remove_node(self, node: Node) -> None:
        """Take a node out; whoever read its outputs must be rewired by ``rename``."""
        self._nodes[node.name] = None
        self.changed = True

    def rename(self, old: str, new: str) -> None:
        """Let every reader of value ``old`` read ``new`` instead; a graph output keeps its public name."""
        self._renames[old] = new
        self.changed = True

    def add_constant(self, hint: str, array: np.ndarray) -> str:
        """Add a constant under a fresh name made from ``hint``; returns that name."""
        name = self.fresh(hint)
        self._constants[name] = array
        self._types[name] = TensorType(tuple(array.shape), DType.of(array))
        self.changed = True
        return name

    def fresh(self, hint: str) -> str:
        """A value name that nobody uses yet."""
        name, count = hint, 0
        while name in self._types:
            count += 1
            name = f"{hint}.{count}"
        return name

    def fresh_node(self, hint: str) -> str:
        """A node name that nobody uses yet; it is free until a node of that name is added."""
        name, count = hint, 0
        while name in self._nodes or name in self._added_names:
            count += 1
            name = f"{hint}.{count}"
        return name

    def set_type(self, value: str, type_: TensorType) -> None:
        """Declare the type of a new value."""
        self._types[value] = type_

    def type_of(self, value: str) -> TensorType:
        """The type of a value, new ones included."""
        return self._types[value]

    def resolve(self, value: str) -> str:
        """The value that readers of ``value`` will read once the edits are applied."""
        while value in self._renames:
            value = self._renames[value]
        return value

    def finish(self) -> Graph:
        """The edited graph: renamed, pruned of what nothing reads, in topological order."""
        if not self.changed:
            return self.graph
        nodes = [node for node in self._nodes.values() if node is not None] + self._added
        nodes = [replace(node, inputs=tuple(self.resolve(value) for value in node.inputs)) for node in nodes]
        nodes, outputs = self._keep_output_names(nodes)
        nodes = topological_order(nodes, set(self.graph.inputs) | set(self._constants))
        nodes = drop_unused(nodes, outputs)
        used = {v for node in nodes for v in (*node.inputs, *node.outputs)} | {*self.graph.inputs, *outputs}
        return replace(
            self.graph,
            nodes=tuple(nodes),
            outputs=outputs,
            types={value: type_ for value, type_ in self._types.items() if value in used},
            constants={value: array for value, array in self._constants.items() if value in used},
            sparsity={value: note for value, note in self.graph.sparsity.items() if value in used},
        )

    def _keep_output_names(self, nodes: list[Node]) -> tuple[list[Node], tuple[str, ...]]:
        """A graph output whose value was renamed gets its public name back on the producing node."""
        produced = {value for node in nodes for value in node.outputs}
        back: dict[str, str] = {}
        outputs = []
        for output in self.graph.outputs:
            target = self.resolve(output)
            if target == output:
                outputs.append(output)
            elif target in produced and target not in back and target not in self.graph.outputs:
                back[target] = output
                self._types[output] = self._types[target]
                outputs.append(output)
            else:
                # Two outputs are one value, or an output is an input or a constant: a copy has its name.
                self._types[output] = self._types[target]
                nodes.append(Node(f"output.{output}", Elementwise(()), (target,), (output,)))
                outputs.append(output)
        if back:
            nodes = [
                replace(
                    node,
                    inputs=tuple(back.get(value, value) for value in node.inputs),
                    outputs=tuple(back.get(value, value) for value in node.outputs),
                )
                for node in nodes
            ]
        return nodes, tuple(outputs)


def topological_order(nodes: Iterable[Node], known: set[str]) -> list[Node]:
    """Nodes ordered so that each reads only values known before it; stable where the order is free.

    Raises ``ValueError`` naming a node on a cycle or one that reads a value nobody makes.
    """
    waiting = list(nodes)
    producer = {value: index for index, node in enumerate(waiting) for value in node.outputs}
    state = [0] * len(waiting)  # 0 = not seen, 1 = on the stack, 2 = placed
    order: list[Node] = []
    for root in range(len(waiting)):
        stack = [root]
        while stack:
            index = stack[-1]
            if state[index] == 2:
                stack.pop()
                continue
            pending = []
            for value in waiting[index].inputs:
                if not value or value in known:
                    continue
                if value not in producer:
                    raise ValueError(f"node '{waiting[index].name}' reads '{value}', which nothing produces")
                if state[producer[value]] != 2:
                    pending.append(producer[value])
            if not pending:
                state[index] = 2
                order.append(waiting[index])
                stack.pop()
            elif state[index] == 1:
                raise ValueError(f"node '{waiting[index].name}' is part of a cycle")
            else:
                state[index] = 1
                stack.extend(reversed(pending))
    return order


def drop_unused(nodes: list[Node], outputs: Iterable[str]) -> list[Node]:
    """The nodes, in order, whose results reach one of ``outputs``."""
    needed = set(outputs)
    kept: list[Node] = []
    for node in reversed(nodes):
        if needed & set(node.outputs):
            needed |= set(node.inputs)
            kept.append(node)
    return kept[::-1]
