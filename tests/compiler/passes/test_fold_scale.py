from __future__ import annotations

import numpy as np
import pytest
from network import Network, check

from tamis.compiler.ir.graph import Graph
from tamis.compiler.ir.ops import Conv, ConvTranspose, Elementwise, Linear, Pointwise
from tamis.compiler.passes.fold_scale import fold_scale
from tamis.compiler.passes.note_sparsity import good_groups


def operators(graph: Graph) -> list[str]:
    return [type(node.op).__name__ for node in graph.nodes]


@pytest.mark.parametrize("kind", ["add", "sub", "mul", "div"])
@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("shape", [(8, 1, 1), (1, 8, 1, 1), (), (1,)])
def test_behind_a_conv(kind: str, swap: bool, shape: tuple[int, ...]) -> None:
    net = Network()
    y = net.conv(net.input("x", 2, 4, 5, 5), 8, name="conv")
    constant = net.constant("c", net.random.random(shape) + 0.5)
    net.node(Elementwise((Pointwise(kind, operand=1, swap=swap),)), y, constant, name="y")
    graph = net.graph("y")
    if kind == "div" and swap:
        assert fold_scale(graph) is graph
    else:
        assert operators(check(graph, fold_scale)) == ["Conv"]


def test_behind_linear_and_chain() -> None:
    net = Network()
    x, w = net.input("x", 3, 5, 4), net.weight("w", 6, 4)
    y = net.node(Linear(), x, w, name="linear")
    y = net.binary("mul", y, net.weight("gamma", 6), name="scaled")
    y = net.unary("neg", y, name="negated")
    y = net.binary("add", y, net.weight("beta", 1, 1, 6), name="y")
    after = check(net.graph("y"), fold_scale)
    assert len(after.nodes) == 1
    assert after.nodes[0].op == Linear(bias=True)
    assert after.nodes[0].origin == ("linear", "scaled", "negated", "y")


def test_steps_of_one_program_compose() -> None:
    kinds = ("add", "mul", "sub", "div", "sub")
    steps = tuple(Pointwise(kind, operand=i, swap=i == 5) for i, kind in enumerate(kinds, start=1))
    for reverse in (False, True):
        net = Network()
        y = net.conv(net.input("x", 1, 4, 5, 5), 8, name="conv")
        constants = [net.constant(f"c{i}", net.random.random((8, 1, 1)) + 0.5) for i in range(5)]
        program = tuple(Pointwise(s.kind, operand=i, swap=s.swap) for i, s in enumerate(steps[::-1], 1))
        net.node(Elementwise(program if reverse else steps), y, *constants, name="y")
        assert operators(check(net.graph("y"), fold_scale)) == ["Conv"]


