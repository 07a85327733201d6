from __future__ import annotations

import pytest
from network import Network, body, check

from tamis.compiler.ir.ops import LayerNorm
from tamis.compiler.passes.fuse_residual_layernorm import fuse_residual_layernorm


def normalised(net: Network, x: str, *, name: str, rms: bool = False) -> str:
    scale, bias = net.weight(f"{name}.scale", 4), net.weight(f"{name}.bias", 4)
    return net.node(LayerNorm(-1, 1e-5, rms=rms), x, scale, bias, name=name)


@pytest.mark.parametrize("rms", [False, True])
def test_sum_in_front(rms: bool) -> None:
    net = Network()
    total = net.binary("add", net.input("a", 2, 3, 4), net.input("b", 2, 3, 4), name="sum")
    normalised(net, total, name="y", rms=rms)
    before = net.graph("y")
    kind = " rms=True" if rms else ""
    assert body(before) == [
        "sum = Elementwise(%a) | +%b",
        f"y = LayerNorm(%sum, y.scale, y.bias) axis=-1 epsilon=1e-05{kind}",
    ]
    after = check(before, fuse_residual_layernorm)
    assert body(after) == [f"y = LayerNorm(%a, y.scale, y.bias, %b) axis=-1 epsilon=1e-05{kind} residual"]
    assert after.nodes[0].origin == ("sum", "y")


def test_sum_that_others_read() -> None:
    net = Network()
    total = net.binary("add", net.input("a", 2, 4), net.input("b", 2, 4), name="sum")
    normalised(net, total, name="y")
    net.unary("tanh", total, name="z")
    assert body(check(net.graph("y", "z"), fuse_residual_layernorm)) == [
        "y, sum = LayerNorm(%a, y.scale, y.bias, %b) axis=-1 epsilon=1e-05 residual",
        "z = Elementwise(%sum) | tanh",
    ]
    after = check(net.graph("y", "sum"), fuse_residual_layernorm)
    assert after.nodes[0].outputs == ("y", "sum")


def test_two_normalisations_of_one_sum() -> None:
    net = Network()
    total = net.binary("add", net.input("a", 2, 4), net.input("b", 2, 4), name="sum")
    names = [normalised(net, total, name=name) for name in "yz"]
    after = check(net.graph(*names), fuse_residual_layernorm)
    assert [node.op.residual for node in after.nodes if isinstance(node.op, LayerNorm)] == [True, False]


def test_chain_of_blocks() -> None:
    net = Network()
    x = net.input("x", 2, 4)
    for block in range(3):
        y = net.unary("tanh", normalised(net, x, name=f"n{block}"), name=f"t{block}")
        x = net.binary("add", x, y, name=f"s{block}")
    normalised(net, x, name="y")
    after = check(net.graph("y"), fuse_residual_layernorm)
    assert sum(node.op.residual for node in after.nodes if isinstance(node.op, LayerNorm)) == 3


def test_twice_the_same() -> None:
    net = Network()
    x = net.input("x", 2, 4)
    normalised(net, net.binary("add", x, x, name="sum"), name="y")
    check(net.graph("y"), fuse_residual_layernorm)


@pytest.mark.parametrize("shape", [(4,), (1, 4), (2, 1), ()])
def test_broadcast_sums_stay(shape: tuple[int, ...]) -> None:
    net = Network()
    total = net.binary("add", net.input("a", 2, 4), net.input("b", *shape), name="sum")
    normalised(net, total, name="y")
    graph = net.graph("y")
    assert fuse_residual_layernorm(graph) is graph


def test_constants_and_other_kinds_stay() -> None:
    net = Network()
    a, b = net.input("a", 2, 4), net.input("b", 2, 4)
    normalised(net, net.binary("add", a, net.weight("c", 2, 4), name="s1"), name="y1")
    normalised(net, net.binary("sub", a, b, name="s2"), name="y2")
    graph = net.graph("y1", "y2")
    assert fuse_residual_layernorm(graph) is graph
