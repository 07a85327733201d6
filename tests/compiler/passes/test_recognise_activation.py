"""Every spelling of an activation that exporters and people write."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from network import Network, body, check

from tamis.compiler.ir.ops import Elementwise, Pointwise, Where
from tamis.compiler.passes.order_operands import order_operands
from tamis.compiler.passes.recognise_activation import FIXED, SAMPLES, TOLERANCE, recognise_activation


class Spell:
    """Arithmetic on values of a network, one node an operation."""

    def __init__(self, net: Network, value: str) -> None:
        self.net, self.value = net, value

    def _operand(self, other: object) -> str:
        if isinstance(other, Spell):
            return other.value
        return self.net.constant(f"c{len(self.net.constants)}", np.float32(other))

    def _name(self) -> str:
        return f"n{len(self.net.nodes)}"

    def _binary(self, kind: str, other: object, swap: bool = False) -> Spell:
        step = Pointwise(kind, operand=1, swap=swap)
        node = self.net.node(Elementwise((step,)), self.value, self._operand(other), name=self._name())
        return Spell(self.net, node)

    def __add__(self, other: object) -> Spell:
        return self._binary("add", other)

    def __mul__(self, other: object) -> Spell:
        return self._binary("mul", other)

    def __truediv__(self, other: object) -> Spell:
        return self._binary("div", other)

    def __pow__(self, other: object) -> Spell:
        return self._binary("pow", other)

    def __gt__(self, other: object) -> Spell:
        return self._binary("greater", other)

    def __rsub__(self, other: object) -> Spell:
        return self._binary("sub", other, swap=True)

    def __rtruediv__(self, other: object) -> Spell:
        return self._binary("div", other, swap=True)

    def max(self, other: object) -> Spell:
        return self._binary("max", other)

    def min(self, other: object) -> Spell:
        return self._binary("min", other)

    def __getattr__(self, kind: str) -> Callable[..., Spell]:
        return lambda *params: Spell(self.net, self.net.unary(kind, self.value, *params, name=self._name()))

    def where(self, a: Spell, b: Spell) -> Spell:
        return Spell(self.net, self.net.node(Where(), self.value, a.value, b.value, name=self._name()))


ROOT = float(np.sqrt(2))
SPELLINGS: dict[str, tuple[str, Callable[[Spell], Spell]]] = {
    "gelu, torch": ("gelu", lambda x: (x * 0.5) * ((x / ROOT).erf() + 1)),
    "gelu, old torch": ("gelu", lambda x: x * ((x / ROOT).erf() + 1) * 0.5),
    "gelu, half last inside": ("gelu", lambda x: x * (((x / ROOT).erf() + 1) * 0.5)),
    "gelu, tf": ("gelu", lambda x: (((x * (1 / ROOT)).erf() + 1) * 0.5) * x),
    "gelu, half of sum": ("gelu", lambda x: x * ((x / ROOT).erf() * 0.5 + 0.5)),
    "gelu, float16 constants": ("gelu", lambda x: (x * 0.5) * ((x / 1.4140625).erf() + 1)),
    "gelu tanh, pow": ("gelu_tanh", lambda x: (x * 0.5) * (((x + (x**3) * 0.044715) * 0.7978846).tanh() + 1)),
    "gelu tanh, products": (
        "gelu_tanh",
        lambda x: x * 0.5 * ((x * 0.7978846 * (x * x * 0.044715 + 1)).tanh() + 1),
    ),
    "gelu tanh, cube": (
        "gelu_tanh",
        lambda x: ((x + x * x * x * 0.044715) * 0.7978846).tanh() * (x * 0.5) + x * 0.5,
    ),
    "silu": ("silu", lambda x: x * x.sigmoid()),
    "silu, division": ("silu", lambda x: x / ((x.neg()).exp() + 1)),
    "hardswish, clip": ("hardswish", lambda x: x * (x + 3).clip(0.0, 6.0) / 6),
    "hardswish, relu6 first": ("hardswish", lambda x: x * ((x + 3).clip(0.0, 6.0) / 6)),
    "hardswish, times sixth": ("hardswish", lambda x: (x + 3).clip(0.0, 6.0) * x * (1 / 6)),
    "hardswish, hardsigmoid": ("hardswish", lambda x: x * x.hardsigmoid(1 / 6, 0.5)),
    "hardswish, fitted": ("hardswish", lambda x: x * (x / 6 + 0.5).clip(0.0, 1.0)),
    "hardsigmoid, clip": ("hardsigmoid(0.166667,0.5)", lambda x: (x + 3).clip(0.0, 6.0) / 6),
    "hardsigmoid, keras": ("hardsigmoid(0.2,0.5)", lambda x: (x * 0.2 + 0.5).clip(0.0, 1.0)),
    "mish": ("mish", lambda x: x * x.softplus().tanh()),
    "mish, written out": ("mish", lambda x: x * ((x.exp() + 1).log()).tanh()),
    "softplus": ("softplus", lambda x: (x.exp() + 1).log()),
    "softplus, threshold": ("softplus", lambda x: (x > 20).where(x, (x.exp() + 1).log())),
    "relu6": ("clip(0,6)", lambda x: x.relu().min(6)),
    "relu6, max min": ("clip(0,6)", lambda x: x.max(0).min(6)),
    "leaky relu, max": ("leaky_relu(0.1)", lambda x: x.max(x * 0.1)),
    "leaky relu, where": ("leaky_relu(0.01)", lambda x: (x > 0).where(x, x * 0.01)),
    "leaky relu, two relus": ("leaky_relu(0.2)", lambda x: x.relu() + (x.neg().relu() * -0.2)),
    "sigmoid": ("sigmoid", lambda x: 1 / (x.neg().exp() + 1)),
    "relu, where": ("relu", lambda x: (x > 0).where(x, x * 0)),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("inner", [False, True])
def test_spelling(spelling: str, inner: bool) -> None:
    """Alone, and behind a bias per channel, which is not part of the activation."""
    expected, write = SPELLINGS[spelling]
    net = Network()
    x = net.input("x", 2, 3, 5)
    if inner:
        x = net.binary("add", x, net.weight("bias", 5), name="biased")
    result = write(Spell(net, x)).value
    graph = order_operands(net.graph(result))
    after = check(graph, recognise_activation, tolerance=5e-5, scale=4.0)
    steps = body(after)
    assert steps[-1] == f"{result} = Elementwise(%{x}) | {expected}"
    assert len(steps) == 1 + inner


def test_not_an_activation() -> None:
    for write in (
        lambda x: x * (x * 1.702).sigmoid(),  # quick GELU stays three steps
        lambda x: (x * 0.5) * ((x / 1.5).erf() + 1),
        lambda x: x.sigmoid() * 2,
        lambda x: (x + 1).relu(),
        lambda x: x.exp().exp(),
        lambda x: x + 3 + (-3),
        lambda x: (x + 3).clip(0.0, 6.0) * x * 0.2,
    ):
        net = Network()
        graph = net.graph(write(Spell(net, net.input("x", 4))).value)
        assert recognise_activation(graph) is graph


def test_two_tensors_are_not_one() -> None:
    net = Network()
    gate = net.unary("sigmoid", net.input("b", 4), name="gate")
    net.binary("mul", net.input("a", 4), gate, name="y")
    graph = net.graph("y")
    assert recognise_activation(graph) is graph


def test_broadcast_gate_is_not_silu() -> None:
    """Squeeze and excite: the sigmoid is of another shape."""
    net = Network()
    x = net.input("x", 1, 4, 1, 1)
    gate = net.unary("sigmoid", x, name="gate")
    net.binary("mul", net.input("a", 1, 4, 3, 3), gate, name="y")
    graph = net.graph("y")
    assert recognise_activation(graph) is graph


def test_intermediate_that_others_read_stays() -> None:
    net = Network()
    x = net.input("x", 4)
    gate = net.unary("sigmoid", x, name="gate")
    net.binary("mul", x, gate, name="y")
    after = check(net.graph("y", "gate"), recognise_activation)
    assert sorted(body(after)) == ["gate = Elementwise(%x) | sigmoid", "y = Elementwise(%x) | silu"]


def test_chain_of_activations() -> None:
    net = Network()
    x = Spell(net, net.input("x", 4))
    for _ in range(3):
        x = x * x.sigmoid()
    after = check(net.graph(x.value), recognise_activation)
    assert [line.split("| ")[1] for line in body(after)] == ["silu"] * 3


def test_known_activations_are_far_apart() -> None:
    """The tolerance tells all known activations from each other."""
    from tamis.compiler.ir.evaluate import evaluate

    curves = [evaluate(Elementwise((step,)), [SAMPLES])[0] for step in FIXED]
    for index, first in enumerate(curves):
        for second in curves[:index]:
            assert np.abs(first - second).max() > 5 * TOLERANCE