@pytest.mark.parametrize("groups", [1, 2])
def test_behind_and_in_front_of_conv_transpose(groups: int) -> None:
    net = Network()
    x = net.binary("mul", net.input("x", 2, 4, 5, 5), net.weight("c", 4, 1, 1), name="scaled")
    w = net.weight("w", 4, 6 // groups, 3, 3)
    y = net.node(ConvTranspose((2, 2), (1,) * 4, (1, 1), (1, 1), groups=groups), x, w, name="up")
    net.binary("mul", y, net.weight("d", 6, 1, 1), name="y")
    after = check(net.graph("y"), fold_scale)
    assert operators(after) == ["ConvTranspose"]
    assert not after.nodes[0].op.bias


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("pad", [0, 1])
def test_in_front_of_a_conv(groups: int, pad: int) -> None:
    net = Network()
    x = net.input("x", 2, 4, 5, 5)
    steps = (Pointwise("mul", operand=1), Pointwise("add", operand=2))
    scaled = net.node(Elementwise(steps), x, net.weight("a", 4, 1, 1), net.weight("b", 1, 4, 1, 1), name="scaled")
    net.conv(scaled, 8, name="y", pad=pad, groups=groups)
    after = check(net.graph("y"), fold_scale)
    # With padding the shift cannot move behind the border.
    assert operators(after) == (["Elementwise", "Conv"] if pad else ["Conv"])


def test_scale_alone_in_front_of_a_padded_conv() -> None:
    net = Network()
    scaled = net.binary("mul", net.input("x", 1, 4, 5, 5), net.weight("a", 4, 1, 1), name="scaled")
    net.conv(scaled, 8, name="y", pad=1)
    assert operators(check(net.graph("y"), fold_scale)) == ["Conv"]


def test_left_alone() -> None:
    def after(build: object) -> list[str]:
        net = Network()
        outputs = build(net)  # type: ignore[operator]
        return operators(check(net.graph(*outputs), fold_scale))

    def two_readers(net: Network) -> tuple[str, ...]:
        y = net.conv(net.input("x", 1, 4, 5, 5), 8, name="conv")
        return net.binary("mul", y, net.weight("c", 8, 1, 1), name="scaled"), net.unary("relu", y, name="other")

    def graph_output_between(net: Network) -> tuple[str, ...]:
        y = net.conv(net.input("x", 1, 4, 5, 5), 8, name="conv")
        return y, net.binary("mul", y, net.weight("c", 8, 1, 1), name="scaled")

    def along_the_wrong_axis(net: Network) -> tuple[str, ...]:
        y = net.conv(net.input("x", 1, 4, 8, 8), 8, name="conv")
        return (net.binary("mul", y, net.weight("c", 8), name="scaled"),)

    def broader(net: Network) -> tuple[str, ...]:
        y = net.conv(net.input("x", 1, 4, 5, 5), 1, name="conv")
        return (net.binary("add", y, net.weight("c", 8, 1, 1), name="sum"),)

    def twice_the_same(net: Network) -> tuple[str, ...]:
        y = net.conv(net.input("x", 1, 4, 5, 5), 8, name="conv")
        return (net.binary("add", y, y, name="sum"),)

    for build in (two_readers, graph_output_between, along_the_wrong_axis, broader, twice_the_same):
        assert "Elementwise" in after(build), build.__name__


def test_shared_weight_keeps_its_other_reader() -> None:
    net = Network()
    x, w = net.input("x", 3, 4), net.weight("w", 4, 4)
    first = net.node(Linear(), x, w, name="first")
    second = net.node(Linear(), x, w, name="second")
    net.binary("mul", first, net.weight("c", 4), name="y")
    after = check(net.graph("y", second), fold_scale)
    assert {node.inputs[1] for node in after.nodes} == {"w", "w.scaled"}


def test_not_finite_stays() -> None:
    net = Network()
    y = net.conv(net.input("x", 1, 4, 5, 5), 8, name="conv")
    net.binary("mul", y, net.constant("c", np.array([np.inf] * 8).reshape(8, 1, 1)), name="y")
    graph = net.graph("y")
    assert fold_scale(graph) is graph


def test_zeros_stay_positive_zeros_and_2_4() -> None:
    net = Network()
    weight = net.random.standard_normal((8, 8, 3, 3))
    weight[:, 0::4] = 0
    weight[:, 3::4] = 0
    w = net.constant("w", weight)
    y = net.node(Conv((1, 1), (0,) * 4, (1, 1)), net.input("x", 1, 8, 5, 5), w, name="conv")
    net.binary("mul", y, net.constant("c", -1e-3 * np.ones((8, 1, 1))), name="y")
    after = check(net.graph("y"), fold_scale)
    folded = after.constants[after.nodes[0].inputs[1]]
    assert good_groups(folded, 1) == 1.0
    assert not np.signbit(folded[folded == 0]).any()
    assert np.count_nonzero(folded) == weight.size // 2


def test_shift_alone_leaves_the_weight() -> None:
    net = Network()
    y = net.conv(net.input("x", 1, 4, 5, 5), 8, name="conv")
    net.binary("add", y, net.weight("c", 8, 1, 1), name="y")
    after = check(net.graph("y"), fold_scale)
    assert after.nodes[0].inputs[1] == "conv.w"
    assert after.constants["conv.w"] is net.constants["conv.w"]
