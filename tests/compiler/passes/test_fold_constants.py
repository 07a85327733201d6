from __future__ import annotations

import numpy as np
from network import Network, body, check

from tamis.compiler.ir.graph import Graph
from tamis.compiler.ir.ops import Elementwise, Expand, MatMul, Split, Tile, Transpose
from tamis.compiler.passes.fold_constants import GROWN_ELEMENTS, REPEATED_ELEMENTS, fold_constants
from tamis.compiler.passes.order_operands import order_operands
from tamis.compiler.passes.remove_dead import remove_dead


def test_chain_in_front_of_a_weight() -> None:
    net = Network()
    w = net.node(Transpose((1, 0)), net.weight("w", 4, 3), name="turned")
    w = net.unary("tanh", w, name="bounded")
    net.node(MatMul(), net.input("x", 2, 3), w, name="y")
    before = net.graph("y")
    assert body(before)[0] == "turned = Transpose(w) perm=1,0"
    after = check(before, fold_constants)
    assert body(after) == ["y = MatMul(%x, bounded.folded)"]
    assert set(after.constants) == {"bounded.folded"}
    np.testing.assert_array_equal(after.constants["bounded.folded"], np.tanh(before.constants["w"].T))


def test_several_results() -> None:
    net = Network()
    net.node(Split(0, (1, 2)), net.weight("c", 3, 2), name="parts", outputs=2)
    net.binary("add", net.input("x", 1, 2), "parts", name="y")
    net.binary("add", "y", "parts:1", name="z")
    assert len(check(net.graph("y", "z"), fold_constants).nodes) == 2


def test_repeated_data_stays_computed() -> None:
    def after(op: object) -> Graph:
        net = Network()
        wide = net.node(op, net.weight("c", 1, 4), name="wide")  # type: ignore[arg-type]
        net.binary("add", net.input("x", *net.types[wide].shape), wide, name="y")
        return check(net.graph("y"), fold_constants)

    rows = REPEATED_ELEMENTS // 4
    assert [len(after(Expand((count, 4))).nodes) for count in (rows, rows + 1)] == [1, 2]
    assert [len(after(Tile((count, 1))).nodes) for count in (rows, rows + 1)] == [1, 2]


def test_products_do_not_blow_up() -> None:
    net = Network()
    side = int(GROWN_ELEMENTS**0.5) + 1
    big = net.node(MatMul(), net.weight("a", side, 1), net.weight("b", 1, side), name="big")
    net.binary("add", net.input("x", 1, 1), big, name="y")
    graph = net.graph("y")
    assert fold_constants(graph) is graph


def test_constant_outputs_keep_their_names() -> None:
    net = Network()
    net.unary("tanh", net.weight("c", 3), name="y")
    net.node(Elementwise(()), "c", name="z")
    after = check(net.graph("y", "z"), fold_constants)
    assert body(after) == ["z = Elementwise(c)", "y = Elementwise(y.folded)"]
    assert fold_constants(after) is after


def test_remove_dead() -> None:
    net = Network()
    x = net.input("x", 3)
    net.unary("tanh", x, name="y")
    net.binary("add", net.unary("exp", x, name="dead"), net.weight("c", 3), name="deader")
    after = check(net.graph("y"), remove_dead)
    assert body(after) == ["y = Elementwise(%x) | tanh"]
    assert not after.constants
    assert set(after.types) == {"x", "y"}
    assert remove_dead(after) is after


def test_order_operands() -> None:
    net = Network()
    x, c = net.input("x", 3), net.constant("c", np.array([1.0, 2.0, 4.0]))
    for kind in ("sub", "div", "pow", "add", "max"):
        net.binary(kind, c, x, name=kind)
    net.binary("mul", x, c, name="fine")
    after = check(net.graph("sub", "div", "pow", "add", "max", "fine"), order_operands)
    assert body(after) == [
        "sub = Elementwise(%x) | c-",
        "div = Elementwise(%x) | c/",
        "pow = Elementwise(%x) | pow(c, swapped)",
        "add = Elementwise(%x) | +c",
        "max = Elementwise(%x) | max(c)",
        "fine = Elementwise(%x) | *c",
    ]
    assert order_operands(after) is after
