"""Weights that are parts of stored tensors, or are joined from several: each judged and pruned on its own axis."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx_graphs import TWO_FOUR, dense, model, node, sparse
from torch import nn

from tamis.errors import SparsityError
from tamis.formats import is_nm, magnitude_mask
from tamis.sparsity import OnnxPruneReport, check_onnx, export_onnx, prune_onnx
from tamis.sparsity.prune_onnx_group import connected

SIZE = 16


def pruned(weight: NDArray[Any], axis: int) -> NDArray[Any]:
    return np.where(magnitude_mask(weight.astype(np.float64), TWO_FOUR, axis), weight, np.zeros((), weight.dtype))


def run(
    folder: Path, nodes: list[onnx.NodeProto], constants: dict[str, NDArray[Any]], **options: Any
) -> tuple[OnnxPruneReport, dict[str, NDArray[Any]]]:
    report = prune_onnx(model(nodes, **constants), folder / "s.onnx", **options)
    after = {each.name: numpy_helper.to_array(each) for each in onnx.load(folder / "s.onnx").graph.initializer}
    for layer, check in zip(report.layers, check_onnx(folder / "s.onnx"), strict=True):
        assert check.eligible == (layer.reason is None)
    return report, after


def products(*weights: str, **attributes: Any) -> list[onnx.NodeProto]:
    """One product for each weight, and their sum, which is the output."""
    operator = "Gemm" if attributes else "MatMul"
    outputs = [f"out_{weight}" for weight in weights]
    layers = [
        helper.make_node(operator, ["x", weight], [output], f"by_{weight}", **attributes)
        for weight, output in zip(weights, outputs, strict=True)
    ]
    return [*layers, helper.make_node("Sum", outputs, ["y"])]


def cut(kind: str, axis: int) -> tuple[list[onnx.NodeProto], dict[str, NDArray[Any]]]:
    """Nodes that make q, k and v, of 16 each, out of w along an axis."""
    if kind == "Split":
        split = helper.make_node("Split", ["w", "sizes"], ["q", "k", "v"], axis=axis)
        return [split], {"sizes": np.array([SIZE] * 3)}
    nodes, constants = [], {"axis": np.array([axis])}
    for place, name in enumerate("qkv"):
        if kind == "Slice":
            constants |= {f"{name}0": np.array([place * SIZE]), f"{name}1": np.array([(place + 1) * SIZE])}
            nodes.append(node("Slice", f"w {name}0 {name}1 axis", name))
        else:
            constants[f"{name}i"] = np.arange(place * SIZE, (place + 1) * SIZE)
            nodes.append(node("Gather", f"w {name}i", name, axis=axis))
    return nodes, constants


@pytest.mark.parametrize("kind", ["Split", "Slice", "Gather"])
@pytest.mark.parametrize(("axis", "transposed"), [(1, False), (0, False), (0, True), (1, True)])
def test_parts_are_pruned_on_their_own_axis(kind: str, axis: int, transposed: bool, tmp_path: Path) -> None:
    nodes, constants = cut(kind, axis)
    shape = [SIZE, SIZE]
    shape[axis] = 3 * SIZE
    layers = products("q", "k", "v", **({"transB": 1} if transposed else {}))
    weight = dense(*shape)
    report, after = run(tmp_path, [*nodes, *layers], {"w": weight, **constants})
    reduction = 1 if transposed else 0
    np.testing.assert_array_equal(after["w"], pruned(weight, reduction))  # parts of whole groups: as if uncut
    assert [(layer.name, layer.axis, layer.shape) for layer in report.pruned] == [("w", reduction, (SIZE, SIZE))] * 3
    found = check_onnx(model([*nodes, *layers], w=sparse(*shape, axis=1 - reduction), **constants))
    assert all(f"the layer reduces over axis {reduction}" in str(check.reason) for check in found)


def test_one_part_may_stay_dense(tmp_path: Path) -> None:
    nodes, constants = cut("Split", 1)
    weight = dense(SIZE, 3 * SIZE)
    report, after = run(tmp_path, [*nodes, *products("q", "k", "v")], {"w": weight, **constants}, exclude=["by_k"])
    expected = pruned(weight, 0)
    expected[:, SIZE : 2 * SIZE] = weight[:, SIZE : 2 * SIZE]
    np.testing.assert_array_equal(after["w"], expected)
    assert [layer.reason for layer in report.layers] == [None, "excluded", None]


def test_parts_of_which_one_does_not_fit(tmp_path: Path) -> None:
    split = helper.make_node("Split", ["w", "sizes"], ["a", "b"], axis=0)
    slice_ = [node("Slice", "x from to one", "left"), helper.make_node("MatMul", ["left", "a"], ["ya"], "by_a")]
    nodes = [split, *slice_, helper.make_node("MatMul", ["x", "b"], ["yb"], "by_b"), node("Add", "ya yb")]
    numbers = {"sizes": np.array([6, 8]), "from": np.array([0]), "to": np.array([6]), "one": np.array([1])}
    weight = dense(14, 8)
    report, after = run(tmp_path, nodes, {"w": weight, **numbers})
    np.testing.assert_array_equal(after["w"], np.concatenate([weight[:6], pruned(weight[6:], 0)]))
    assert "6 inputs to reduce over" in str(report.layers[0].reason) and report.layers[1].reason is None


def test_parts_that_overlap_have_to_agree(tmp_path: Path) -> None:
    numbers = {name: np.array([value]) for name, value in (("zero", 0), ("two", 2), ("eight", 8), ("ten", 10))}
    nodes = [node("Slice", "w zero eight zero", "a"), node("Slice", "w two ten zero", "b"), *products("a", "b", "c")]
    weight = dense(10, 8)
    report, after = run(tmp_path, nodes, {"w": weight, "c": dense(8, 8), **numbers})
    assert after["w"].tobytes() == weight.tobytes()
    assert ["do not agree" in str(layer.reason) for layer in report.layers] == [True, True, False]
    report, after = run(tmp_path, nodes, {"w": weight, "c": dense(8, 8), **numbers}, exclude=["by_a"])
    assert report.layers[1].reason == "shares its weight with node 'by_a': excluded"


def test_joined_tensors_are_all_pruned(tmp_path: Path) -> None:
    # groups of four across the border: two rows of a, then rows of b
    nodes = [node("Concat", "a b a", "w", axis=0), *products("w")]
    constants = {"a": dense(2, 8), "b": dense(12, 8) * 2}
    whole = np.concatenate([constants["a"], constants["b"], constants["a"]])
    report, after = run(tmp_path, nodes, constants)
    (layer,) = report.layers
    assert (layer.name, layer.shape, layer.reason) == ("b + a", (16, 8), None)
    kept = magnitude_mask(whole, TWO_FOUR, 0)
    np.testing.assert_array_equal(after["a"], np.where(kept[:2] & kept[14:], constants["a"], 0))  # by both its places
    np.testing.assert_array_equal(after["b"], np.where(kept[2:14], constants["b"], 0))
    for name in ("a", "b", "b + a"):
        assert run(tmp_path, nodes, constants, only=[name])[0].pruned


def test_cut_joined_and_used_elsewhere(tmp_path: Path) -> None:
    """q and k of one tensor, joined the other way round; another tensor shares a layer with it."""
    split = helper.make_node("Split", ["w", "sizes"], ["q", "k"], axis=0)
    nodes = [split, node("Concat", "k q o", "kqo", axis=1), *products("kqo", "o")]
    constants = {"w": dense(16, 8), "o": dense(8, 8), "sizes": np.array([8, 8])}
    report, after = run(tmp_path, nodes, constants)
    np.testing.assert_array_equal(after["w"], pruned(constants["w"], 0))
    np.testing.assert_array_equal(after["o"], pruned(constants["o"], 0))
    assert [layer.name for layer in report.pruned] == ["w + o", "o"]
    nodes.append(node("Relu", "q", "r"))  # a constant itself, and an output
    proto = model(nodes, **constants)
    proto.graph.output.append(helper.make_tensor_value_info("r", TensorProto.FLOAT, None))
    with pytest.raises(SparsityError, match=r"also an output of the model; .* shares its weight with node 'by_kqo'"):
        prune_onnx(proto, tmp_path / "s.onnx")


@pytest.mark.parametrize("per_channel", [False, True])
def test_quantised_in_projection_in_parts(per_channel: bool, tmp_path: Path) -> None:
    """int8 with zero points, dequantised, cast, reshaped, transposed, then split: the chain that exporters write."""
    random = np.random.default_rng(0)
    codes = random.integers(0, 256, (3 * SIZE, 2, SIZE // 2)).astype(np.uint8)
    zero = random.integers(120, 136, 3 * SIZE).astype(np.uint8) if per_channel else np.array(131, np.uint8)
    scale = random.uniform(0.01, 0.1, 3 * SIZE).astype(np.float32) if per_channel else np.array(0.02, np.float32)
    nodes = [
        node("DequantizeLinear", "w scale zero", "d", axis=0),
        node("Cast", "d", "c", to=TensorProto.FLOAT),
        node("Reshape", "c shape", "r"),
        node("Transpose", "r", "t"),
        node("Identity", "t", "i"),
        helper.make_node("Split", ["i", "sizes"], ["q", "k", "v"], axis=1),
        *products("q", "k", "v"),
    ]
    numbers = {"shape": np.array([3 * SIZE, SIZE]), "sizes": np.array([SIZE] * 3), "scale": scale, "zero": zero}
    report, after = run(tmp_path, nodes, {"w": codes, **numbers})
    spread = (lambda each: each[:, None]) if per_channel else (lambda each: each)
    real = ((codes.reshape(3 * SIZE, SIZE).astype(np.float32) - spread(zero)) * spread(scale)).astype(np.float32)
    expected = np.where(magnitude_mask(real, TWO_FOUR, 1), codes.reshape(real.shape), spread(zero))
    np.testing.assert_array_equal(after["w"].reshape(real.shape), expected)
    assert len(report.pruned) == 3


def test_parts_behind_a_mask(tmp_path: Path) -> None:
    weight, mask = dense(SIZE, 3 * SIZE), magnitude_mask(dense(SIZE, 3 * SIZE), TWO_FOUR, 0).astype(np.float32)
    nodes, constants = cut("Split", 1)
    nodes[0].input[0] = "m"
    nodes = [node("Mul", "w mask", "m"), *nodes, *products("q", "k", "v")]
    found = check_onnx(model(nodes, w=weight, mask=mask, **constants))
    assert all(each.groups == 1.0 and "come from Mul node 'the_Mul'" in str(each.reason) for each in found)
    _, after = run(tmp_path, nodes, {"w": weight, "mask": mask, **constants})
    np.testing.assert_array_equal(after["w"], weight * mask)
    assert "mask" not in after
    _, after = run(tmp_path, nodes, {"w": weight, "mask": mask, **constants}, exclude=["by_q"])
    assert "mask" in after  # which the first part still needs
    np.testing.assert_array_equal(after["w"][:, SIZE:], (weight * mask)[:, SIZE:])
    np.testing.assert_array_equal(after["w"][:, :SIZE], weight[:, :SIZE])


def test_elements_that_are_used_several_times(tmp_path: Path) -> None:
    nodes = [node("Tile", "w times", "t"), node("Expand", "t shape", "e"), *products("e")]
    weight = dense(4, 8)
    _, after = run(tmp_path, nodes, {"w": weight, "times": np.array([2, 1]), "shape": np.array([3, 8, 8])})
    np.testing.assert_array_equal(after["w"], pruned(weight, 0))
    nodes = [node("Gather", "w rows", "g"), *products("g", "v")]  # a group that holds one row four times
    rows = np.array([0, 0, 0, 0, 1, 2, 3, 4])
    report, after = run(tmp_path, nodes, {"w": dense(5, 8), "rows": rows, "v": dense(8, 8)})
    kept = magnitude_mask(dense(5, 8)[rows], TWO_FOUR, 0)
    assert report.layers[0].reason is None and is_nm(after["w"][rows] != 0, TWO_FOUR, 0)
    assert (after["w"][0] == 0).all() and (after["w"][1:] != 0).sum() == kept[4:].sum()


def test_sequences_are_judged_but_not_seen_through(tmp_path: Path) -> None:
    nodes = [
        node("SplitToSequence", "w size", "parts", axis=1),
        *(node("SequenceAt", f"parts i{place}", name) for place, name in enumerate("qk")),
        *products("q", "k", "v"),
    ]
    numbers = {"size": np.array(SIZE), "i0": np.array(0), "i1": np.array(1), "v": dense(SIZE, SIZE)}
    found = check_onnx(model(nodes, w=sparse(SIZE, 2 * SIZE, axis=0), **numbers))
    assert [(each.name, each.eligible) for each in found] == [("w", True), ("w", True), ("v", False)]
    report, _ = run(tmp_path, nodes, {"w": dense(SIZE, 2 * SIZE), **numbers})
    assert "computed by SequenceAt node" in str(report.layers[0].reason) and report.layers[2].reason is None


class InParts(nn.Module):
    """Attention as many write it: one stored projection, cut when the model runs."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3 * 64, 64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = (nn.functional.linear(x, part) for part in self.weight.chunk(3))
        return torch.softmax(query @ key.transpose(1, 2), -1) @ value


def test_what_pytorchs_exporter_makes_of_parts(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = InParts().eval()
    export_onnx(network, (torch.randn(2, 5, 64),), tmp_path / "m.onnx")
    report = prune_onnx(tmp_path / "m.onnx", tmp_path / "s.onnx")
    assert [(layer.axis, layer.shape) for layer in report.pruned] == [(0, (64, 64))] * 3
    assert all(each.eligible for each in check_onnx(tmp_path / "s.onnx"))


def test_groups_are_those_connected_by_a_key() -> None:
    assert connected([{1}, {2}, {3}, {1, 3}, {4}, {2}, set()]) == [[0, 2, 3], [1, 5], [4], [6]]
