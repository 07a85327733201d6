"""The verifier finds each kind of damage and names the node."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from tamis.compiler.ir.graph import Graph, Node, SparsityNote, TensorType
from tamis.compiler.ir.ops import Elementwise, Linear, Pointwise, Transpose
from tamis.compiler.ir.verify import verify
from tamis.errors import VerificationError
from tamis.formats.dtype import DType


def good() -> Graph:
    add = Elementwise((Pointwise("add", operand=1), Pointwise("relu")))
    return Graph(
        "net",
        ("x",),
        ("y",),
        (
            Node("linear", Linear(bias=True), ("x", "w", "b"), ("h",)),
            Node("sum", add, ("h", "x"), ("y",)),
        ),
        {
            value: TensorType(shape)
            for value, shape in (("x", (2, 4)), ("w", (4, 4)), ("b", (4,)), ("h", (2, 4)), ("y", (2, 4)))
        },
        {"w": np.ones((4, 4), np.float32), "b": np.ones(4, np.float32)},
    )


def with_node(index: int, **changes: object) -> Graph:
    graph = good()
    nodes = list(graph.nodes)
    nodes[index] = replace(nodes[index], **changes)  # type: ignore[arg-type]
    return replace(graph, nodes=tuple(nodes))


def with_types(**types: TensorType | None) -> Graph:
    graph = good()
    merged = {**graph.types, **types}
    return replace(graph, types={value: type_ for value, type_ in merged.items() if type_ is not None})


def test_good() -> None:
    verify(good())


DAMAGE: dict[str, tuple[Callable[[], Graph], str]] = {
    "two nodes of one name": (lambda: with_node(1, name="linear"), "layer 'linear': two nodes have this name"),
    "order": (lambda: replace(good(), nodes=good().nodes[::-1]), "layer 'sum': reads 'h', before it is produced"),
    "nothing produces": (lambda: with_node(1, inputs=("h", "z")), "layer 'sum': reads 'z', which nothing produces"),
    "reads itself": (lambda: with_node(1, inputs=("y", "x")), "layer 'sum': reads 'y', before it is produced"),
    "made twice": (lambda: with_node(1, outputs=("h",)), "layer 'sum': makes 'h', which exists already"),
    "makes an input": (lambda: with_node(1, outputs=("x",)), "layer 'sum': makes 'x', which exists already"),
    "no outputs": (lambda: with_node(1, outputs=()), "layer 'sum': outputs () must be at least one"),
    "too many outputs": (lambda: replace(with_types(z=TensorType((1,))), nodes=with_node(1, outputs=("y", "z")).nodes), "layer 'sum': has 2 outputs, its operator makes 1"),
    "operand out of range": (
        lambda: with_node(1, op=Elementwise((Pointwise("add", operand=2), Pointwise("mul", operand=1)))),
        "layer 'sum': a step reads input 2 of 2",
    ),
    "input nobody reads": (lambda: with_node(1, op=Elementwise((Pointwise("relu"),))), "layer 'sum': no step reads input 'x'"),
    "layer input nobody reads": (lambda: with_node(0, inputs=("x", "w", "b", "x")), "layer 'linear': no step reads input 'x'"),
    "unknown kind": (
        lambda: with_node(1, op=Elementwise((Pointwise("add", operand=1), Pointwise("swoosh")))),
        "layer 'sum': Elementwise: 'swoosh' is not a unary pointwise kind",
    ),
    "unknown kind in an epilogue": (
        lambda: with_node(0, op=Linear(bias=True, epilogue=(Pointwise("swoosh"),))),
        "layer 'linear': Linear: 'swoosh' is not a unary pointwise kind",
    ),
    "does not fit": (lambda: with_node(0, op=Transpose((0,)), inputs=("x",)), "layer 'linear': Transpose"),
    "wrong shape": (lambda: with_types(h=TensorType((1, 4))), "layer 'linear': 'h' is recorded as float32[1,4], but is float32[2,4]"),
    "wrong element type": (lambda: with_types(y=TensorType((2, 4), DType.INT8)), "layer 'sum': 'y' is recorded as int8[2,4]"),
    "no type": (lambda: with_types(y=None), "layer 'sum': value 'y' has no recorded type"),
    "input without type": (lambda: replace(good(), inputs=("x", "z")), "graph input 'z' has no recorded type"),
    "constant differs": (lambda: replace(good(), constants={**good().constants, "b": np.ones(3, np.float32)}), "constant 'b' is float32[3] but recorded as float32[4]"),
    "output missing": (lambda: replace(good(), outputs=("z",)), "graph output 'z' is not produced"),
    "output twice": (lambda: replace(good(), outputs=("y", "y")), "two graph outputs have one name"),
    "input is a constant": (lambda: replace(good(), inputs=("x", "w")), "an input and a constant"),
    "note on nothing": (
        lambda: replace(good(), sparsity={"x": SparsityNote("dense", 1, 0.0, 0.0)}),
        "sparsity note on 'x', which is not a constant",
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage(damage: str) -> None:
    build, message = DAMAGE[damage]
    with pytest.raises(VerificationError) as error:
        verify(build())
    assert message in str(error.value)
