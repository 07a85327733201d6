from __future__ import annotations

import numpy as np
import pytest
from network import Network, body, check

from tamis.compiler.ir.ops import Gather, GatherND
from tamis.compiler.passes.simplify_gathers import simplify_gathers


def gather(shape: tuple[int, ...], indices: object, axis: int) -> list[str]:
    net = Network()
    net.node(Gather(axis), net.input("x", *shape), net.constant("i", np.array(indices)), name="y")
    graph = net.graph("y")
    after = check(graph, simplify_gathers)
    assert (after is graph) == (body(after) == body(graph))
    return body(after)


def test_gathers() -> None:
    assert gather((6,), [[0, 1], [2, 3], [4, 5]], 0) == ["y = Reshape(%x) shape=3,2"]
    assert gather((2, 3), [0, 1, 2], 1) == ["y = Reshape(%x) shape=2,3"]
    assert gather((2, 5), [1, 2, 3], 1) == ["y = Slice(%x) axes=1 starts=1 stops=4 steps=1"]
    assert gather((2, 5), [-2, -1], 1) == ["y = Slice(%x) axes=1 starts=3 stops=5 steps=1"]
    assert gather((2, 5, 3), 0, 1) == [
        "y.part = Slice(%x) axes=1 starts=0 stops=1 steps=1",
        "y = Reshape(%y.part) shape=2,3",
    ]
    assert gather((2, 5), [[1, 2], [3, 4]], 1) == [
        "y.part = Slice(%x) axes=1 starts=1 stops=5 steps=1",
        "y = Reshape(%y.part) shape=2,2,2",
    ]


@pytest.mark.parametrize("indices", [[0, 2], [1, 0], [1, 1], [3, 4, 0]])
def test_other_orders_stay(indices: list[int]) -> None:
    assert gather((2, 5), indices, 1) == ["y = Gather(%x, i) axis=1"]


def test_computed_indices_stay() -> None:
    net = Network()
    net.node(
        Gather(0),
        net.constant("c", np.eye(3)),
        net.unary("identity", net.constant("i", np.array([0, 1, 2])), name="j"),
        name="g",
    )
    net.binary("add", "g", net.input("x", 3), name="y")
    graph = net.graph("y")
    assert simplify_gathers(graph) is graph


def gather_nd(indices: np.ndarray, batch: int = 0) -> list[str]:
    net = Network()
    net.node(GatherND(batch), net.input("x", 2, 3), net.constant("i", indices), name="y")
    return body(check(net.graph("y"), simplify_gathers))


def test_gather_nd() -> None:
    every = np.stack(np.meshgrid(np.arange(2), np.arange(3), indexing="ij"), axis=-1)
    assert gather_nd(every.reshape(2, 1, 1, 3, 2)) == ["y = Reshape(%x) shape=2,1,1,3"]
    assert gather_nd(every - np.array([0, 3])) == ["y = Reshape(%x) shape=2,3"]
    assert gather_nd(every[:, ::-1]) == ["y = GatherND(%x, i)"]
    assert gather_nd(every[:1]) == ["y = GatherND(%x, i)"]
    assert gather_nd(np.array([[0], [1]])) == ["y = GatherND(%x, i)"]
    assert gather_nd(np.array([[0], [1]]), 1) == ["y = GatherND(%x, i) batch_dims=1"]
