from __future__ import annotations

import numpy as np
from network import Network, body, check

from tamis.compiler.ir.ops import Split
from tamis.compiler.passes.merge_duplicates import COMPARED_BYTES, merge_duplicates


def test_nodes_and_constants() -> None:
    net = Network()
    x = net.input("x", 3)
    a, b = net.constant("a", np.ones(3)), net.constant("b", np.ones(3))
    first, second = net.binary("add", x, a, name="first"), net.binary("add", x, b, name="second")
    net.binary("mul", net.unary("exp", first, name="e1"), net.unary("exp", second, name="e2"), name="y")
    after = check(net.graph("y"), merge_duplicates)
    assert body(after) == [
        "first = Elementwise(%x) | +a",
        "e1 = Elementwise(%first) | exp",
        "y = Elementwise(%e1) | *%e1",
    ]
    assert merge_duplicates(after) is after


def test_several_results() -> None:
    net = Network()
    x = net.input("x", 4)
    for name in ("p", "q"):
        net.node(Split(0, (1, 3)), x, name=name, outputs=2)
    net.binary("add", "p", "q:1", name="y")
    assert [type(node.op).__name__ for node in check(net.graph("y"), merge_duplicates).nodes] == [
        "Split",
        "Elementwise",
    ]


def test_different_types_and_bits_stay_apart() -> None:
    net = Network()
    x = net.input("x", 2)
    constants = [
        net.constant("zero", np.zeros(2)),
        net.constant("negative", -np.zeros(2)),
        net.constant("flat", np.zeros((1, 2))),
    ]
    names = [net.binary("div", x, net.binary("add", x, c, name=f"n{c}"), name=f"d{c}") for c in constants]
    graph = net.graph(*names)
    assert merge_duplicates(graph) is graph


def test_outputs_keep_their_nodes() -> None:
    net = Network()
    x = net.input("x", 2)
    net.unary("exp", x, name="y")
    net.unary("exp", x, name="z")
    graph = net.graph("y", "z")
    assert merge_duplicates(graph) is graph


def test_large_constants_are_not_compared() -> None:
    net = Network()
    size = COMPARED_BYTES // 4 + 1
    x = net.input("x", size)
    y = net.binary("add", x, net.constant("a", np.ones(size)), name="p")
    net.binary("mul", y, net.constant("b", np.ones(size)), name="y")
    graph = net.graph("y")
    assert merge_duplicates(graph) is graph
