"""Attention in the spellings of exporters, with every kind of mask."""

from __future__ import annotations

import numpy as np
import pytest
from network import Network, body, check

from tamis.compiler.ir.graph import Graph
from tamis.compiler.ir.ops import (
    Attention,
    Elementwise,
    MatMul,
    Pointwise,
    Reshape,
    Softmax,
    Transpose,
    Where,
)
from tamis.compiler.passes.clean_transposes import clean_transposes
from tamis.compiler.passes.order_operands import order_operands
from tamis.compiler.passes.recognise_attention import recognise_attention, regrouped
from tamis.formats.dtype import DType

B, H, S, T, D, E = 2, 3, 5, 4, 6, 7


class Spelling(Network):
    """q, k and v as graph inputs, and the steps that exporters write."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (
            self.input("q", B, H, S, D),
            self.input("k", B, H, T, D),
            self.input("v", B, H, T, E),
        )

    def keys(self) -> str:
        return self.node(Transpose((0, 1, 3, 2)), self.k, name="kt")

    def times(self, value: str, number: float, name: str, kind: str = "mul") -> str:
        return self.binary(kind, value, self.constant(f"{name}.c", np.float32(number)), name=name)

    def product(self) -> str:
        return self.node(MatMul(), self.q, self.keys(), name="scores")

    def close(self, scores: str, *, guard: bool = False) -> Graph:
        p = self.node(Softmax(3), scores, name="p")
        if guard:
            check_ = self.unary("isnan", p, name="isnan")
            p = self.node(Where(), check_, self.constant("none", np.float32(0)), p, name="guarded")
        self.node(MatMul(), p, self.v, name="y")
        return order_operands(self.graph("y"))


def attention(graph: Graph, *, exact: bool = True) -> Attention:
    """Recognise; nothing but k's transposes, a mask and the Attention may be left."""
    after = check(
        graph,
        lambda now: clean_transposes(recognise_attention(now)),
        scale=1.0,
        exact=exact,
        tolerance=1e-6 if exact else 1e-5,
    )
    assert not any(isinstance(node.op, Softmax | MatMul) for node in after.nodes), body(after)
    found = after.nodes[-1].op
    assert isinstance(found, Attention)
    return found


def test_before_and_after() -> None:
    net = Spelling()
    before = net.close(net.times(net.product(), 0.4, "scaled"))
    assert body(before) == [
        "kt = Transpose(%k) perm=0,1,3,2",
        "scores = MatMul(%q, %kt)",
        "scaled = Elementwise(%scores) | *scaled.c",
        "p = Softmax(%scaled) axis=3",
        "y = MatMul(%p, %v)",
    ]
    after = check(before, lambda now: clean_transposes(recognise_attention(now)))
    assert body(after) == ["y = Attention(%q, %k, %v) scale=0.4"]
    assert after.nodes[0].origin == ("kt", "scores", "scaled", "p", "y") or "scores" in after.nodes[0].origin


def test_scale_divides_and_is_spread_over_both() -> None:
    net = Spelling()
    assert attention(net.close(net.times(net.product(), 2.5, "scaled", "div"))).scale == pytest.approx(0.4)
    net = Spelling()
    q, kt = net.times(net.q, 0.5, "qs"), net.times(net.keys(), 0.5, "ks")
    assert attention(net.close(net.node(MatMul(), q, kt, name="scores"))).scale == pytest.approx(0.25)
    net = Spelling()
    assert attention(net.close(net.product())).scale == 1.0


def test_keys_as_torch_exports_them() -> None:
    net = Spelling()
    k = net.node(Reshape((B * H, T, D)), net.k, name="k3")
    k = net.node(Transpose((0, 2, 1)), k, name="k3t")
    k = net.times(net.node(Reshape((B, H, D, T)), k, name="k4"), 0.7, "ks")
    graph = net.close(net.node(MatMul(), net.times(net.q, 0.7, "qs"), k, name="scores"))
    after = check(graph, lambda now: clean_transposes(recognise_attention(now)))
    assert body(after) == ["y = Attention(%q, %k, %v) scale=0.49"]


