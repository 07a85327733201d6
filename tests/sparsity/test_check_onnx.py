"""Checking ONNX files: graphs built by hand, one question each."""

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

from tamis.errors import InvalidModel
from tamis.formats import NM, magnitude_mask
from tamis.sparsity import LayerCheck, check_module, check_onnx, export_onnx, prune, prune_onnx


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


def test_a_weight_that_an_embedding_shares_counts_if_it_follows_the_pattern() -> None:
    """As in torch: it can be used if it has the zeros, and cannot be given them without changing the embedding."""
    nodes = [node("Gather", "w i", "e"), node("Transpose", "w", "t"), node("MatMul", "x t", "h"), node("MatMul", "h v")]
    for weight, eligible in ((sparse(8, 8, axis=1), True), (dense(8, 8), False)):
        proto = model(nodes, w=weight, v=dense(8, 8))
        proto.graph.input.append(helper.make_tensor_value_info("i", TensorProto.INT64, [1]))
        shared, own = check_onnx(proto)
        assert (shared.eligible, shared.fits) == (eligible, eligible) and (own.eligible, own.fits) == (False, True)
        assert eligible or shared.reason == "its weight 'w' is also used by Gather node 'the_Gather'"
        network = Tied(weight)
        shared, own = check_module(network)
        assert (shared.eligible, shared.fits) == (eligible, eligible) and (own.eligible, own.fits) == (False, True)
        assert eligible or shared.reason == "shared with 'embed.weight', which does not reduce over the same axis"


class Tied(nn.Module):
    """An embedding and a layer of one weight, and a layer of its own."""

    def __init__(self, weight: NDArray[Any]) -> None:
        super().__init__()
        size = len(weight)
        self.embed, self.head, self.own = nn.Embedding(size, size), nn.Linear(size, size), nn.Linear(size, size)
        self.head.weight = self.embed.weight = nn.Parameter(torch.from_numpy(weight))

    def forward(self, index: torch.Tensor) -> torch.Tensor:
        return self.head(self.own(self.embed(index)))


