from __future__ import annotations

import numpy as np
from network import Network, body, check

from tamis.compiler.ir.ops import Elementwise, Pointwise
from tamis.compiler.passes.fuse_pointwise import MOST_TENSORS, fuse_pointwise
from tamis.formats.dtype import DType


def test_chain() -> None:
    net = Network()
    x, r = net.input("x", 2, 3), net.input("r", 2, 3)
    y = net.binary("mul", x, net.weight("c", 3), name="scaled")
    y = net.unary("tanh", y, name="bounded")
    y = net.binary("sub", r, y, name="difference")
    net.binary("add", y, r, name="y")
    before = net.graph("y")
    assert body(before) == [
        "scaled = Elementwise(%x) | *c",
        "bounded = Elementwise(%scaled) | tanh",
        "difference = Elementwise(%r) | -%bounded",
        "y = Elementwise(%difference) | +%r",
    ]
    after = check(before, fuse_pointwise)
    assert body(after) == ["y = Elementwise(%x) | *c tanh %r- +%r"]
    assert after.nodes[0].inputs == ("x", "c", "r")
    assert after.nodes[0].origin == ("scaled", "bounded", "difference", "y")


def test_value_used_again_further_down() -> None:
    """Quick GELU: x comes back as an operand."""
    net = Network()
    x = net.input("x", 4)
    y = net.binary("mul", x, net.constant("c", np.float32(1.702)), name="scaled")
    y = net.unary("sigmoid", y, name="gate")
    net.binary("mul", x, y, name="y")
    assert body(check(net.graph("y"), fuse_pointwise)) == ["y = Elementwise(%x) | *c sigmoid *%x"]


def test_two_branches_meet() -> None:
    net = Network()
    a, b = net.unary("tanh", net.input("x", 4), name="a"), net.unary("exp", net.input("z", 4), name="b")
    net.binary("add", a, b, name="y")
    assert body(check(net.graph("y"), fuse_pointwise)) == [
        "b = Elementwise(%z) | exp",
        "y = Elementwise(%x) | tanh +%b",
    ]


def test_not_through_other_readers_outputs_or_squares() -> None:
    net = Network()
    a = net.unary("tanh", net.input("x", 4), name="a")
    b = net.unary("exp", a, name="b")
    c = net.unary("sigmoid", a, name="c")
    d = net.binary("mul", c, c, name="d")
    graph = net.graph("b", "d")
    assert fuse_pointwise(graph) is graph
    net.unary("abs", b, name="e")
    graph = net.graph("b", "d", "e")
    assert fuse_pointwise(graph) is graph
    assert d == "d"


def test_broadening_stays_outside() -> None:
    net = Network()
    small = net.unary("tanh", net.input("x", 1, 3), name="small")
    net.unary("exp", net.binary("add", small, net.input("r", 2, 3), name="wide"), name="y")
    assert body(check(net.graph("y"), fuse_pointwise)) == [
        "small = Elementwise(%x) | tanh",
        "y = Elementwise(%small) | +%r exp",
    ]


def test_other_types_stay_outside() -> None:
    net = Network()
    x, z = net.unary("tanh", net.input("x", 4), name="a"), net.input("z", 4)
    flag = net.binary("greater", x, z, name="flag")
    net.unary("not", flag, name="y")
    steps = (Pointwise("add", operand=1),)
    net.node(Elementwise(steps), net.input("i", 4, dtype=DType.INT64), net.constant("one", np.array(1)), name="j")
    graph = net.graph("y", "j")
    assert fuse_pointwise(graph) is graph


def test_number_of_operands_is_bounded() -> None:
    net = Network()
    y = net.unary("tanh", net.input("x", 4), name="start")
    for index in range(MOST_TENSORS + 3):
        y = net.binary("mul", y, net.constant(f"c{index}", np.float32(0.9)), name=f"scaled{index}")
        y = net.binary("add", y, net.input(f"r{index}", 4), name=f"y{index}")
    after = check(net.graph(y), fuse_pointwise)
    assert len(after.nodes) == 2
    tensors = [sum(after.types[value].elements > 1 for value in node.inputs[1:]) for node in after.nodes]
    assert max(tensors) == MOST_TENSORS


def test_programs_join_programs() -> None:
    net = Network()
    x, r = net.input("x", 4), net.input("r", 4)
    first = (Pointwise("add", operand=1), Pointwise("mul", operand=0))
    second = (Pointwise("div", operand=1, swap=True), Pointwise("add", operand=2), Pointwise("relu"))
    y = net.node(Elementwise(first), x, r, name="a")
    y = net.unary("exp", y, name="b")
    net.node(Elementwise(second), y, r, net.input("s", 4), name="y")
    assert body(check(net.graph("y"), fuse_pointwise, scale=1.0)) == ["y = Elementwise(%x) | +%r *%x exp %r/ +%s relu"]
