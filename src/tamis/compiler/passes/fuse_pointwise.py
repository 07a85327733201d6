"""Group the pointwise nodes that are left into programs.

1. An Elementwise node and its only reader, when that is one too, become one program: every step in between
   stays in registers. The reader's other inputs become operands; if one is the value itself, the chain ends.
2. Both results have the same type: a program that broadens its value would repeat the work in front.
3. Steps that give booleans, and operands of another element type than the value's, stay by themselves.
4. A program has at most ``MOST_TENSORS`` operands that are more than a single number, as many as a kernel can
   read side by side without running out of registers for their addresses.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tamis.compiler.ir.graph import Graph, GraphEditor, Node
from tamis.compiler.ir.ops import Elementwise, Program
from tamis.compiler.passes.view import View, is_float_program, program_from

MOST_TENSORS = 6


@dataclass(frozen=True)
class _Group:
    """Nodes that became one program, with the inputs of that."""

    nodes: tuple[Node, ...]
    program: Program
    inputs: tuple[str, ...]


def fuse_pointwise(graph: Graph) -> Graph:
    """The graph with chains of pointwise nodes as one node each."""
    view = View(graph)
    editor = GraphEditor(graph)
    taken: set[str] = set()
    for node in graph.nodes:
        if node.name in taken or not _can_join(view, node):
            continue
        assert isinstance(node.op, Elementwise)
        group = _grown(view, _Group((node,), node.op.program, node.inputs), taken)
        if len(group.nodes) == 1:
            continue
        taken |= {member.name for member in group.nodes}
        for member in group.nodes[:-1]:
            editor.remove_node(member)
        last = group.nodes[-1]
        origin = tuple(dict.fromkeys(name for member in group.nodes for name in member.origin))
        editor.replace_node(last, replace(last, op=Elementwise(group.program), inputs=group.inputs, origin=origin))
    return editor.finish()


def _can_join(view: View, node: Node) -> bool:
    """Rule 3."""
    if not isinstance(node.op, Elementwise) or not is_float_program(node.op.program):
        return False
    dtypes = {view.type(value).dtype for value in (*node.inputs, *node.outputs)}
    return len(dtypes) == 1


def _grown(view: View, group: _Group, taken: set[str]) -> _Group:
    """The group with all the nodes behind it that may join."""
    while True:
        last = group.nodes[-1]
        reader = view.sole_reader(last.output)
        if reader is None or reader.name in taken or not _can_join(view, reader):
            return group
        told = program_from(reader, last.output)
        if told is None or view.type(reader.output) != view.type(last.output):
            return group
        program, operands = told
        inputs = (*group.inputs, *(name for name in operands if name not in group.inputs))
        if sum(view.type(name).elements > 1 for name in inputs[1:]) > MOST_TENSORS:
            return group
        places = {name: inputs.index(name) for name in operands}
        steps = tuple(
            step if step.operand is None else replace(step, operand=places[operands[step.operand]]) for step in program
        )
        group = _Group((*group.nodes, reader), group.program + steps, inputs)
