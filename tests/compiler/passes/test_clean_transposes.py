from __future__ import annotations

import numpy as np
import pytest
from network import Network, body, check

from tamis.compiler.ir.graph import Graph
from tamis.compiler.ir.ops import Concat, Conv, Elementwise, Pointwise, Reshape, Softmax, Transpose
from tamis.compiler.passes.clean_transposes import clean_transposes
from tamis.compiler.passes.rearrange import Step, rearrangement, shortest


def apply(array: np.ndarray, steps: list[Step]) -> np.ndarray:
    for step in steps:
        array = array.reshape(step.shape) if isinstance(step, Reshape) else array.transpose(step.perm)
    return array


@pytest.mark.parametrize("seed", range(60))
def test_random_chains(seed: int) -> None:
    """Any chain is equal to its shortest form, which has at most three steps."""
    random = np.random.default_rng(seed)
    shape = tuple(int(size) for size in random.choice([1, 2, 3, 4, 6], random.integers(1, 5)))
    array = np.arange(np.prod(shape)).reshape(shape)
    steps: list[Step] = []
    now = array
    for _ in range(random.integers(1, 6)):
        if random.random() < 0.5:
            steps.append(Transpose(tuple(int(axis) for axis in random.permutation(now.ndim))))
        else:
            factors = [f for size in now.shape for f in ([2, 2] if size == 4 else [2, 3] if size == 6 else [size])]
            cuts = np.sort(random.integers(0, len(factors) + 1, random.integers(0, 4)))
            parts = np.split(np.array(factors, int), cuts)
            steps.append(Reshape(tuple(int(np.prod(part)) for part in parts)))
        now = apply(now, steps[-1:])
    found = rearrangement(shape, steps)
    if found is None:
        return
    short = shortest(found)
    assert len(short) <= min(3, len(steps)) or len(steps) < len(short) <= 3
    result = apply(array, short)
    assert result.shape == now.shape
    np.testing.assert_array_equal(result, now)


def test_most_random_chains_are_understood() -> None:
    """The random test above does not pass by looking away."""
    assert rearrangement((4, 6), [Reshape((3, 8))]) is None
    assert rearrangement((0, 6), [Reshape((6, 0))]) is None
    assert rearrangement((4, 6), [Reshape((24,)), Reshape((2, 12)), Transpose((1, 0))]) is not None


KEYS = [Reshape((8, 3, 4)), Transpose((0, 2, 1)), Reshape((2, 4, 4, 3))]


@pytest.mark.parametrize(
    ("shape", "steps", "expected"),
    [
        ((2, 3, 4), [Transpose((1, 2, 0)), Transpose((2, 0, 1))], []),
        ((2, 3, 4), [Transpose((1, 2, 0)), Transpose((1, 2, 0))], [Transpose((2, 0, 1))]),
        ((2, 3, 4), [Reshape((6, 4)), Reshape((24,))], [Reshape((24,))]),
        ((2, 3, 4), [Reshape((6, 4)), Reshape((2, 3, 4))], []),
        ((2, 4, 3, 4), KEYS, [Transpose((0, 1, 3, 2))]),
        ((1, 5, 1, 4), [Transpose((0, 2, 1, 3))], [Reshape((1, 1, 5, 4))]),
        (
            (1, 8, 6, 5),
            [Reshape((1, 8, 30)), Transpose((0, 2, 1))],
            [Transpose((0, 2, 3, 1)), Reshape((1, 30, 8))],
        ),
        (
            (2, 8, 6, 5),
            [Reshape((2, 8, 30)), Transpose((0, 2, 1))],
            [Transpose((0, 2, 3, 1)), Reshape((2, 30, 8))],
        ),
        (
            (2, 30, 8),
            [Transpose((0, 2, 1)), Reshape((2, 8, 6, 5))],
            [Reshape((2, 6, 5, 8)), Transpose((0, 3, 1, 2))],
        ),
        # window partition of Swin needs all three
        (
            (1, 4, 6, 8),
            [Reshape((1, 2, 2, 2, 3, 8)), Transpose((0, 1, 3, 2, 4, 5)), Reshape((4, 6, 8))],
            [Reshape((2, 2, 2, 24)), Transpose((0, 2, 1, 3)), Reshape((4, 6, 8))],
        ),
    ],
)
def test_shortest(shape: tuple[int, ...], steps: list[Step], expected: list[Step]) -> None:
    found = rearrangement(shape, steps)
    assert found is not None
    assert shortest(found) == expected


def chain(net: Network, x: str, steps: list[Step], prefix: str = "s") -> str:
    for index, step in enumerate(steps):
        x = net.node(step, x, name=f"{prefix}{index}")
    return x


def test_keys_of_attention() -> None:
    net = Network()
    x = net.unary("tanh", net.input("x", 2, 3, 16), name="start")
    y = chain(net, x, [Reshape((2, 3, 4, 4)), Transpose((0, 2, 1, 3)), *KEYS])
    net.node(Softmax(-1), y, name="y")
    assert body(check(net.graph("y"), clean_transposes)) == [
        "start = Elementwise(%x) | tanh",
        "s4.step0 = Reshape(%start) shape=2,3,4,4",
        "s4 = Transpose(%s4.step0) perm=0,2,3,1",
        "y = Softmax(%s4) axis=-1",
    ]


