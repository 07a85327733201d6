from __future__ import annotations

import pytest
from network import Network, body, check

from tamis.compiler.ir.ops import Linear, MatMul
from tamis.compiler.passes.fold_matmul import fold_matmul


def test_weight_on_the_right() -> None:
    net = Network()
    x, w = net.input("x", 2, 5, 3), net.weight("w", 3, 4)
    net.node(MatMul(), x, w, name="y")
    before = net.graph("y")
    assert body(before) == ["y = MatMul(%x, w)"]
    after = check(before, fold_matmul)
    assert body(after) == ["y = Linear(%x, w.matrix)"]
    assert after.types["w.matrix"].shape == (4, 3)


@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 5), (2, 1, 3, 5)])
def test_weight_on_the_left(shape: tuple[int, ...]) -> None:
    net = Network()
    net.node(MatMul(), net.weight("w", 4, 3), net.input("x", *shape), name="y")
    after = check(net.graph("y"), fold_matmul)
    assert [type(node.op).__name__ for node in after.nodes] == ["Transpose", "Linear", "Transpose"]
    assert after.nodes[1].inputs[1] == "w"


@pytest.mark.parametrize("x", [(3,), (2, 3), (1, 2, 3)])
def test_ranks(x: tuple[int, ...]) -> None:
    net = Network()
    net.node(MatMul(), net.input("x", *x), net.weight("w", 3, 4), name="y")
    assert isinstance(check(net.graph("y"), fold_matmul).nodes[0].op, Linear)


def test_leading_ones() -> None:
    net = Network()
    net.node(MatMul(), net.input("x", 2, 2, 3), net.weight("w", 1, 3, 4), name="y")
    assert isinstance(check(net.graph("y"), fold_matmul).nodes[0].op, Linear)


@pytest.mark.parametrize(
    ("x", "w", "left"),
    [((2, 3), (1, 3, 4), False), ((2, 2, 3), (2, 3, 4), False), ((2, 3), (3,), False), ((3,), (4, 3), True)],
)
def test_left_alone(x: tuple[int, ...], w: tuple[int, ...], left: bool) -> None:
    net = Network()
    value, weight = net.input("x", *x), net.weight("w", *w)
    net.node(MatMul(), *((weight, value) if left else (value, weight)), name="y")
    graph = net.graph("y")
    assert fold_matmul(graph) is graph


def test_shared_weight_is_turned_once() -> None:
    net = Network()
    x, w = net.input("x", 2, 3), net.weight("w", 3, 3)
    y = net.node(MatMul(), x, w, name="a")
    net.node(MatMul(), net.unary("relu", y, name="r"), w, name="y")
    assert set(check(net.graph("y"), fold_matmul).constants) == {"w.matrix"}
