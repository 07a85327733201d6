from __future__ import annotations

import numpy as np
import pytest
from network import Network, body, check

from tamis.compiler.ir.graph import Graph
from tamis.compiler.ir.ops import (
    Cast,
    Concat,
    Elementwise,
    Expand,
    Op,
    Pad,
    Pointwise,
    Pool,
    Reduce,
    Reshape,
    Resize,
    Slice,
    Split,
    Tile,
    Transpose,
)
from tamis.compiler.passes.remove_identities import remove_identities
from tamis.formats.dtype import DType

NOTHING: tuple[Op, ...] = (
    Elementwise(()),
    Reshape((2, 1, 4, 4)),
    Expand((2, 1, 4, 4)),
    Slice((2, 3), (0, 0), (None, 4), (1, 1)),
    Resize((2, 1, 4, 4), (1.0,) * 4, "nearest", "asymmetric"),
    Transpose((0, 1, 2, 3)),
    Pad((0,) * 8),
    Tile((1, 1, 1, 1)),
    Cast(DType.FLOAT32),
    Concat(1),
    Split(2, (4,)),
    Pool("max", (1, 1), (1, 1), (0,) * 4, (1, 1)),
    Reduce("mean", (1,), True),
)
SOMETHING: tuple[Op, ...] = (
    Slice((2,), (3,), (None,), (-1,)),
    Transpose((0, 1, 3, 2)),
    Reduce("l2", (1,), True),
    Pad((0, 0, 1, 0, 0, 0, -1, 0)),
    Elementwise((Pointwise("relu"),)),
    Resize((2, 1, 4, 4), (1.0, 1.0, 1.1, 1.0), "nearest", "asymmetric"),
)


def between(op: Op) -> Graph:
    net = Network()
    x = net.unary("tanh", net.input("x", 2, 1, 4, 4), name="a")
    net.unary("relu", net.node(op, x, name="middle"), name="y")
    return net.graph("y")


@pytest.mark.parametrize("op", NOTHING, ids=lambda op: type(op).__name__)
def test_removed(op: Op) -> None:
    after = check(between(op), remove_identities)
    assert body(after) == ["a = Elementwise(%x) | tanh", "y = Elementwise(%a) | relu"]


@pytest.mark.parametrize("op", SOMETHING, ids=lambda op: type(op).__name__)
def test_kept(op: Op) -> None:
    graph = between(op)
    assert remove_identities(graph) is graph


@pytest.mark.parametrize(("kind", "value"), [("add", 0), ("sub", 0), ("mul", 1), ("div", 1), ("pow", 1)])
def test_neutral_steps(kind: str, value: float) -> None:
    net = Network()
    x = net.input("x", 2, 3)
    ones = net.constant("c", np.full((3,), value, np.float32))
    middle = net.binary(kind, x, ones, name="middle")
    net.unary("tanh", middle, name="y")
    assert body(check(net.graph("y"), remove_identities)) == ["y = Elementwise(%x) | tanh"]


def test_steps_that_look_neutral() -> None:
    net = Network()
    x = net.input("x", 2, 3)
    one, zero = net.constant("one", np.float32(1)), net.constant("zero", np.float32(0))
    wide = net.constant("wide", np.ones((4, 1, 1), np.float32))
    net.node(Elementwise((Pointwise("div", operand=1, swap=True),)), x, one, name="reciprocal")
    net.node(Elementwise((Pointwise("sub", operand=1, swap=True),)), x, zero, name="negated")
    net.node(Elementwise((Pointwise("mul", operand=1),)), x, wide, name="broader")
    graph = net.graph("reciprocal", "negated", "broader")
    assert remove_identities(graph) is graph


def test_one_step_of_a_program() -> None:
    net = Network()
    steps = (Pointwise("add", operand=1), Pointwise("identity"), Pointwise("mul", operand=2))
    x, zero, r = net.input("x", 4), net.constant("zero", np.zeros(4)), net.input("r", 4)
    net.node(Elementwise(steps), x, zero, r, name="y")
    assert body(check(net.graph("y"), remove_identities)) == ["y = Elementwise(%x) | *%r"]


def test_names_of_outputs_survive() -> None:
    net = Network()
    x = net.input("x", 2, 3)
    t = net.unary("tanh", x, name="t")
    net.node(Reshape((2, 3)), t, name="y")
    net.node(Reshape((2, 3)), t, name="z")
    net.node(Reshape((2, 3)), x, name="w")
    net.node(Elementwise(()), net.constant("c", np.ones(2)), name="v")
    after = check(net.graph("y", "z", "w", "v"), remove_identities)
    again = check(after, remove_identities)
    assert len(again.nodes) == len(after.nodes) == 4


def test_output_that_is_another_output() -> None:
    net = Network()
    t = net.unary("tanh", net.input("x", 2, 3), name="t")
    net.node(Reshape((2, 3)), t, name="y")
    graph = net.graph("t", "y")
    assert remove_identities(graph) is graph


def test_expand_before_a_broadcast() -> None:
    net = Network()
    x, r = net.input("x", 2, 3), net.input("r", 1, 3)
    wide = net.node(Expand((2, 3)), r, name="wide")
    net.binary("add", x, wide, name="y")
    assert body(check(net.graph("y"), remove_identities)) == ["y = Elementwise(%x) | +%r"]


def test_expand_that_makes_the_shape() -> None:
    net = Network()
    r, s = net.input("r", 1, 3), net.input("s", 2, 1)
    a, b = net.node(Expand((2, 3)), r, name="a"), net.node(Expand((2, 3)), s, name="b")
    net.binary("add", a, b, name="y")
    c = net.node(Expand((2, 3)), r, name="c")
    net.unary("tanh", c, name="z")
    after = check(net.graph("y", "z"), remove_identities)
    assert sorted(body(after)) == [
        "c = Expand(%r) shape=2,3",
        "y = Elementwise(%r) | +%s",
        "z = Elementwise(%c) | tanh",
    ]
