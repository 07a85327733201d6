from __future__ import annotations

import numpy as np
import pytest
from network import Network, body, check

from tamis.compiler.ir.graph import Graph
from tamis.compiler.ir.ops import Linear, Pointwise, Softmax
from tamis.compiler.passes.merge_parallel_linear import merge_parallel_linear
from tamis.compiler.passes.note_sparsity import good_groups


def layers(net: Network, x: str, sizes: tuple[int, ...], op: Linear) -> list[str]:
    names = []
    for index, size in enumerate(sizes):
        parts = [net.weight(f"w{index}", size, net.types[x].shape[-1])]
        parts += [net.weight(f"b{index}", size)] if op.bias else []
        y = net.node(op, x, *parts, name=f"l{index}")
        names.append(net.unary("tanh", y, name=f"t{index}"))
    return names


def test_three_become_one() -> None:
    net = Network()
    outputs = layers(net, net.input("x", 2, 3, 8), (4, 6, 4), Linear(bias=True, epilogue=(Pointwise("relu"),)))
    before = net.graph(*outputs)
    assert body(before)[0] == "l0 = Linear(%x, w0) | +b0 relu"
    after = check(before, merge_parallel_linear)
    assert body(after) == [
        "l0.joined = Linear(%x, w0.joined) | +l0.bias.joined relu",
        "l0, l1, l2 = Split(%l0.joined) axis=2 sizes=4,6,4",
        "t0 = Elementwise(%l0) | tanh",
        "t1 = Elementwise(%l1) | tanh",
        "t2 = Elementwise(%l2) | tanh",
    ]
    assert after.nodes[0].origin == ("l0", "l1", "l2")


def test_missing_bias_is_zeros() -> None:
    net = Network()
    x = net.input("x", 2, 8)
    a = net.node(Linear(), x, net.weight("wa", 4, 8), name="a")
    b = net.node(Linear(bias=True), x, net.weight("wb", 4, 8), net.weight("bb", 4), name="b")
    outputs = [net.unary("exp", value, name=f"e{value}") for value in (a, b)]
    assert sum(isinstance(node.op, Linear) for node in check(net.graph(*outputs), merge_parallel_linear).nodes) == 1


def test_sparse_and_dense_stay_apart() -> None:
    net = Network()
    x = net.input("x", 2, 8)
    outputs = []
    for index, sparse in enumerate((True, False, True, False)):
        weight = net.random.standard_normal((4, 8))
        weight[:, ::2] *= not sparse
        y = net.node(Linear(), x, net.constant(f"w{index}", weight), name=f"l{index}")
        outputs.append(net.unary("exp", y, name=f"e{index}"))
    after = check(net.graph(*outputs), merge_parallel_linear)
    weights = [after.constants[node.inputs[1]] for node in after.nodes if isinstance(node.op, Linear)]
    assert sorted(good_groups(weight, 1) == 1.0 for weight in weights) == [False, True]


@pytest.mark.parametrize("case", ["input", "epilogue", "residual", "output", "reader", "weight"])
def test_left_alone(case: str) -> None:
    def graph() -> Graph:
        net = Network()
        x, other = net.input("x", 2, 8), net.input("other", 2, 8)
        first = net.node(Linear(epilogue=(Pointwise("relu"),)), x, net.weight("w0", 4, 8), name="l0")
        weight = net.input("w1", 4, 8) if case == "weight" else net.weight("w1", 4, 8)
        operands: tuple[str, ...] = ()
        epilogue = (Pointwise("tanh" if case == "epilogue" else "relu"),)
        if case == "residual":
            epilogue, operands = (Pointwise("add", operand=2),), (net.input("r", 2, 4),)
        second = net.node(Linear(epilogue=epilogue), other if case == "input" else x, weight, *operands, name="l1")
        outputs = [net.unary("exp", value, name=f"e{value}") for value in (first, second)]
        if case == "reader":
            outputs.append(net.node(Softmax(-1), second, name="p"))
        return net.graph(*outputs, *([second] if case == "output" else []))

    before = graph()
    assert merge_parallel_linear(before) is before


def test_shared_weight_and_rank_one() -> None:
    net = Network()
    x, w = net.input("x", 8), net.weight("w", 4, 8)
    outputs = []
    for index in range(2):
        y = net.node(Linear(), x, w, name=f"l{index}")
        outputs.append(net.unary("exp", y, name=f"e{index}"))
    after = check(net.graph(*outputs), merge_parallel_linear)
    np.testing.assert_array_equal(after.constants["w.joined"], np.concatenate([net.constants["w"]] * 2))
