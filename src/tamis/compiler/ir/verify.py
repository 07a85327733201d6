"""The verifier: is a graph consistent?

It runs between passes in tests and after the last pass of every build. It checks the form of the graph, and
that the recorded types are those which ``infer`` finds, so a pass cannot quietly change a shape.
"""

from __future__ import annotations

from tamis.compiler.ir.graph import Graph, Node, TensorType
from tamis.compiler.ir.infer import infer
from tamis.compiler.ir.ops import Conv, ConvTranspose, Elementwise, Linear, MatMul, epilogue_of, operand_start
from tamis.errors import BuildError, VerificationError
from tamis.formats.dtype import DType


def verify(graph: Graph) -> None:
    """Check a graph.

    Raises:
        VerificationError: something does not hold; the message names the node or the value.
    """
    _check_constants(graph)
    known = set(graph.inputs) | set(graph.constants)
    if len(set(graph.inputs)) != len(graph.inputs) or set(graph.inputs) & set(graph.constants):
        raise VerificationError("two graph inputs, or an input and a constant, have one name")
    names: set[str] = set()
    for node in graph.nodes:
        if node.name in names:
            raise VerificationError("two nodes have this name", layer=node.name)
        names.add(node.name)
        _check_values(graph, node, known)
        _check_program(node)
        _check_types(graph, node)
        known.update(node.outputs)
    _check_ends(graph, known)


def _check_constants(graph: Graph) -> None:
    for value, array in graph.constants.items():
        found = TensorType(tuple(array.shape), DType.of(array))
        if graph.types.get(value) != found:
            raise VerificationError(f"constant '{value}' is {found} but recorded as {graph.types.get(value)}")
    for value in graph.sparsity:
        if value not in graph.constants:
            raise VerificationError(f"there is a sparsity note on '{value}', which is not a constant")


def _check_values(graph: Graph, node: Node, known: set[str]) -> None:
    """Inputs exist and outputs are new."""
    for value in node.inputs:
        if value not in known:
            later = any(value in other.outputs for other in graph.nodes)
            cause = "before it is produced" if later else "which nothing produces"
            raise VerificationError(f"reads '{value}', {cause}", layer=node.name)
    if not node.outputs or len(set(node.outputs)) != len(node.outputs):
        raise VerificationError(f"outputs {node.outputs} must be at least one, and different", layer=node.name)
    for value in node.outputs:
        if value in known:
            raise VerificationError(f"makes '{value}', which exists already", layer=node.name)


def _check_program(node: Node) -> None:
    """Steps read inputs that exist, and every input is read; the kinds are checked by ``infer``."""
    if not isinstance(node.op, Conv | ConvTranspose | Elementwise | Linear | MatMul):
        return
    program = node.op.program if isinstance(node.op, Elementwise) else epilogue_of(node.op)
    read = {step.operand for step in program if step.operand is not None}
    for index in read:
        if not 0 <= index < len(node.inputs):
            raise VerificationError(
                f"a step reads input {index} of {len(node.inputs)}, which does not exist", layer=node.name
            )
    for index in range(operand_start(node.op), len(node.inputs)):
        if index not in read:
            raise VerificationError(f"no step reads input '{node.inputs[index]}'", layer=node.name)


def _check_types(graph: Graph, node: Node) -> None:
    """The recorded types are those that follow from the inputs."""
    for value in (*node.inputs, *node.outputs):
        if value not in graph.types:
            raise VerificationError(f"value '{value}' has no recorded type", layer=node.name)
    try:
        found = infer(node.op, [graph.types[value] for value in node.inputs])
    except BuildError as error:
        raise VerificationError(error.cause, layer=node.name) from error
    if len(node.outputs) > len(found):
        raise VerificationError(f"has {len(node.outputs)} outputs, its operator makes {len(found)}", layer=node.name)
    for value, type_ in zip(node.outputs, found, strict=False):
        if graph.types[value] != type_:
            raise VerificationError(f"'{value}' is recorded as {graph.types[value]}, but is {type_}", layer=node.name)


def _check_ends(graph: Graph, known: set[str]) -> None:
    """Inputs have types, outputs are produced."""
    for value in graph.inputs:
        if value not in graph.types:
            raise VerificationError(f"graph input '{value}' has no recorded type")
    if len(set(graph.outputs)) != len(graph.outputs):
        raise VerificationError("two graph outputs have one name")
    for value in graph.outputs:
        if value not in known:
            raise VerificationError(f"graph output '{value}' is not produced by any node")