def test_keys_that_never_were_transposed() -> None:
    """k comes as [B, H, D, T]; attention wants [B, H, T, D]."""
    net = Network()
    q, k, v = net.input("q", B, H, S, D), net.input("k", B, H, D, T), net.input("v", B, H, T, E)
    p = net.node(Softmax(-1), net.node(MatMul(), q, k, name="scores"), name="p")
    net.node(MatMul(), p, v, name="y")
    assert body(check(net.graph("y"), recognise_attention)) == [
        "y.k = Transpose(%k) perm=0,1,3,2",
        "y = Attention(%q, %y.k, %v) scale=1",
    ]


@pytest.mark.parametrize("shape", [(B, H, S, T), (1, 1, S, T), (B, 1, 1, T), (S, T), (T,), ()])
@pytest.mark.parametrize("constant", [False, True])
def test_added_mask(shape: tuple[int, ...], constant: bool) -> None:
    net = Spelling()
    mask = net.weight("mask", *shape) if constant else net.input("mask", *shape)
    scaled = net.times(net.product(), 0.5, "scaled")
    assert attention(net.close(net.binary("add", scaled, mask, name="masked"))).mask


@pytest.mark.parametrize("fill", [-np.inf, -3.4e38, -1e9])
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("constant", [False, True])
def test_choosing_mask(fill: float, keep: bool, constant: bool) -> None:
    net = Spelling()
    kept = net.random.random((B, 1, S, T)) < 0.7
    kept[..., 0] = True
    values = kept if keep else ~kept
    mask = net.constant("mask", values) if constant else net.input("mask", B, 1, S, T, dtype=DType.BOOL)
    scores, big = net.times(net.product(), 0.5, "scaled"), net.constant("big", np.float32(fill))
    inputs = (mask, scores, big) if keep else (mask, big, scores)
    graph = net.close(net.node(Where(), *inputs, name="masked"), guard=True)
    # In float64, -1e9 leaves something of the scores where a row is masked as a whole.
    assert attention(graph, exact=fill != -1e9).mask


def test_fill_that_does_not_swallow() -> None:
    net = Spelling()
    mask, big = net.input("mask", B, 1, S, T, dtype=DType.BOOL), net.constant("big", np.float32(-100))
    graph = net.close(net.node(Where(), mask, net.product(), big, name="masked"))
    assert recognise_attention(graph) is graph


def test_rows_without_anything_are_zero() -> None:
    net = Spelling()
    mask = np.zeros((S, T), np.float32)
    mask[2] = -np.inf
    graph = net.close(net.binary("add", net.product(), net.constant("mask", mask), name="masked"), guard=True)
    assert attention(graph).mask


def test_several_masks() -> None:
    net = Spelling()
    scores = net.product()
    for name in ("bias", "other"):
        scores = net.binary("add", net.weight(name, H, S, T), scores, name=f"plus {name}")
    for name in ("m1", "m2"):
        scores = net.binary("add", scores, net.input(name, B, 1, 1, T), name=f"plus {name}")
    assert attention(net.close(scores)).mask


def test_shifted_windows() -> None:
    """The bias is added to [B*windows, H, S, S], the mask to [B, windows, H, S, S]."""
    batch, windows = 2, 3
    net = Network()
    q, k, v = (net.input(name, batch * windows, H, S, D) for name in "qkv")
    scores = net.node(MatMul(), q, net.node(Transpose((0, 1, 3, 2)), k, name="kt"), name="scores")
    scores = net.binary("add", scores, net.weight("bias", 1, H, S, S), name="biased")
    scores = net.node(Reshape((batch, windows, H, S, S)), scores, name="cut")
    scores = net.binary("add", scores, net.weight("mask", 1, windows, 1, S, S), name="masked")
    scores = net.node(Reshape((batch * windows, H, S, S)), scores, name="joined")
    net.node(MatMul(), net.node(Softmax(-1), scores, name="p"), v, name="y")
    graph = net.graph("y")
    assert attention(graph).mask


