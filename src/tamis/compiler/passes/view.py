"""How the passes look at a graph: who makes a value, who reads it, what is known of it at build time.

A ``View`` is made once per sweep over a graph and answers in constant time; the graph stays plain data.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from tamis.compiler.ir.graph import Graph, Node, TensorType
from tamis.compiler.ir.ops import BOOLEAN_KINDS, Elementwise, Pointwise, Program

Sweep = Callable[[Graph], Graph]

COMMUTATIVE = ("add", "and", "equal", "max", "min", "mul", "or", "xor")


class View:
    """An index over one graph."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.outputs = set(graph.outputs)
        self.position = {node.name: index for index, node in enumerate(graph.nodes)}
        self._producer = graph.producers()
        self._readers = graph.consumers()

    def type(self, value: str) -> TensorType:
        """Shape and element type of a value."""
        return self.graph.types[value]

    def shape(self, value: str) -> tuple[int, ...]:
        """Shape of a value."""
        return self.graph.types[value].shape

    def producer(self, value: str) -> Node | None:
        """The node that makes a value; None for inputs and constants."""
        return self._producer.get(value)

    def readers(self, value: str) -> list[Node]:
        """The nodes that read a value, each once."""
        return self._readers.get(value, [])

    def sole_reader(self, value: str) -> Node | None:
        """The only node that reads a value which is not a graph output; None when there are more, or none."""
        readers = self.readers(value)
        return readers[0] if len(readers) == 1 and value not in self.outputs else None

    def array(self, value: str) -> np.ndarray | None:
        """The array of a constant, None for other values."""
        return self.graph.constants.get(value)

    def scalar(self, value: str) -> float | None:
        """The number held by a constant of a single element (of any rank), None for other values."""
        array = self.graph.constants.get(value)
        return float(array.reshape(())) if array is not None and array.size == 1 else None

    def single_step(self, value: str) -> tuple[Node, Pointwise] | None:
        """The node and its only step, when a one-step Elementwise makes the value."""
        node = self.producer(value)
        if node is None or not isinstance(node.op, Elementwise) or len(node.op.program) != 1:
            return None
        return node, node.op.program[0]

    def unary(self, value: str, kind: str) -> str | None:
        """``x`` when the value is ``kind(x)``."""
        found = self.single_step(value)
        if found is None or found[1].kind != kind or found[1].operand is not None:
            return None
        return found[0].inputs[0]

    def binary(self, value: str, kind: str) -> tuple[str, str] | None:
        """``(a, b)`` when the value is ``a kind b``, the swap of arguments undone."""
        found = self.single_step(value)
        if found is None or found[1].kind != kind or found[1].operand is None:
            return None
        node, step = found
        first, second = node.inputs[0], node.inputs[found[1].operand]
        return (second, first) if step.swap else (first, second)


def to_fixed_point(graph: Graph, sweep: Sweep) -> Graph:
    """Repeat a sweep until it returns the graph it was given."""
    while (swept := sweep(graph)) is not graph:
        graph = swept
    return graph


def per_channel(array: np.ndarray, rank: int, axis: int, channels: int) -> np.ndarray | None:
    """A constant that broadcasts along one axis of a rank-``rank`` tensor, as a float64 vector [channels].

    None when it varies along any other axis or would add axes. ``axis`` is non-negative.
    """
    if array.ndim > rank:
        return None
    shape = (1,) * (rank - array.ndim) + array.shape
    if any(size != 1 for index, size in enumerate(shape) if index != axis) or shape[axis] not in (
        1,
        channels,
    ):
        return None
    return np.broadcast_to(array.astype(np.float64).reshape(-1), (channels,))


def is_float_program(program: Program) -> bool:
    """Whether every step takes and gives floating point."""
    return all(step.kind not in BOOLEAN_KINDS for step in program)


def exchanged(step: Pointwise) -> Pointwise:
    """The step with its two arguments in each other's place."""
    return replace(step, swap=False) if step.kind in COMMUTATIVE else replace(step, swap=not step.swap)


def program_from(node: Node, value: str) -> tuple[Program, tuple[str, ...]] | None:
    """The program of an Elementwise node told with ``value`` as the running value.

    Returns the program, its operands numbered from 0 into the tuple that comes with it, or None when the
    node cannot be told so: ``value`` is an operand of a later step, or is used more than once.
    """
    assert isinstance(node.op, Elementwise)
    steps, inputs = list(node.op.program), list(node.inputs)
    if inputs[0] != value:
        first = steps[0] if steps else None
        if first is None or first.operand is None or inputs[first.operand] != value:
            return None
        steps[0] = replace(exchanged(first), operand=0)
    operands: list[str] = []
    program = []
    for step in steps:
        if step.operand is None:
            program.append(step)
            continue
        name = inputs[step.operand]
        if name == value:
            return None
        if name not in operands:
            operands.append(name)
        program.append(replace(step, operand=operands.index(name)))
    return tuple(program), tuple(operands)


def shift_operands(program: Program, offset: int) -> Program:
    """The program with its operand indices moved up by ``offset``."""
    return tuple(step if step.operand is None else replace(step, operand=step.operand + offset) for step in program)


def compact(program: Program, inputs: tuple[str, ...]) -> tuple[Program, tuple[str, ...]]:
    """The program and inputs of an Elementwise node without the operands that no step reads."""
    used = sorted({0} | {step.operand for step in program if step.operand is not None})
    steps = tuple(step if step.operand is None else replace(step, operand=used.index(step.operand)) for step in program)
    return steps, tuple(inputs[index] for index in used)
