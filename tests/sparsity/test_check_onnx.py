"""Checking ONNX files: graphs built by hand, one question each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx_graphs import TWO_FOUR, dense, model, node, sparse

from tamis.errors import InvalidModel
from tamis.formats import magnitude_mask
from tamis.sparsity import LayerCheck, check_onnx


def check(nodes: list[onnx.NodeProto], **constants: NDArray[Any]) -> LayerCheck:
    (found,) = check_onnx(model(nodes, **constants))
    return found


@pytest.mark.parametrize(
    ("operator", "shape", "axis"),
    [
        (node("Conv", "x w"), (8, 8, 3, 3), 1),
        (node("Conv", "x w"), (8, 8, 5), 1),
        (node("Conv", "x w"), (8, 8, 1, 3, 3), 1),
        (node("Conv", "x w", group=2), (8, 8, 3, 3), 1),
        (node("ConvTranspose", "x w"), (8, 12, 4, 4), 0),
        (node("ConvTranspose", "x w", group=2), (8, 12, 4, 4), 0),
        (node("Gemm", "x w", transB=1), (12, 8), 1),
        (node("Gemm", "x w"), (8, 12), 0),
        (node("Gemm", "w x"), (12, 8), 1),
        (node("Gemm", "w x", transA=1), (8, 12), 0),
        (node("MatMul", "x w"), (8, 12), 0),
        (node("MatMul", "x w"), (3, 8, 12), 1),
        (node("MatMul", "x w"), (8,), 0),
        (node("MatMul", "w x"), (12, 8), 1),
        (node("MatMul", "w x"), (8,), 0),
    ],
)
def test_every_operator_is_judged_on_its_reduction_axis(
    operator: onnx.NodeProto, shape: tuple[int, ...], axis: int
) -> None:
    found = check([operator], w=sparse(*shape, axis=axis))
    assert found.eligible, found.reason
    assert (found.name, found.op, found.node) == ("w", operator.op_type, f"the_{operator.op_type}")
    assert (found.axis, found.shape, found.zeros, found.groups) == (axis, shape, 0.5, 1.0)
    for other in range(len(shape)):
        if other != axis and shape[other] % 4 == 0:
            found = check([operator], w=sparse(*shape, axis=other))
            assert f"along axis {other}, but the layer reduces over axis {axis}" in str(found.reason)
    assert "of the groups" in str(check([operator], w=dense(*shape)).reason)


@pytest.mark.parametrize(
    ("operator", "shape", "reason"),
    [
        (node("Conv", "x w"), (8, 3, 7, 7), "3 inputs to reduce over"),
        (node("Conv", "x w", group=8), (8, 1, 3, 3), "depthwise"),
        (node("Conv", "x w", group=2), (8, 6, 3, 3), "6 inputs in each of 2 groups"),
        (node("ConvTranspose", "x w", group=2), (12, 8, 2, 2), "6 inputs in each of 2 groups"),
        (node("Gemm", "x w", transB=1), (8, 13), "13 inputs"),
    ],
)
def test_layers_that_cannot_follow_the_pattern(operator: onnx.NodeProto, shape: tuple[int, ...], reason: str) -> None:
    assert reason in str(check([operator], w=np.zeros(shape, np.float32)).reason)


def test_the_axis_follows_a_transpose() -> None:
    nodes = [node("Transpose", "w", "t", perm=[1, 0]), node("MatMul", "x t")]
    assert check(nodes, w=sparse(8, 12, axis=1)).eligible
    assert not check(nodes, w=sparse(8, 12, axis=0)).eligible


def test_through_cast_identity_and_reshape() -> None:
    nodes = [
        node("Cast", "w", "c", to=TensorProto.FLOAT),
        node("Identity", "c", "i"),
        node("Reshape", "i shape", "r"),
        node("Conv", "x r"),
    ]
    weight = sparse(8, 8, axis=1).astype(np.float16)
    found = check(nodes, w=weight, shape=np.array([8, 8, 1, 1]))
    assert found.eligible and found.name == "w" and found.shape == (8, 8, 1, 1)
    moved = check(nodes, w=weight, shape=np.array([16, 4, 1, 1]))
    assert moved.eligible  # groups of four stay whole
    weight = sparse(8, 9, 4, axis=2).astype(np.float16)
    assert not check(nodes, w=weight, shape=np.array([8, 4, 3, 3])).eligible  # they do not


@pytest.mark.parametrize("zero_point", [128, 0])
def test_quantised_weights_are_dequantised_first(zero_point: int) -> None:
    weight = sparse(12, 8, axis=1)
    codes = np.clip(np.round(weight / 0.02) + zero_point, 0, 255).astype(np.uint8)
    nodes = [node("DequantizeLinear", "q scale zero", "w"), node("Gemm", "x w", transB=1)]
    constants = {"q": codes, "scale": np.array(0.02, np.float32), "zero": np.array(zero_point, np.uint8)}
    found = check(nodes, **constants)
    assert found.eligible and found.name == "q"
    if zero_point:
        assert np.count_nonzero(codes == 0) < codes.size / 4  # the stored zeros alone would not tell
    constants["zero"] = np.array(zero_point + 1, np.uint8)
    assert not check(nodes, **constants).eligible


def test_blocked_and_per_channel_dequantisation() -> None:
    weight = sparse(8, 8, axis=0)
    codes = np.round(weight * 20).astype(np.int8)
    scales = np.full((2, 8), 0.05, np.float32)
    nodes = [
        node("DequantizeLinear", "q scale", "w", axis=0, block_size=4),
        node("MatMul", "x w"),
    ]
    assert check(nodes, q=codes, scale=scales).eligible
    nodes[0] = node("DequantizeLinear", "q scale", "w", axis=1)
    assert check(nodes, q=codes, scale=scales[0]).eligible


def test_float_weights_behind_quantise_and_dequantise() -> None:
    nodes = [
        node("QuantizeLinear", "f scale zero", "q"),
        node("DequantizeLinear", "q scale zero", "w"),
        node("Conv", "x w"),
    ]
    found = check(nodes, f=sparse(8, 8, 3, 3, axis=1), scale=np.array(0.02, np.float32), zero=np.array(0, np.int8))
    assert found.eligible and found.name == "f"


@pytest.mark.parametrize("masking", ["Mul", "Where"])
def test_masks_in_the_graph_are_found(masking: str) -> None:
    mask = magnitude_mask(dense(12, 8), TWO_FOUR, 1)
    multiply = [node("Cast", "mask", "m", to=TensorProto.FLOAT), node("Mul", "dense m", "w")]
    select = [node("Where", "mask dense nothing", "w")]
    nodes = [*(multiply if masking == "Mul" else select), node("Gemm", "x w", transB=1)]
    found = check(nodes, dense=dense(12, 8), mask=mask, nothing=np.array(0, np.float32))
    assert found.groups == 1.0
    assert f"its zeros come from {masking} node 'the_{masking}'" in str(found.reason)
    assert found.name == "dense"
    scaled = [node("Mul", "stored scale", "w"), node("Gemm", "x w", transB=1)]
    assert check(scaled, stored=sparse(12, 8, axis=1), scale=np.array(2, np.float32)).eligible


def test_constant_nodes_count_as_weights() -> None:
    constant = helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(sparse(8, 12, axis=0)))
    assert check([constant, node("MatMul", "x w")]).eligible


def test_products_of_activations_are_no_layers() -> None:
    assert check_onnx(model([node("MatMul", "x x")])) == ()


def test_shared_weight_appears_once_per_layer() -> None:
    nodes = [node("MatMul", "x w", "h"), node("Gemm", "h w", transB=1)]
    first, second = check_onnx(model(nodes, w=sparse(8, 8, axis=0)))
    assert first.eligible and not second.eligible
    assert first.name == second.name == "w"


def test_other_patterns() -> None:
    weight = sparse(8, 8, axis=1)
    (found,) = check_onnx(model([node("Gemm", "x w", transB=1)], w=weight), "1:4")
    assert found.groups == 0.0
    assert "1:4" in str(found.reason)


def test_files_with_external_data_and_broken_files(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    proto = model([node("Gemm", "x w", transB=1)], w=sparse(64, 64, axis=1))
    onnx.save(proto, path, save_as_external_data=True, location="model.data", size_threshold=0)
    assert check_onnx(path)[0].eligible
    (tmp_path / "model.data").unlink()
    for broken in (path, tmp_path / "absent.onnx"):
        with pytest.raises(InvalidModel, match=r"does not exist|which is not in|is not an ONNX model"):
            check_onnx(broken)
    garbage = tmp_path / "garbage.onnx"
    garbage.write_bytes(b"\xff not a model")
    with pytest.raises(InvalidModel, match=r"does not exist|which is not in|is not an ONNX model"):
        check_onnx(str(garbage))