def test_regrouped() -> None:
    random = np.random.default_rng(0)
    for shape, full, target in (
        ((1, 3, 1, 5, 5), (2, 3, 4, 5, 5), (6, 4, 5, 5)),
        ((2, 3, 1, 5, 1), (2, 3, 4, 5, 5), (6, 4, 5, 5)),
        ((4, 1, 5), (2, 3, 4, 5, 5), (6, 4, 5, 5)),
        ((5,), (2, 3, 4, 5, 5), (6, 4, 5, 5)),
        ((1, 1, 1, 1), (1, 6, 4, 1), (6, 4)),
        ((6, 4), (6, 4), (1, 2, 3, 4, 1)),
    ):
        array = random.standard_normal(shape)
        found = regrouped(array, full, target)
        assert found is not None
        expected = np.broadcast_to(array, full).reshape(target)
        np.testing.assert_array_equal(np.broadcast_to(found, target), expected)
    found = regrouped(random.standard_normal((1, 3, 1, 5, 5)), (2, 3, 4, 5, 5), (6, 4, 5, 5))
    assert found is not None
    assert found.shape == (6, 1, 5, 5)


def test_rank_three() -> None:
    net = Network()
    q, k, v = net.input("q", H, S, D), net.input("k", H, T, D), net.input("v", H, T, E)
    scores = net.node(MatMul(), q, net.node(Transpose((0, 2, 1)), k, name="kt"), name="scores")
    net.node(MatMul(), net.node(Softmax(-1), scores, name="p"), v, name="y")
    assert attention(net.graph("y")).scale == 1.0


@pytest.mark.parametrize(
    "case",
    [
        "scores are read", "p is an output", "p is read", "guard is read", "other axis", "mask enlarges",
        "mask scaled", "not a product", "broadcast keys", "p on the right", "rank two", "factor per head",
    ],
)  # fmt: skip
def test_left_alone(case: str) -> None:
    if case in ("broadcast keys", "rank two", "mask enlarges"):
        net = Network()
        lead = () if case == "rank two" else (1,) if case == "mask enlarges" else (2,)
        q, v = net.input("q", *lead, S, D), net.input("v", *lead, T, E)
        k = net.input("k", *((1,) if lead else ()), D, T)
        scores = net.node(MatMul(), q, k, name="scores")
        if case == "mask enlarges":
            scores = net.binary("add", scores, net.input("mask", 2, S, T), name="masked")
        net.node(MatMul(), net.node(Softmax(-1), scores, name="p"), v, name="y")
        graph = net.graph("y")
    else:
        net = Spelling()
        scores = net.product()
        outputs = ["y"]
        if case == "scores are read":
            outputs.append(net.unary("tanh", scores, name="other"))
        if case == "mask scaled":
            scores = net.binary("add", scores, net.input("mask", S, T), name="masked")
            scores = net.times(scores, 0.5, "scaled")
        if case == "factor per head":
            scores = net.binary("mul", scores, net.weight("factor", H, 1, 1), name="scaled")
        if case == "not a product":
            scores = net.unary("tanh", scores, name="bounded")
        p = net.node(Softmax(2 if case == "other axis" else 3), scores, name="p")
        if case == "p is an output":
            outputs.append("p")
        if case == "p is read":
            outputs.append(net.unary("tanh", p, name="other"))
        if case == "guard is read":
            check_ = net.unary("isnan", p, name="isnan")
            p = net.node(Where(), check_, net.constant("none", np.float32(0)), p, name="guarded")
            outputs.append(net.node(Elementwise((Pointwise("not"),)), check_, name="other"))
        if case == "p on the right":
            net.node(MatMul(), net.input("left", B, H, E, S), p, name="y")
        else:
            net.node(MatMul(), p, net.v, name="y")
        graph = order_operands(net.graph(*outputs))
    assert recognise_attention(graph) is graph
