from __future__ import annotations

import numpy as np
import pytest
from network import Network, check

from tamis.compiler.ir.graph import SparsityNote
from tamis.compiler.ir.ops import Conv, ConvTranspose, Linear
from tamis.compiler.passes.note_sparsity import good_groups, note_sparsity


def pruned(shape: tuple[int, ...], axis: int, kept: int = 2) -> np.ndarray:
    """Random weights with ``kept`` random non-zeros in each group of four along ``axis``."""
    random = np.random.default_rng(3)
    rows = np.moveaxis(random.standard_normal(shape), axis, -1)
    groups = rows.reshape(-1, 4)
    ranks = random.random(groups.shape).argsort(axis=1).argsort(axis=1)
    return np.moveaxis((groups * (ranks < kept)).reshape(rows.shape), -1, axis).astype(np.float32)


def note(op: object, weight: np.ndarray, *x: int) -> SparsityNote:
    net = Network()
    net.node(op, net.input("x", *x), net.constant("w", weight), name="y")  # type: ignore[arg-type]
    return check(net.graph("y"), note_sparsity).sparsity["w"]


CONV = Conv((1, 1), (1,) * 4, (1, 1))
UP = ConvTranspose((2, 2), (0,) * 4, (1, 1), (0, 0))


def test_two_of_four_on_the_right_axis() -> None:
    assert note(CONV, pruned((6, 8, 3, 3), 1), 1, 8, 5, 5) == SparsityNote("2:4", 1, 0.5, 1.0)
    assert note(Linear(), pruned((6, 8), 1), 2, 8) == SparsityNote("2:4", 1, 0.5, 1.0)
    assert note(UP, pruned((8, 6, 2, 2), 0), 1, 8, 3, 3) == SparsityNote("2:4", 0, 0.5, 1.0)
    assert note(Linear(), pruned((6, 8), 1, kept=1), 2, 8).pattern == "2:4"


def test_two_of_four_on_a_wrong_axis() -> None:
    for weight, x, op in (
        (pruned((8, 8, 3, 4), 3), (1, 8, 5, 5), CONV),
        (pruned((8, 8, 3, 3), 0), (1, 8, 5, 5), CONV),
        (pruned((8, 8), 0), (2, 8), Linear()),
        (pruned((8, 8, 2, 2), 1), (1, 8, 3, 3), UP),
    ):
        found = note(op, weight, *x)
        assert found.pattern == "dense"
        assert "of the groups of four have more than two non-zeros" in found.reason
        assert 0 < found.good_groups < 1


def test_one_bad_group() -> None:
    weight = pruned((4, 8, 1, 1), 1)
    weight[2, 4:8] = 1.0
    found = note(Conv((1, 1), (0,) * 4, (1, 1)), weight, 1, 8, 2, 2)
    assert found == SparsityNote("dense", 1, 14 / 32, 7 / 8, "12.5% of the groups of four have more than two non-zeros")


def test_reasons() -> None:
    assert note(CONV, np.zeros((4, 3, 3, 3), np.float32), 1, 3, 5, 5).reason == (
        "reduction axis of 3 is not a multiple of 4"
    )
    depthwise = Conv((1, 1), (1,) * 4, (1, 1), groups=8)
    assert note(depthwise, np.ones((8, 1, 3, 3), np.float32), 1, 8, 5, 5).reason == (
        "reduction axis of 1 is not a multiple of 4"
    )


def test_groups_of_a_convolution_are_summed_over_one_by_one() -> None:
    grouped = Conv((1, 1), (1,) * 4, (1, 1), groups=2)
    assert note(grouped, pruned((4, 4, 3, 3), 1), 1, 8, 5, 5).pattern == "2:4"
    assert "100.0% of the groups" in note(grouped, np.ones((4, 4, 3, 3), np.float32), 1, 8, 5, 5).reason
    transposed = ConvTranspose((1, 1), (1,) * 4, (1, 1), (0, 0), groups=2)
    reason = note(transposed, pruned((8, 4, 3, 3), 0), 1, 8, 5, 5).reason
    assert reason == "grouped transposed convolution (2 groups)"


def test_negative_zero_is_zero_and_nan_is_not() -> None:
    weight = np.array([[-0.0, 1.0, -0.0, 1.0]], np.float32)
    assert good_groups(weight, 1) == 1.0
    assert good_groups(np.array([[np.nan, 1.0, 0.0, 1.0]], np.float32), 1) == 0.0


def test_computed_weights_have_no_note() -> None:
    net = Network()
    net.node(CONV, net.input("x", 1, 4, 5, 5), net.input("w", 4, 4, 3, 3), name="y")
    graph = net.graph("y")
    assert note_sparsity(graph) is graph


@pytest.mark.parametrize("seed", range(5))
def test_against_a_plain_loop(seed: int) -> None:
    random = np.random.default_rng(seed)
    weight = random.standard_normal((3, 8, 2, 2)) * (random.random((3, 8, 2, 2)) < 0.5)
    good = [
        np.count_nonzero(weight[k, c : c + 4, r, s]) <= 2
        for k in range(3)
        for c in (0, 4)
        for r in range(2)
        for s in range(2)
    ]
    assert good_groups(weight, 1) == pytest.approx(np.mean(good))
