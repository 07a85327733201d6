"""Tidy Reshape and Transpose nodes.

1. A Transpose in front of a pointwise node or a Concat, on all of its computed inputs and in one order,
   moves behind it; constants are turned instead. So does a Reshape in front of a pointwise node whose other
   inputs are single numbers. So transposes meet, and the pointwise node meets the layer.
2. A chain of Reshape and Transpose becomes the shortest chain that does the same: pairs cancel, neighbours
   merge, a Transpose that only moves axes of size one becomes a Reshape. A value inside the chain that others
   read stays, and nothing is computed twice for that.
3. Of two chains equally short, the one in which an image turns into rows by the Transpose (0,2,3,1), or
   rows into an image by (0,3,1,2), is taken: with images channels-last in memory both are free. So this pass
   is the layout pass as well: shapes in the graph are logical, the memory order is the planner's.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import zip_longest

import numpy as np

from tamis.compiler.ir.graph import Graph, GraphEditor, Node, TensorType
from tamis.compiler.ir.ops import Concat, Elementwise, Reshape, Transpose
from tamis.compiler.passes.rearrange import IMAGE_TO_ROWS, ROWS_TO_IMAGE, Step, rearrangement, shortest
from tamis.compiler.passes.view import View, to_fixed_point


def clean_transposes(graph: Graph) -> Graph:
    """The graph with the fewest rearrangements."""
    return to_fixed_point(graph, lambda now: _sink(to_fixed_point(now, _shorten)))


def _sink(graph: Graph) -> Graph:
    """Rule 1, one step for each node."""
    view = View(graph)
    editor = GraphEditor(graph)
    moved: set[str] = set()
    for node in graph.nodes:
        perm = _common_perm(view, node, moved)
        if perm is None:
            if _sink_reshape(view, editor, node, moved):
                moved |= {node.output, node.inputs[0]}
            continue
        sources, turns = {}, []
        for value in dict.fromkeys(node.inputs):
            turn = view.producer(value)
            if turn is None:
                sources[value] = _turned_constant(editor, value, perm)
            else:
                turns.append(turn)
                sources[value] = turn.inputs[0]
        moved |= {node.output, *(turn.output for turn in turns)}
        op = Concat(perm[node.op.axis]) if isinstance(node.op, Concat) else node.op
        result = view.type(node.output)
        inverse = tuple(perm.index(axis) for axis in range(len(perm)))
        before = editor.fresh(f"{node.output}.before")
        editor.set_type(before, TensorType(tuple(result.shape[axis] for axis in inverse), result.dtype))
        inputs = tuple(sources[value] for value in node.inputs)
        editor.replace_node(node, replace(node, op=op, inputs=inputs, outputs=(before,)))
        name = editor.fresh_node(f"{node.name}.turn")
        editor.add_node(Node(name, Transpose(perm), (before,), node.outputs, turns[0].origin))
    return editor.finish()


def _sink_reshape(view: View, editor: GraphEditor, node: Node, moved: set[str]) -> bool:
    """Rule 1 for a Reshape; whether it was moved."""
    value = node.inputs[0]
    reshape = view.producer(value)
    if not isinstance(node.op, Elementwise) or reshape is None or not isinstance(reshape.op, Reshape):
        return False
    if view.sole_reader(value) is not node or view.shape(value) != view.shape(node.output):
        return False
    if value in moved or reshape.inputs[0] in moved or any(view.scalar(other) is None for other in node.inputs[1:]):
        return False
    source = reshape.inputs[0]
    numbers = [
        editor.add_constant(f"{other}.number", view.graph.constants[other].reshape(())) if view.shape(other) else other
        for other in node.inputs[1:]
    ]
    before = editor.fresh(f"{node.output}.before")
    editor.set_type(before, TensorType(view.shape(source), view.type(node.output).dtype))
    editor.replace_node(node, replace(node, inputs=(source, *numbers), outputs=(before,)))
    name = editor.fresh_node(f"{node.name}.reshape")
    editor.add_node(Node(name, reshape.op, (before,), node.outputs, reshape.origin))
    return True


def _common_perm(view: View, node: Node, moved: set[str]) -> tuple[int, ...] | None:
    """The order in which all computed inputs of a pointwise node or Concat are transposed, if they are.

    Not when one of them meets a Transpose that was just moved: the two are merged first.
    """
    if not isinstance(node.op, Elementwise | Concat) or len(node.outputs) != 1:
        return None
    perms = set()
    rank = len(view.shape(node.output))
    for value in node.inputs:
        producer = view.producer(value)
        if producer is None:
            array = view.array(value)
            if array is None or (array.ndim != rank and isinstance(node.op, Concat)):
                return None
            continue
        if not isinstance(producer.op, Transpose) or len(view.shape(value)) != rank:
            return None
        if value in moved or producer.inputs[0] in moved:
            return None
        if view.sole_reader(value) is not node:
            return None
        perms.add(producer.op.perm)
    return perms.pop() if len(perms) == 1 else None


def _turned_constant(editor: GraphEditor, value: str, perm: tuple[int, ...]) -> str:
    """A constant operand as it is seen in front of the Transpose."""
    array = editor.graph.constants[value]
    if array.size == 1 and array.ndim <= 1:
        return value
    array = array.reshape((1,) * (len(perm) - array.ndim) + array.shape)
    inverse = tuple(perm.index(axis) for axis in range(len(perm)))
    return editor.add_constant(f"{value}.turned", np.ascontiguousarray(array.transpose(inverse)))


def _shorten(graph: Graph) -> Graph:
    """Rules 2 and 3, each chain once, from its end."""
    view = View(graph)
    editor = GraphEditor(graph)
    touched: set[str] = set()
    for node in reversed(graph.nodes):
        if not isinstance(node.op, Reshape | Transpose) or node.name in touched:
            continue
        chain = _chain_to(view, node, touched)
        found = [better for start in range(len(chain)) if (better := _better(view, chain[start:])) is not None]
        if found:
            _, _, steps, part = max(found, key=lambda better: better[:2])
            touched |= {member.name for member in part}
            _rewrite(editor, part, steps)
    return editor.finish()


def _chain_to(view: View, node: Node, touched: set[str]) -> list[Node]:
    """The Reshape and Transpose nodes that end in a node, in order."""
    chain = [node]
    while True:
        producer = view.producer(chain[0].inputs[0])
        if producer is None or producer.name in touched or not isinstance(producer.op, Reshape | Transpose):
            return chain
        chain.insert(0, producer)


def _better(view: View, chain: list[Node]) -> tuple[int, int, list[Step], list[Node]] | None:
    """A better chain of steps for the last value of a chain: nodes and steps saved, the steps, the chain."""
    old = [node.op for node in chain if isinstance(node.op, Reshape | Transpose)]
    # Of Reshapes in a row only the last counts, whatever it does to the axes.
    joined = [step for step, after in zip_longest(old, old[1:]) if not (_is_reshape(step) and _is_reshape(after))]
    found = rearrangement(view.shape(chain[0].inputs[0]), joined)
    new = joined if found is None else shortest(found)
    if not new and chain[-1].output in view.outputs:
        return None  # the copy that gives an output its name is for remove_identities to judge
    freed = 1
    while freed < len(chain) and view.sole_reader(chain[-freed - 1].output) is chain[-freed]:
        freed += 1
    result = (freed - len(new), len(old) - len(new), new, chain)
    if len(new) < len(old) and len(new) <= freed:
        return result
    cheaper = _turns(new) < _turns(old) or (_is_free(new) and not _is_free(old) and _turns(new) == _turns(old))
    return result if len(new) == len(old) == freed and cheaper else None


def _is_reshape(step: Step | None) -> bool:
    """Whether a step is there and is a Reshape."""
    return isinstance(step, Reshape)


def _turns(steps: list[Step]) -> int:
    return sum(isinstance(step, Transpose) for step in steps)


def _is_free(steps: list[Step]) -> bool:
    """Rule 3."""
    return steps[0] == Transpose(IMAGE_TO_ROWS) or steps[-1] == Transpose(ROWS_TO_IMAGE)


def _rewrite(editor: GraphEditor, chain: list[Node], steps: list[Step]) -> None:
    """Compute the last value of a chain by other steps; the values between go unless others read them."""
    last = chain[-1]
    origin = tuple(dict.fromkeys(name for node in chain for name in node.origin))
    value = chain[0].inputs[0]
    if not steps:
        editor.remove_node(last)
        editor.rename(last.output, value)
        return
    type_ = editor.graph.types[value]
    for index, step in enumerate(steps[:-1]):
        shape = step.shape if isinstance(step, Reshape) else tuple(type_.shape[axis] for axis in step.perm)
        type_ = TensorType(shape, type_.dtype)
        result = editor.fresh(f"{last.output}.step{index}")
        name = editor.fresh_node(f"{last.name}.step{index}")
        editor.add_node(Node(name, step, (value,), (result,), origin), {result: type_})
        value = result
    editor.replace_node(last, replace(last, op=steps[-1], inputs=(value,), origin=origin))
