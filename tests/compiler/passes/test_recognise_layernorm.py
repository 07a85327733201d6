"""Normalisations in the spellings of exporters, old and new."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from network import Network, body, check

from tamis.compiler.ir.ops import LayerNorm, Reduce
from tamis.compiler.passes.order_operands import order_operands
from tamis.compiler.passes.recognise_layernorm import recognise_layernorm

EPSILON = np.float32(1e-5)


def square_pow(net: Network, c: str) -> str:
    return net.binary("pow", c, net.constant("two", np.float32(2)), name="square")


def square_mul(net: Network, c: str) -> str:
    return net.binary("mul", c, c, name="square")


def divide_sqrt(net: Network, c: str, v: str) -> str:
    return net.binary("div", c, net.unary("sqrt", v, name="root"), name="normal")


def times_reciprocal(net: Network, c: str, v: str) -> str:
    root = net.unary("sqrt", v, name="root")
    return net.binary("mul", c, net.unary("reciprocal", root, name="inverse"), name="normal")


def times_one_over(net: Network, c: str, v: str) -> str:
    root = net.unary("sqrt", v, name="root")
    inverse = net.binary("div", net.constant("one", np.float32(1)), root, name="inverse")
    return net.binary("mul", inverse, c, name="normal")


def times_power(net: Network, c: str, v: str) -> str:
    exponent = net.constant("exponent", np.float32(-0.5))
    return net.binary("mul", c, net.binary("pow", v, exponent, name="inverse"), name="normal")


SQUARES = (square_pow, square_mul)
QUOTIENTS = (divide_sqrt, times_reciprocal, times_one_over, times_power)


def spelled(
    net: Network,
    x: str,
    square: Callable[[Network, str], str] = square_pow,
    quotient: Callable[[Network, str, str], str] = divide_sqrt,
    *,
    axes: tuple[int, ...] = (2,),
    rms: bool = False,
    twice: bool = False,
) -> str:
    mean = Reduce("mean", axes, True)
    first = second = x
    if not rms:
        average = net.node(mean, x, name="mean")
        first = second = net.binary("sub", x, average, name="centred")
        if twice:
            second = net.binary("sub", x, average, name="again")
    variance = net.node(mean, square(net, first), name="variance")
    stable = net.binary("add", variance, net.constant("epsilon", EPSILON), name="stable")
    return quotient(net, second, stable)


@pytest.mark.parametrize("square", SQUARES)
@pytest.mark.parametrize("quotient", QUOTIENTS)
@pytest.mark.parametrize("rms", [False, True])
def test_spellings(square: Callable[..., str], quotient: Callable[..., str], rms: bool) -> None:
    net = Network()
    y = spelled(net, net.input("x", 2, 3, 8), square, quotient, rms=rms)
    y = net.binary("mul", y, net.weight("gamma", 8), name="scaled")
    net.binary("add", y, net.weight("beta", 8), name="y")
    after = check(order_operands(net.graph("y")), recognise_layernorm)
    assert body(after) == [
        f"y = LayerNorm(%x, gamma.scale, beta.bias) axis=-1 epsilon=1e-05{' rms=True' if rms else ''}"
    ]


def test_before_and_after() -> None:
    net = Network()
    spelled(net, net.input("x", 2, 3, 8))
    before = net.graph("normal")
    assert body(before) == [
        "mean = Reduce(%x) kind=mean axes=2 keep=True",
        "centred = Elementwise(%x) | -%mean",
        "square = Elementwise(%centred) | pow(two)",
        "variance = Reduce(%square) kind=mean axes=2 keep=True",
        "stable = Elementwise(%variance) | +epsilon",
        "root = Elementwise(%stable) | sqrt",
        "normal = Elementwise(%centred) | /%root",
    ]
    assert body(check(before, recognise_layernorm)) == ["normal = LayerNorm(%x) axis=-1 epsilon=1e-05"]


def test_several_axes_and_difference_computed_twice() -> None:
    net = Network()
    y = spelled(net, net.input("x", 2, 3, 4, 5), axes=(2, 3), twice=True)
    net.binary("mul", y, net.weight("gamma", 1, 5), name="y")
    after = check(net.graph("y"), recognise_layernorm)
    assert body(after) == ["y = LayerNorm(%x, gamma.scale) axis=-2 epsilon=1e-05"]
    assert after.types["gamma.scale"].shape == (4, 5)


def test_bias_without_scale_and_scalars() -> None:
    net = Network()
    y = spelled(net, net.input("x", 2, 3, 8))
    net.binary("add", y, net.constant("half", np.float32(0.5)), name="y")
    after = check(net.graph("y"), recognise_layernorm)
    assert after.nodes[0].op == LayerNorm(-1, float(EPSILON), scale=False, bias=True)


def test_affine_that_stays_outside() -> None:
    """Along another axis, computed, after the bias, or with another reader."""
    for case in ("axis", "computed", "order", "reader", "square"):
        net = Network()
        y = spelled(net, net.input("x", 2, 3, 8))
        if case == "order":
            y = net.binary("add", y, net.weight("beta", 8), name="shifted")
        factor = net.input("g", 8) if case == "computed" else net.weight("g", *((3, 1) if case == "axis" else (8,)))
        net.binary("mul", y, y if case == "square" else factor, name="y")
        outputs = ("y", "normal") if case == "reader" else ("y",)
        after = check(net.graph(*outputs), recognise_layernorm)
        assert [type(node.op).__name__ for node in after.nodes] == ["LayerNorm", "Elementwise"], case


def test_intermediate_that_others_read() -> None:
    net = Network()
    spelled(net, net.input("x", 2, 3, 8))
    after = check(net.graph("normal", "centred"), recognise_layernorm)
    assert [type(node.op).__name__ for node in after.nodes] == ["Reduce", "Elementwise", "LayerNorm"]


def test_not_a_normalisation() -> None:
    def graph(case: str):  # type: ignore[no-untyped-def]
        net = Network()
        x = net.input("x", 3, 3, 3)
        if case == "axes":  # over the channels, not the last axis
            return net.graph(spelled(net, x, axes=(1,)))
        mean = net.node(Reduce("mean", (2,), True), x, name="mean")
        other = net.node(Reduce("mean", (1, 2), True), x, name="other")
        centred = net.binary("sub", x, other if case == "mean" else mean, name="centred")
        square = square_pow(net, net.unary("tanh", centred, name="t") if case == "inner" else centred)
        variance = net.node(Reduce("sum" if case == "sum" else "mean", (2,), True), square, name="variance")
        epsilon = net.input("e", 1, 1, 1) if case == "epsilon" else net.constant("e", EPSILON)
        stable = net.binary(
            "add",
            net.unary("abs", variance, name="v") if case == "epsilon" else variance,
            epsilon,
            name="stable",
        )
        if case == "epsilon":
            stable = net.unary("abs", stable, name="positive")
        return net.graph(divide_sqrt(net, centred, stable))

    for case in ("axes", "inner", "sum", "epsilon"):
        found = check(graph(case), recognise_layernorm)
        assert not any(isinstance(node.op, LayerNorm) for node in found.nodes), case
    # minus another mean it is not layer normalisation, but still RMS norm of the difference
    found = check(graph("mean"), recognise_layernorm)
    assert found.nodes[-1].op == LayerNorm(-1, float(EPSILON), False, False, rms=True)
