"""Remove the nodes that change nothing.

1. A step that leaves every value as it is (``identity``, ``+0``, ``-0``, ``*1``, ``/1``, ``**1`` with a
   constant that does not broaden the shape) leaves its program.
2. A node whose result is its input goes: the empty Elementwise, Reshape, Expand, Slice and Resize to the same
   shape, Transpose in the same order, Pad by nothing, Tile once, Cast to the same type, Concat and Split of
   one part, pooling over one element, reducing axes of size one that are kept.
3. An Expand in front of an Elementwise that broadcasts anyway is bypassed.

A copy that gives an input, a constant or another output its public name as a graph output stays.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tamis.compiler.ir.graph import Graph, GraphEditor, Node
from tamis.compiler.ir.ops import (
    Cast,
    Concat,
    Elementwise,
    Expand,
    Pad,
    Pointwise,
    Pool,
    Program,
    Reduce,
    Reshape,
    Resize,
    Slice,
    Split,
    Tile,
    Transpose,
)
from tamis.compiler.passes.view import View, compact

# Constant operand that makes a binary step an identity; those in the second row only as the second argument.
NEUTRAL = {"add": 0.0, "mul": 1.0}
NEUTRAL_SECOND = {"sub": 0.0, "div": 1.0, "pow": 1.0}


def remove_identities(graph: Graph) -> Graph:
    """The graph without nodes and steps that change nothing."""
    view = View(graph)
    editor = GraphEditor(graph)
    for node in graph.nodes:
        slim = _without_neutral_steps(view, node)
        source = slim.inputs[0]
        if _is_identity(view, slim) and not _names_an_output(view, node, source):
            editor.remove_node(node)
            editor.rename(node.output, source)
            continue
        slim = _without_expands(view, slim)
        if slim is not node:
            editor.replace_node(node, slim)
    return editor.finish()


def _names_an_output(view: View, node: Node, source: str) -> bool:
    """Whether the node is needed to give a value that has a name of its own the name of a graph output."""
    return node.output in view.outputs and (view.producer(source) is None or source in view.outputs)


def _without_neutral_steps(view: View, node: Node) -> Node:
    """Rule 1; the very same node when nothing changes."""
    if not isinstance(node.op, Elementwise):
        return node
    steps: list[Pointwise] = []
    shape = view.shape(node.inputs[0])
    for step in node.op.program:
        if step.operand is None:
            if step.kind != "identity":
                steps.append(step)
            continue
        wide = np.broadcast_shapes(shape, view.shape(node.inputs[step.operand]))
        if wide != shape or not _is_neutral(view, step, node.inputs[step.operand]):
            steps.append(step)
        shape = wide
    if len(steps) == len(node.op.program):
        return node
    program, inputs = compact(tuple(steps), node.inputs)
    return replace(node, op=Elementwise(program), inputs=inputs)


def _is_neutral(view: View, step: Pointwise, operand: str) -> bool:
    """Whether a binary step with this constant operand leaves its value as it is."""
    neutral = NEUTRAL.get(step.kind, None if step.swap else NEUTRAL_SECOND.get(step.kind))
    array = view.array(operand)
    return neutral is not None and array is not None and bool(np.all(array == neutral))


def _is_identity(view: View, node: Node) -> bool:
    """Rule 2."""
    if view.type(node.inputs[0]) != view.type(node.output):
        return False
    match node.op:
        case Elementwise(program=program):
            return program == ()
        case Reshape() | Expand() | Cast():
            return True
        case Slice(steps=steps):
            return all(step == 1 for step in steps)
        case Resize(scales=scales):
            return all(scale == 1 for scale in scales)
        case Transpose(perm=perm):
            return perm == tuple(range(len(perm)))
        case Pad(pads=pads):
            return not any(pads)
        case Tile(repeats=repeats):
            return all(repeat == 1 for repeat in repeats)
        case Concat() | Split():
            # The types are equal: either there is one part, or the others are empty.
            return len(node.inputs) == len(node.outputs) == 1
        case Pool(kernel=kernel, strides=strides, pads=pads):
            return not any(pads) and set(kernel) | set(strides) == {1}
        case Reduce(kind=kind):
            # The shapes are equal, so every reduced axis has one element.
            return kind in ("mean", "sum", "max", "min", "prod")
        case _:
            return False


def _without_expands(view: View, node: Node) -> Node:
    """Rule 3; the very same node when nothing changes."""
    if not isinstance(node.op, Elementwise):
        return node
    inputs = list(node.inputs)
    for index, value in enumerate(node.inputs):
        producer = view.producer(value)
        if producer is None or not isinstance(producer.op, Expand):
            continue
        trial = [*inputs[:index], producer.inputs[0], *inputs[index + 1 :]]
        if _output_shape(view, node.op.program, trial) == view.shape(node.output):
            inputs = trial
    return node if tuple(inputs) == node.inputs else replace(node, inputs=tuple(inputs))


def _output_shape(view: View, program: Program, inputs: list[str]) -> tuple[int, ...]:
    """Shape of the result of a program."""
    read = {0} | {step.operand for step in program if step.operand is not None}
    return np.broadcast_shapes(*(view.shape(inputs[index]) for index in read))