def test_check_after_prune_agrees_for_tied_embeddings(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Tied(dense(128, 128))  # so large that the exporter does not copy it
    x = torch.zeros(2, 3, dtype=torch.int64)
    export_onnx(network, (x,), tmp_path / "m.onnx")
    report = prune_onnx(tmp_path / "m.onnx", tmp_path / "s.onnx")
    prune(network)
    for found in (check_onnx(tmp_path / "s.onnx"), check_module(network)):
        assert sorted((each.eligible, each.fits) for each in found) == [(False, False), (True, True)]
    assert [layer.reason is None for layer in report.layers] == [True, False]


def test_weights_of_two_axes_count_if_they_follow_the_pattern() -> None:
    nodes = [node("Transpose", "w", "t"), node("Identity", "t", "i"), node("MatMul", "x i", "h"), node("MatMul", "h w")]
    first, second = check_onnx(model(nodes, w=sparse(8, 8, axis=1)))
    assert first.eligible and not second.eligible and not second.fits
    assert second.reason == "its weight 'w' is shared with node 'the_MatMul', which reduces over another axis"
    alike = [node("Transpose", "w", "t"), node("MatMul", "x t", "h"), node("Gemm", "h w", transB=1)]
    assert [each.fits for each in check_onnx(model(alike, w=dense(8, 8)))] == [True, True]


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


def test_the_tightest_pattern_and_the_first_violation() -> None:
    weight = dense(8, 16)
    quarter = np.where(magnitude_mask(weight, NM(1, 4), 1), weight, np.float32(0))
    nodes = [node("Gemm", "x w", transB=1)]
    found = check(nodes, w=quarter)
    assert found.eligible and (found.found, found.first, found.fits) == (NM(1, 4), None, True)
    eighths = np.zeros((8, 16), np.float32)
    eighths[:, :4] = eighths[:, 8:12] = weight[:, :4]
    eighths[:, :2] = 0
    eighths[:, 5:7] = 1
    found = check(nodes, w=eighths)
    assert (found.found, found.groups, found.first) == (NM(4, 8), 0.75, (0, 8))
    assert str(found.reason) == "75.0% of the groups along axis 1 are 2:4; the first that is not begins at [0, 8]"
    found = check(nodes, w=weight)
    assert (found.found, found.first) == (None, (0, 0))
    found = check([node("Conv", "x w", group=8)], w=dense(8, 1, 3, 3))
    assert not found.fits and found.first is None


def test_one_broken_group_of_many_is_not_rounded_away() -> None:
    weight = sparse(256, 1024, axis=1)
    weight[200, 4:8] = 1e-6
    found = check([node("Gemm", "x w", transB=1)], w=weight)
    assert found.first == (200, 4) and not found.eligible
    assert str(found.reason).startswith("99.9% of the groups")
    assert "of the weight's norm, as in an average that was begun before pruning" in str(found.reason)


@pytest.mark.parametrize(
    "element",
    ["FLOAT16", "BFLOAT16", "DOUBLE", "FLOAT8E4M3FN", "FLOAT8E5M2", "FLOAT8E4M3FNUZ", "INT4", "UINT4", "FLOAT4E2M1"],
)
@pytest.mark.parametrize("cast", [False, True])
def test_all_types_of_weights(element: str, cast: bool) -> None:
    number = getattr(TensorProto, element)
    weight = (np.abs(sparse(8, 16, axis=1)) * 3).astype(helper.tensor_dtype_to_np_dtype(number))
    nodes = [node("Cast", "w", "c", to=TensorProto.FLOAT)] if cast else []
    found = check([*nodes, node("Gemm", "x c" if cast else "x w", transB=1)], w=weight)
    assert found.eligible and found.name == "w" and found.shape == (8, 16)
    assert not check([*nodes, node("Gemm", "x c" if cast else "x w", transB=1)], w=np.ones_like(weight)).eligible


def test_weights_that_are_computed_from_constants() -> None:
    up, down = np.ones((8, 2), np.float32), np.ones((2, 8), np.float32)
    merged = [node("MatMul", "up down", "d"), node("Add", "base d", "w"), node("MatMul", "x w")]
    found = check(merged, base=sparse(8, 8, axis=0), up=up, down=down)
    assert not found.eligible and found.shape == (8, 8)  # the product of the two small ones is no layer of its own
    norms = [
        node("ReduceL2", "v axis", "n", keepdims=1),
        node("Div", "v n", "u"),
        node("Mul", "u g", "w"),
        node("Gemm", "x w", transB=1),
    ]
    found = check(norms, v=sparse(8, 8, axis=1), axis=np.array([1]), g=np.full((8, 1), 2, np.float32))
    assert found.eligible and found.name == "v"


def test_integer_operators_are_judged_less_their_zero_point() -> None:
    weight = sparse(8, 8, 3, 3, axis=1)
    zero = np.arange(124, 132, dtype=np.uint8)
    codes = np.clip(np.round(weight * 30) + zero[:, None, None, None], 0, 255).astype(np.uint8)
    scalar = np.array(3, np.uint8)
    nodes = [node("ConvInteger", "x w xz wz")]
    assert check(nodes, w=codes, xz=scalar, wz=zero).eligible
    assert not check(nodes, w=codes, xz=scalar, wz=zero + np.uint8(1)).eligible
    nodes = [node("MatMulInteger", "w x wz")]
    rows = codes[:, :, 0, 0]
    assert check(nodes, w=rows, wz=zero).eligible
    assert not check(nodes, w=rows, wz=np.array(128, np.uint8)).eligible
    assert check([node("MatMulInteger", "x w")], w=rows.astype(np.int8) * 0).eligible


def test_microsofts_operators() -> None:
    proto = model(
        [node("DequantizeLinear", "q s z", "w"), node("FusedMatMul", "x w", transB=1, alpha=2.0)],
        q=np.where(sparse(8, 8, axis=1) == 0, 100, 1).astype(np.uint16),
        s=np.array(0.1, np.float32),
        z=np.array(100, np.uint16),
    )
    for each in proto.graph.node:
        each.domain = "com.microsoft"
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    (found,) = check_onnx(proto)
    assert found.eligible and found.axis == 1
    proto.graph.node[1].domain = "somewhere.else"
    assert check_onnx(proto) == ()


def test_bodies_are_looked_into() -> None:
    output = [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)]
    stored = [numpy_helper.from_array(sparse(8, 8, axis=0), "w")]
    inner = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["z"], "inner")], "a", [], output, stored)
    outer = helper.make_graph([helper.make_node("MatMul", ["x", "o"], ["z"], "outer")], "b", [], output)
    shadow = [helper.make_tensor_value_info("o", TensorProto.FLOAT, None)]
    given = helper.make_graph([helper.make_node("MatMul", ["x", "o"], ["z"], "shadowed")], "c", shadow, output)
    nodes = [node("If", "c", then_branch=inner, else_branch=outer), helper.make_node("Scan", ["s"], ["y2"], body=given)]
    found = check_onnx(model(nodes, o=dense(8, 8)))
    assert [(each.node, each.name, each.eligible) for each in found] == [("outer", "o", False), ("inner", "w", True)]


def test_local_functions_and_sparse_initializers() -> None:
    function = helper.make_function(
        "local", "linear", ["a", "b"], ["c"], [node("MatMul", "a b", "c")], [helper.make_opsetid("", 21)]
    )
    call = helper.make_node("linear", ["x", "w"], ["y"], "call", domain="local")
    proto = model([call], w=sparse(8, 8, axis=0))
    proto.functions.append(function)
    proto.opset_import.append(helper.make_opsetid("local", 1))
    (found,) = check_onnx(proto)
    assert found.eligible and found.op == "MatMul" and found.name == "w"
    values = numpy_helper.from_array(np.ones(3, np.float32), "w")
    indices = numpy_helper.from_array(np.array([0, 9, 18]), "i")
    proto = model([node("MatMul", "x w")])
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [8, 8]))
    (found,) = check_onnx(proto)
    assert found.eligible and found.zeros == 1 - 3 / 64


def test_what_cannot_be_computed_is_named() -> None:
    nodes = [node("Reshape", "w s", "r"), node("Conv", "x r")]
    with pytest.raises(InvalidModel, match=r"the_Reshape'.*Reshape in front of a weight cannot be computed"):
        check(nodes, w=dense(8, 8), s=np.array([7, 8, 1, 1]))
    random = [node("RandomNormal", "", "w", shape=[8, 8]), node("MatMul", "x w")]
    assert check_onnx(model(random)) == ()
