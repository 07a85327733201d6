from __future__ import annotations

import pytest
from network import Network, body, check

from tamis.compiler.ir.ops import ConvTranspose, Elementwise, Linear, MatMul, Pointwise
from tamis.compiler.passes.fuse_epilogue import fuse_epilogue

CONV = "strides=1,1 pads=1,1,1,1 dilations=1,1"


def test_residual_block() -> None:
    net = Network()
    x = net.input("x", 1, 4, 6, 6)
    y = net.unary("relu", net.conv(x, 4, name="c1"), name="r1")
    y = net.conv(y, 4, name="c2")
    net.unary("relu", net.binary("add", y, x, name="sum"), name="y")
    before = net.graph("y")
    assert body(before) == [
        f"c1 = Conv(%x, c1.w) {CONV} | +c1.b",
        "r1 = Elementwise(%c1) | relu",
        f"c2 = Conv(%r1, c2.w) {CONV} | +c2.b",
        "sum = Elementwise(%c2) | +%x",
        "y = Elementwise(%sum) | relu",
    ]
    after = check(before, fuse_epilogue)
    assert body(after) == [
        f"r1 = Conv(%x, c1.w) {CONV} | +c1.b relu",
        f"y = Conv(%r1, c2.w) {CONV} | +c2.b +%x relu",
    ]
    assert after.nodes[1].origin == ("c2", "sum", "y")


def test_of_two_convs_the_later_takes_the_sum() -> None:
    net = Network()
    x = net.input("x", 1, 4, 6, 6)
    a, b = net.conv(x, 4, name="a"), net.conv(x, 4, name="b")
    net.binary("sub", a, b, name="y")
    assert body(check(net.graph("y"), fuse_epilogue)) == [
        f"a = Conv(%x, a.w) {CONV} | +a.b",
        f"y = Conv(%x, b.w) {CONV} | +b.b %a-",
    ]


def test_operand_made_later_but_independent() -> None:
    net = Network()
    x = net.input("x", 1, 4, 6, 6)
    y = net.conv(x, 4, name="conv")
    other = net.unary("tanh", x, name="other")
    net.binary("add", y, other, name="y")
    assert body(check(net.graph("y"), fuse_epilogue)) == [
        "other = Elementwise(%x) | tanh",
        f"y = Conv(%x, conv.w) {CONV} | +conv.b +%other",
    ]


@pytest.mark.parametrize(
    "case",
    [
        "two readers",
        "output between",
        "x+x",
        "depends",
        "broadcasts up",
        "gate",
        "second",
        "constant",
        "boolean",
    ],
)
def test_not_fused(case: str) -> None:
    net = Network()
    x = net.input("x", 1, 4, 6, 6)
    y = net.conv(x, 4, name="conv")
    outputs: tuple[str, ...] = ("y",)
    left = 1
    if case == "two readers":
        net.unary("relu", y, name="y")
        outputs = ("y", net.unary("tanh", y, name="z"))
        left = 2
    elif case == "output between":
        net.unary("relu", y, name="y")
        outputs = ("y", "conv")
    elif case == "x+x":
        net.binary("add", y, y, name="y")
    elif case == "depends":
        # squeeze and excite: the gate is computed from the layer's own result
        gate = net.unary("sigmoid", y, name="gate")
        net.binary("mul", y, gate, name="y")
        left = 2
    elif case == "broadcasts up":
        net.binary("add", y, net.input("r", 3, 4, 6, 6), name="y")
    elif case == "gate":
        net.binary("mul", y, net.input("r", 1, 4, 1, 1), name="y")
    elif case == "second":
        first = net.binary("add", y, net.input("r", 1, 4, 6, 6), name="first")
        net.binary("mul", first, net.input("s", 1, 4, 6, 6), name="y")
    elif case == "constant":
        net.binary("add", y, net.weight("c", 1, 4, 6, 6), name="y")
    else:
        net.binary("greater", y, net.input("r", 1, 4, 6, 6), name="y")
    after = check(net.graph(*outputs), fuse_epilogue)
    assert sum(isinstance(node.op, Elementwise) for node in after.nodes) == left


def test_linear_matmul_and_conv_transpose() -> None:
    net = Network()
    x = net.input("x", 2, 3, 4)
    y = net.node(Linear(), x, net.weight("w", 5, 4), name="linear")
    y = net.unary("gelu", y, name="gelu")
    y = net.node(MatMul(), y, net.input("m", 2, 5, 6), name="matmul")
    y = net.binary("max", net.input("r", 2, 3, 6), y, name="max")
    y = net.unary("leaky_relu", y, 0.1, name="leaky")
    up = net.node(ConvTranspose((2,), (0, 0), (1,), (0,)), y, net.weight("u", 3, 2, 2), name="up")
    net.unary("clip", up, 0.0, 6.0, name="y")
    assert body(check(net.graph("y"), fuse_epilogue)) == [
        "gelu = Linear(%x, w) | gelu",
        "leaky = MatMul(%gelu, %m) | max(%r) leaky_relu(0.1)",
        "y = ConvTranspose(%leaky, u) strides=2 pads=0,0 dilations=1 output_pads=0 | clip(0,6)",
    ]


def test_a_program_goes_whole_or_not_at_all() -> None:
    net = Network()
    y = net.conv(net.input("x", 1, 4, 6, 6), 4, name="conv")
    steps = (Pointwise("relu"), Pointwise("add", operand=1), Pointwise("mul", operand=2))
    net.node(Elementwise(steps), y, net.input("r", 1, 4, 6, 6), net.input("s", 1, 4, 6, 6), name="y")
    graph = net.graph("y")
    assert fuse_epilogue(graph) is graph


def test_residuals_that_cross_stay_acyclic() -> None:
    net = Network()
    x = net.input("x", 1, 4, 6, 6)
    a, b = net.conv(x, 4, name="a"), net.conv(x, 4, name="b")
    # a's sum reads something made from b, b's sum something made from a's sum
    tb = net.unary("tanh", b, name="tb")
    sa = net.binary("add", a, tb, name="sa")
    c = net.conv(sa, 4, name="c")
    net.binary("add", c, tb, name="y")
    after = check(net.graph("y"), fuse_epilogue)
    assert [node.name for node in after.nodes] == ["b", "a", "c"]


def test_an_epilogue_that_is_there_grows() -> None:
    net = Network()
    x = net.input("x", 2, 4)
    y = net.node(Linear(epilogue=(Pointwise("add", operand=2),)), x, net.weight("w", 4, 4), x, name="linear")
    y = net.unary("relu", y, name="relu")
    net.binary("add", y, x, name="y")
    assert body(check(net.graph("y"), fuse_epilogue)) == [
        "relu = Linear(%x, w) | +%x relu",
        "y = Elementwise(%relu) | +%x",
    ]
