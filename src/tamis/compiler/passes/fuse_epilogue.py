"""Move pointwise steps into the epilogue of the layer in front of them.

Layers are Conv, ConvTranspose, Linear and MatMul. From the last layer to the first, and from each as far as
possible along the chain of Elementwise nodes behind it:

1. The layer's result, and each one between, has a single reader and is not a graph output.
2. A unary step is always moved, unless it gives booleans.
3. A binary step is moved when its operand is a residual: a computed value of exactly the layer's output
   type, and the only operand of the epilogue. It cannot depend on the layer, whose results by rule 1 go
   nowhere else.
4. A node is moved whole or not at all.

Why one residual and no other operand: this is what the fused kernels of every library can do (a bias, one
tensor of the output's shape, and functions of one number). Constants per channel were folded into the weights
before; what is left of them stays outside, for ``fuse_pointwise``.

Why from the last layer to the first: when both sides of an addition are layers, the later one takes it, and
the earlier one's result is then at hand.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tamis.compiler.ir.graph import Graph, GraphEditor, Node
from tamis.compiler.ir.ops import Conv, ConvTranspose, Elementwise, Linear, MatMul, Program
from tamis.compiler.passes.view import View, is_float_program, program_from, shift_operands

Layer = Conv | ConvTranspose | Linear | MatMul


@dataclass(frozen=True)
class _Chain:
    """What was found behind a layer: the nodes, the steps and their operands."""

    nodes: tuple[Node, ...]
    program: Program
    residual: str | None


def fuse_epilogue(graph: Graph) -> Graph:
    """The graph with pointwise steps moved into the layers before them."""
    view = View(graph)
    editor = GraphEditor(graph)
    taken: set[str] = set()
    for layer in reversed(graph.nodes):
        if not isinstance(layer.op, Layer):
            continue
        chain = _chain_behind(view, layer, taken)
        if not chain.nodes:
            continue
        taken |= {node.name for node in chain.nodes}
        for node in chain.nodes:
            editor.remove_node(node)
        editor.replace_node(layer, _fused(layer, chain))
    return editor.finish()


def _chain_behind(view: View, layer: Node, taken: set[str]) -> _Chain:
    """The longest chain that may move into the layer."""
    assert isinstance(layer.op, Layer)
    chain = _Chain((), (), None)
    full = any(step.operand is not None for step in layer.op.epilogue)
    value = layer.output
    while True:
        node = view.sole_reader(value)
        if node is None or node.name in taken or not isinstance(node.op, Elementwise):
            return chain
        told = program_from(node, value)
        if told is None or not is_float_program(told[0]) or view.type(node.output) != view.type(layer.output):
            return chain
        program, operands = told
        residual = chain.residual
        if operands:
            if full or len(operands) > 1 or residual is not None or not _is_residual(view, layer, operands[0]):
                return chain
            residual = operands[0]
        chain = _Chain((*chain.nodes, node), chain.program + program, residual)
        value = node.output


def _is_residual(view: View, layer: Node, operand: str) -> bool:
    """Rule 3."""
    return not view.graph.is_constant(operand) and view.type(operand) == view.type(layer.output)


def _fused(layer: Node, chain: _Chain) -> Node:
    """The layer with the chain's steps behind its own epilogue."""
    assert isinstance(layer.op, Layer)
    steps = shift_operands(chain.program, len(layer.inputs))
    origin = (*layer.origin, *(name for node in chain.nodes for name in node.origin))
    return replace(
        layer,
        op=replace(layer.op, epilogue=layer.op.epilogue + steps),
        inputs=layer.inputs if chain.residual is None else (*layer.inputs, chain.residual),
        outputs=chain.nodes[-1].outputs,
        origin=tuple(dict.fromkeys(origin)),
    )