def test_value_in_the_middle_stays() -> None:
    net = Network()
    x = net.input("x", 2, 3, 4)
    a = net.node(Transpose((1, 2, 0)), x, name="a")
    b = net.node(Transpose((2, 0, 1)), a, name="b")
    net.unary("tanh", b, name="y")
    net.unary("exp", a, name="z")
    after = check(net.graph("y", "z", "a"), clean_transposes)
    assert sorted(body(after)) == [
        "a = Transpose(%x) perm=1,2,0",
        "y = Elementwise(%x) | tanh",
        "z = Elementwise(%a) | exp",
    ]


def test_no_work_is_doubled() -> None:
    """Both ends could read x by three steps each; they share the first two instead."""
    net = Network()
    x = net.input("x", 1, 4, 6, 8)
    shared = chain(net, x, [Reshape((1, 2, 2, 2, 3, 8)), Transpose((0, 1, 3, 2, 4, 5))])
    net.node(Reshape((4, 6, 8)), shared, name="y")
    net.node(Reshape((24, 8)), shared, name="z")
    graph = net.graph("y", "z")
    assert clean_transposes(graph) is graph


def test_no_work_is_doubled_for_a_shorter_chain() -> None:
    """Four steps could be three, but two of them stay for another reader: only the last two are joined."""
    net = Network()
    x = net.input("x", 1, 4, 6, 8)
    shared = chain(net, x, [Reshape((1, 2, 2, 2, 3, 8)), Transpose((0, 1, 3, 2, 4, 5))])
    net.node(Reshape((4, 6, 8)), shared, name="z")
    y = chain(net, shared, [Reshape((24, 8)), Reshape((12, 16))], "y")
    after = check(net.graph(y, "z"), clean_transposes)
    assert len(after.nodes) == 4


def test_sinks_through_pointwise_and_cancels() -> None:
    """As in models that came from a framework with channels last."""
    net = Network()
    x = net.input("x", 1, 4, 5, 6)
    y = net.conv(x, 4, name="c1")
    y = net.node(Transpose((0, 2, 3, 1)), y, name="rows")
    y = net.binary("add", y, net.weight("b", 4), name="biased")
    y = net.unary("relu", y, name="relu")
    y = net.node(Transpose((0, 3, 1, 2)), y, name="image")
    net.conv(y, 4, name="c2")
    after = check(net.graph("c2"), clean_transposes)
    assert [type(node.op) for node in after.nodes] == [Conv, Elementwise, Elementwise, Conv]
    assert after.types["b.turned"].shape == (1, 4, 1, 1)


def test_sinks_through_concat_and_sums() -> None:
    net = Network()
    a, b = net.input("a", 2, 3, 4), net.input("b", 2, 3, 4)
    ta, tb = (net.node(Transpose((0, 2, 1)), value, name=f"t{value}") for value in (a, b))
    both = net.node(Concat(2), ta, tb, net.weight("c", 2, 4, 1), name="both")
    net.node(Transpose((0, 2, 1)), both, name="back")
    net.unary("tanh", "back", name="y")
    assert body(check(net.graph("y"), clean_transposes)) == [
        "both.before = Concat(%a, %b, c.turned) axis=1",
        "y = Elementwise(%both.before) | tanh",
    ]


def test_does_not_sink() -> None:
    """Different orders, an input that is not transposed, a transposed value with other readers."""

    def one(build: str) -> Graph:
        net = Network()
        a, b = net.input("a", 3, 3, 3), net.input("b", 3, 3, 3)
        ta = net.node(Transpose((0, 2, 1)), a, name="ta")
        if build == "orders":
            b = net.node(Transpose((2, 1, 0)), b, name="tb")
        net.node(Elementwise((Pointwise("add", operand=1),)), ta, b, name="y")
        return net.graph("y", "ta") if build == "readers" else net.graph("y")

    for build in ("orders", "plain", "readers"):
        graph = one(build)
        assert clean_transposes(graph) is graph


def test_output_of_the_graph_that_is_its_input() -> None:
    net = Network()
    x = net.input("x", 2, 3)
    net.node(Transpose((1, 0)), net.node(Transpose((1, 0)), x, name="a"), name="y")
    check(net.graph("y"), clean_transposes)


def test_reshape_sinks_through_numbers_only() -> None:
    net = Network()
    y = net.conv(net.input("x", 1, 4, 4, 4), 4, name="conv")
    y = net.node(Reshape((1, 2, 2, 16)), y, name="cut")
    y = net.binary("mul", y, net.constant("half", np.full((1, 1, 1, 1), 0.5, np.float32)), name="halved")
    y = net.unary("sigmoid", y, name="gate")
    net.binary("add", y, net.weight("c", 16), name="y")
    assert [line.split(" strides")[0] for line in body(check(net.graph("y"), clean_transposes))] == [
        "conv = Conv(%x, conv.w)",
        "halved.before = Elementwise(%conv) | *half.number",
        "gate.before = Elementwise(%halved.before) | sigmoid",
        "gate = Reshape(%gate.before) shape=1,2,2,16",
        "y = Elementwise(%gate) | +c",
    ]


def test_shared_front_of_a_chain_that_could_be_shorter() -> None:
    """Alone, the four steps to y would be three; with the second read by others, three more would be five."""
    for shared in (False, True):
        net = Network()
        steps = [Reshape((2, 2, 6)), Transpose((0, 2, 1)), Reshape((12, 2)), Transpose((1, 0))]
        y = chain(net, net.input("x", 4, 6), steps)
        outputs = [net.node(Softmax(-1), y, name="y")]
        if shared:
            outputs.append(net.node(Softmax(-1), "s1", name="z"))
        after = check(net.graph(*outputs), clean_transposes)
        assert sum(not isinstance(node.op, Softmax) for node in after.nodes) == (4 if shared else 3)
