"""A graph as text: one line a node, for ``--dump``, for messages and for tests.

::

    graph net
    input   %x       float32[1,4,8,8]
    const   w        float32[8,4,3,3] 2:4 (50.0% zeros)
    node    %y       float32[1,8,8,8]   Conv(%x, w) strides=1,1 pads=1,1,1,1 dilations=1,1 | +b +%r relu
    output  %y       float32[1,8,8,8]

Computed values carry a ``%``, constants do not. Behind the bar stand the bias and the epilogue in the order
in which they act. The text depends on the graph only, so it can be compared.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import MISSING, fields

import numpy as np

from tamis.compiler.ir.graph import Graph, Node, TensorType
from tamis.compiler.ir.ops import Elementwise, Op, Pointwise, epilogue_of
from tamis.formats.dtype import DType

# Columns are aligned up to this width; a longer name pushes its own line only.
WIDEST = 44
# Attributes that are told by the program or by the inputs.
_NOT_PRINTED = ("bias", "epilogue", "program", "mask", "scale", "residual")
_SIGNS = {"add": "+", "sub": "-", "mul": "*", "div": "/"}


def to_text(graph: Graph) -> str:
    """The whole graph, ending in a newline."""
    rows: list[tuple[str, str, str, str]] = []
    rows += [("input", f"%{value}", str(graph.types[value]), "") for value in graph.inputs]
    rows += [("const", value, constant_text(graph, value), "") for value in graph.constants]
    for node in graph.nodes:
        names = ", ".join(f"%{value}" for value in node.outputs)
        types = ", ".join(str(graph.types[value]) for value in node.outputs)
        rows.append(("node", names, types, node_text(graph, node)))
    rows += [("output", _name(graph, value), str(graph.types[value]), "") for value in graph.outputs]
    first = min(WIDEST, max((len(row[1]) for row in rows), default=0))
    second = min(WIDEST, max((len(row[2]) for row in rows if row[3]), default=0))
    lines = [f"{kind:<8}{name:<{first}}  {type_:<{second}}  {text}".rstrip() for kind, name, type_, text in rows]
    return "\n".join([f"graph {graph.name}", *lines]) + "\n"


def summary(graph: Graph) -> str:
    """The number of nodes of each operator, the most frequent first: ``12 nodes: 8 Conv, 4 Pool``."""
    counts = Counter(type(node.op).__name__ for node in graph.nodes)
    parts = [f"{count} {name}" for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
    word = "node" if len(graph.nodes) == 1 else "nodes"
    return f"{len(graph.nodes)} {word}" + (f": {', '.join(parts)}" if parts else "")


def constant_text(graph: Graph, value: str) -> str:
    """Type of a constant, with its value when it is tiny and the share of its zeros when it has some."""
    array = graph.constants[value]
    text = str(TensorType(tuple(array.shape), DType.of(array)))
    if array.size <= 4:
        return f"{text} = {np.array2string(array, separator=',', floatmode='unique')}".replace("\n", "")
    note = graph.sparsity.get(value)
    pattern = f" {note.pattern}" if note else ""
    zeros = 1.0 - np.count_nonzero(array) / array.size
    return f"{text}{pattern} ({100 * zeros:.1f}% zeros)" if zeros or note else text


def node_text(graph: Graph, node: Node) -> str:
    """Operator, inputs, attributes and program of a node, on one line."""
    op = node.op
    program = op.program if isinstance(op, Elementwise) else epilogue_of(op)
    operands = {step.operand for step in program if step.operand is not None}
    steps = [_step(graph, node, step) for step in program]
    bias = None
    if getattr(op, "bias", False) is True and hasattr(op, "epilogue"):
        bias = 2
        steps.insert(0, f"+{_name(graph, node.inputs[2])}")
    told = [
        _name(graph, value)
        for index, value in enumerate(node.inputs)
        if index == 0 or (index not in operands and index != bias)
    ]
    parts = [f"{type(op).__name__}({', '.join(told)})", *_attributes(op)]
    return " ".join(parts) + (f" | {' '.join(steps)}" if steps else "")


def _attributes(op: Op) -> list[str]:
    """``name=value`` for the attributes, those left at their default aside."""
    shown = []
    for field in fields(op):
        value = getattr(op, field.name)
        switch = field.name in _NOT_PRINTED and not isinstance(value, float)
        if switch or (field.default is not MISSING and value == field.default):
            continue
        shown.append(f"{field.name}={_value(value)}")
    if getattr(op, "residual", False):
        shown.append("residual")
    if getattr(op, "mask", False):
        shown.append("mask")
    return shown


def _value(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(map(_value, value)) or "()"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _step(graph: Graph, node: Node, step: Pointwise) -> str:
    """One step: ``+%r``, ``%r-``, ``max(%r)``, ``relu`` or ``clip(0,6)``."""
    params = [_value(value) for value in step.params]
    if step.operand is None:
        return f"{step.kind}({','.join(params)})" if params else step.kind
    name = _name(graph, node.inputs[step.operand])
    if step.kind in _SIGNS:
        sign = _SIGNS[step.kind]
        return f"{name}{sign}" if step.swap else f"{sign}{name}"
    return f"{step.kind}({', '.join([name, *params])}{', swapped' if step.swap else ''})"


def _name(graph: Graph, value: str) -> str:
    return value if graph.is_constant(value) else f"%{value}"
