"""Pruning ONNX files: against masks made by NumPy, and against ONNX Runtime's results."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx_graphs import TWO_FOUR, dense, model, node
from torch import nn

from tamis.errors import ConfigError, InvalidModel, OutputError, SparsityError
from tamis.formats import NM, is_nm, magnitude_mask, parse_pattern
from tamis.sparsity import (
    OnnxPruneReport,
    SparsityLost,
    check_onnx,
    export_onnx,
    finalize,
    onnx_edit,
    prune,
    prune_onnx,
)

pytestmark = pytest.mark.usefixtures("exporter_registry")

MODULE = sys.modules[prune_onnx.__module__]  # the function has the module's name


def pruned(weight: NDArray[Any], axis: int, pattern: NM = TWO_FOUR) -> NDArray[Any]:
    """The reference: the mask chosen in float64."""
    return np.where(magnitude_mask(weight.astype(np.float64), pattern, axis), weight, np.zeros((), weight.dtype))


def initializers(path: Path) -> dict[str, NDArray[Any]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


def run(
    tmp_path: Path, nodes: list[onnx.NodeProto], constants: dict[str, NDArray[Any]], pattern: str = "2:4"
) -> tuple[OnnxPruneReport, dict[str, NDArray[Any]]]:
    """Prune a graph; what is not the weight of a layer keeps its bytes."""
    onnx.save(model(nodes, **constants), tmp_path / "m.onnx")
    report = prune_onnx(tmp_path / "m.onnx", tmp_path / "s.onnx", pattern)
    after = initializers(tmp_path / "s.onnx")
    for name in after.keys() - {layer.name for layer in report.pruned}:
        assert after[name].tobytes() == constants[name].tobytes() and after[name].dtype == constants[name].dtype
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "s.onnx"]
    return report, after


OPERATORS = [
    (node("Conv", "x w"), (8, 8, 3, 3), 1),
    (node("Conv", "x w b"), (8, 8, 5), 1),
    (node("Conv", "x w", group=2), (8, 8, 3, 3), 1),
    (node("ConvTranspose", "x w", group=2), (8, 12, 4, 4), 0),
    (node("Gemm", "x w b", transB=1), (8, 12), 1),
    (node("Gemm", "x w"), (8, 12), 0),
    (node("Gemm", "w x", transA=1), (8, 12), 0),
    (node("MatMul", "x w"), (3, 8, 12), 1),
    (node("MatMul", "w x"), (12, 8), 1),
    (node("MatMul", "x w"), (8,), 0),
]


@pytest.mark.parametrize(("operator", "shape", "axis"), OPERATORS)
def test_every_operator_is_pruned_along_its_reduction(
    operator: onnx.NodeProto, shape: tuple[int, ...], axis: int, tmp_path: Path
) -> None:
    weight = dense(*shape)
    report, after = run(tmp_path, [operator], {"w": weight, "b": dense(8)})
    np.testing.assert_array_equal(after["w"], pruned(weight, axis))
    (layer,) = report.pruned
    assert (layer.name, layer.op, layer.axis, layer.shape) == ("w", operator.op_type, axis, shape)
    kept = np.abs(pruned(weight, axis).astype(np.float64)).sum() / np.abs(weight.astype(np.float64)).sum()
    assert layer.kept == pytest.approx(kept) and layer.zeros == 0.5 and layer.changed
    assert "2:4 along axis" in str(report) and "of the magnitude kept" in str(report)


@pytest.mark.parametrize("text", ["1:4", "4:8", "1:2", "6:8", "3:16"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn])
def test_other_patterns_and_types(text: str, dtype: Any, tmp_path: Path) -> None:
    pattern = parse_pattern(text)
    assert isinstance(pattern, NM)
    weight = (dense(8, 32) * 4).astype(dtype)
    nodes = [node("Cast", "w", "c", to=TensorProto.FLOAT), node("Gemm", "x c", transB=1)]
    _, after = run(tmp_path, nodes, {"w": weight}, text)
    assert after["w"].dtype == weight.dtype
    np.testing.assert_array_equal(after["w"].astype(np.float64), pruned(weight, 1, pattern).astype(np.float64))


def test_half_precision_without_a_cast(tmp_path: Path) -> None:
    for dtype in (np.float16, ml_dtypes.bfloat16):
        weight = dense(8, 16).astype(dtype)
        proto = model([node("Gemm", "x w", transB=1)], w=weight)
        for value in (*proto.graph.input, *proto.graph.output):
            value.type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        prune_onnx(proto, tmp_path / "s.onnx")
        after = initializers(tmp_path / "s.onnx")["w"]
        assert after.dtype == dtype and is_nm(after, TWO_FOUR, 1)
        assert (after == pruned(weight, 1)).all()


def test_through_rearrangements(tmp_path: Path) -> None:
    weight = dense(4, 6, 16)
    nodes = [
        node("Transpose", "w", "t", perm=[2, 0, 1]),  # 16, 4, 6
        node("Reshape", "t shape", "r"),  # 16, 24
        node("Unsqueeze", "r zero", "u"),
        node("Squeeze", "u zero", "q"),
        node("Identity", "q", "i"),
        node("Transpose", "i", "v"),  # 24, 16
        node("Gemm", "x v", transB=1),
    ]
    shape = np.array([16, 24])
    _, after = run(tmp_path, nodes, {"w": weight, "shape": shape, "zero": np.array([0])})
    np.testing.assert_array_equal(after["w"], pruned(weight, 2))
    nodes = [node("Reshape", "w shape", "r"), node("Conv", "x r")]  # groups of four over two stored axes
    weight = dense(8, 9, 8)
    report, after = run(tmp_path, nodes, {"w": weight, "shape": np.array([8, 8, 3, 3])})
    np.testing.assert_array_equal(after["w"], pruned(weight.reshape(8, 8, 3, 3), 1).reshape(8, 9, 8))
    assert report.layers[0].shape == (8, 8, 3, 3)


@pytest.mark.parametrize("scheme", ["tensor", "channel", "block", "transposed"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int8, ml_dtypes.uint4, ml_dtypes.int4])
def test_quantised_weights_get_their_zero_point(scheme: str, dtype: Any, tmp_path: Path) -> None:
    info = ml_dtypes.iinfo(dtype)
    random = np.random.default_rng(0)
    codes = random.integers(int(info.min), int(info.max) + 1, (8, 16)).astype(dtype)
    middle = (int(info.min) + int(info.max) + 1) // 2
    zero: NDArray[Any] = np.array(middle)
    scale, options, spread = np.array(0.02, np.float32), {}, lambda values: values
    if scheme == "channel":
        zero = middle + random.integers(-3, 4, 8)
        scale, options = random.uniform(0.01, 0.1, 8).astype(np.float32), {"axis": 0}
        spread = lambda values: values[:, None]  # noqa: E731
    elif scheme == "block":
        zero = middle + random.integers(-3, 4, (8, 4))
        scale, options = random.uniform(0.01, 0.1, (8, 4)).astype(np.float32), {"axis": 1, "block_size": 4}
        spread = lambda values: np.repeat(values, 4, 1)  # noqa: E731
    nodes = [node("DequantizeLinear", "q scale zero", "w", **options), node("Gemm", "x w", transB=1)]
    axis = 1
    if scheme == "transposed":
        nodes.insert(1, node("Transpose", "w", "t"))
        nodes[2].input[1], axis = "t", 0
    constants = {"q": codes, "scale": scale, "zero": zero.astype(dtype)}
    report, after = run(tmp_path, nodes, constants)
    real = (codes.astype(np.float64) - spread(zero)) * spread(scale)
    left = (after["q"].astype(np.float64) - spread(zero)) * spread(scale)
    # equal magnitudes are decided on float32, which may order what float64 has equal
    keep = magnitude_mask(
        ((codes.astype(np.float32) - spread(zero)) * spread(scale)).astype(np.float32), TWO_FOUR, axis
    )
    np.testing.assert_array_equal(left, np.where(keep, real, 0))
    assert is_nm(left, TWO_FOUR, axis) and after["q"].dtype == dtype
    assert report.layers[0].kept == pytest.approx(np.abs(left).sum() / np.abs(real).sum(), rel=1e-4)
    assert check_onnx(tmp_path / "s.onnx")[0].eligible


def test_float_weights_that_are_quantised_in_the_graph(tmp_path: Path) -> None:
    nodes = [
        node("QuantizeLinear", "w scale zero", "q"),
        node("DequantizeLinear", "q scale zero", "d"),
        node("Conv", "x d"),
    ]
    constants = {"w": dense(8, 8, 3, 3), "scale": np.array(0.02, np.float32), "zero": np.array(128, np.uint8)}
    _, after = run(tmp_path, nodes, constants)
    quantised = np.clip(np.round(constants["w"] / np.float32(0.02)), -128, 127)
    keep = magnitude_mask(quantised, TWO_FOUR, 1)
    np.testing.assert_array_equal(after["w"], np.where(keep & (quantised != 0), constants["w"], 0))


def test_dequantised_by_hand(tmp_path: Path) -> None:
    codes = np.random.default_rng(0).integers(0, 256, (8, 16)).astype(np.uint8)
    nodes = [
        node("Cast", "q", "c", to=TensorProto.FLOAT),
        node("Sub", "c zero", "s"),
        node("Mul", "s scale", "w"),
        node("Gemm", "x w", transB=1),
    ]
    constants = {"q": codes, "zero": np.array(100, np.float32), "scale": np.full((8, 1), 0.5, np.float32)}
    _, after = run(tmp_path, nodes, constants)
    np.testing.assert_array_equal(after["q"], np.where(magnitude_mask(codes - 100.0, TWO_FOUR, 1), codes, 100))


def test_integer_operators(tmp_path: Path) -> None:
    codes = np.random.default_rng(0).integers(0, 256, (8, 16)).astype(np.uint8)
    zero = np.arange(120, 136, dtype=np.uint8)  # one for each column
    proto = model([node("MatMulInteger", "x w xz wz")], w=codes, xz=np.array(3, np.uint8), wz=zero)
    proto.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    proto.graph.output[0].type.tensor_type.elem_type = TensorProto.INT32
    (before,) = check_onnx(proto)
    assert (before.axis, before.groups < 0.1) == (0, True)
    prune_onnx(proto, tmp_path / "s.onnx")
    keep = magnitude_mask(codes - zero.astype(np.float64), TWO_FOUR, 0)
    np.testing.assert_array_equal(initializers(tmp_path / "s.onnx")["w"], np.where(keep, codes, zero))

    codes = np.random.default_rng(1).integers(0, 256, (8, 8, 3, 3)).astype(np.uint8)
    zero = np.arange(120, 128, dtype=np.uint8)  # one for each output channel
    constants = {"w": codes, "wz": zero, "z": np.array(7, np.uint8), "s": np.array(0.1, np.float32)}
    proto = model([node("QLinearConv", "x s z w ws wz s z")], ws=np.full(8, 0.1, np.float32), **constants)
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = TensorProto.UINT8
    prune_onnx(proto, tmp_path / "s.onnx")
    spread = zero[:, None, None, None].astype(np.float64)
    keep = magnitude_mask(codes - spread, TWO_FOUR, 1)
    np.testing.assert_array_equal(initializers(tmp_path / "s.onnx")["w"], np.where(keep, codes, spread))


def outputs(path: Path, x: NDArray[Any]) -> NDArray[Any]:
    options = onnxruntime.SessionOptions()  # without its fusions, of which some round differently
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": x})
    return np.asarray(y)


@pytest.mark.parametrize("masking", ["Mul", "Where"])
@pytest.mark.parametrize("quantised", [False, True])
def test_masks_in_the_graph_are_baked_in_and_taken_out(masking: str, quantised: bool, tmp_path: Path) -> None:
    weight = dense(12, 8)
    mask = magnitude_mask(weight, TWO_FOUR, 1)
    first = [node("DequantizeLinear", "q scale zero", "d")] if quantised else [node("Identity", "q", "d")]
    multiply = [node("Cast", "mask", "m", to=TensorProto.FLOAT), node("Mul", "d m", "w")]
    nodes = [*first, *(multiply if masking == "Mul" else [node("Where", "mask d nothing", "w")])]
    nodes += [node("Transpose", "w", "t"), node("MatMul", "x t")]
    codes = np.clip(np.round(weight / 0.02) + 128, 0, 255).astype(np.uint8)
    constants = {"q": codes if quantised else weight, "mask": mask, "nothing": np.array(0, np.float32)}
    constants |= {"scale": np.array(0.02, np.float32), "zero": np.array(128, np.uint8)} if quantised else {}
    report, after = run(tmp_path, nodes, constants)
    ops = [each.op_type for each in onnx.load(tmp_path / "s.onnx").graph.node]
    assert ops == [first[0].op_type, "Transpose", "MatMul"]
    assert "mask" not in after
    np.testing.assert_array_equal(after["q"], np.where(mask, constants["q"], 128 if quantised else 0))
    assert report.layers[0].kept == 1.0 and not report.layers[0].changed
    x = np.random.default_rng(1).standard_normal((3, 8)).astype(np.float32)
    np.testing.assert_array_equal(outputs(tmp_path / "m.onnx", x), outputs(tmp_path / "s.onnx", x))


def test_masks_without_the_pattern_and_masks_that_scale(tmp_path: Path) -> None:
    weight = dense(12, 8)
    mask = np.random.default_rng(2).choice([0.0, 0.5, 1.0], (12, 8)).astype(np.float32)
    report, after = run(
        tmp_path, [node("Mul", "w mask", "p"), node("Gemm", "x p", transB=1)], {"w": weight, "mask": mask}
    )
    keep = magnitude_mask(weight * mask, TWO_FOUR, 1) & (mask != 0)
    np.testing.assert_array_equal(after["w"], np.where(keep, weight, 0))
    assert "mask" in after and report.layers[0].changed  # it scales what is left
    assert check_onnx(tmp_path / "s.onnx")[0].eligible


def test_a_mask_that_something_else_reads_stays(tmp_path: Path) -> None:
    mask = magnitude_mask(dense(8, 8), TWO_FOUR, 1).astype(np.float32)
    nodes = [node("Mul", "w mask", "p"), node("Gemm", "x p", "h", transB=1), node("Add", "h mask")]
    _, after = run(tmp_path, nodes, {"w": dense(8, 8), "mask": mask})
    assert "mask" in after
    assert [each.op_type for each in onnx.load(tmp_path / "s.onnx").graph.node] == ["Gemm", "Add"]


def test_tied_weights_of_one_axis_are_pruned_once(tmp_path: Path) -> None:
    nodes = [node("Transpose", "w", "t"), node("Gemm", "x w", "h", transB=1), node("MatMul", "h t")]
    report, after = run(tmp_path, nodes, {"w": dense(8, 8)})
    np.testing.assert_array_equal(after["w"], pruned(dense(8, 8), 1))
    assert [layer.reason for layer in report.layers] == [None, None]


def test_tied_weights_of_two_axes_need_masks_that_agree(tmp_path: Path) -> None:
    nodes = [node("MatMul", "x w", "h"), node("Gemm", "h w", "g", transB=1), node("MatMul", "g v")]
    weight = dense(8, 8)
    report, after = run(tmp_path, nodes, {"w": weight, "v": dense(8, 8)})
    assert after["w"].tobytes() == weight.tobytes()
    assert len(report.skipped) == 2
    assert all("axis 0 of 'the_MatMul' and axis 1 of 'the_Gemm'" in str(layer.reason) for layer in report.skipped)
    # large diagonals in all blocks of four by four: what is kept along one axis is kept along the other
    weight = (weight + 100 * np.tile(np.kron(np.eye(2), np.ones((2, 2))), (2, 2))).astype(np.float32)
    report, after = run(tmp_path, nodes, {"w": weight, "v": dense(8, 8)})
    assert not report.skipped
    assert is_nm(after["w"], TWO_FOUR, 0) and is_nm(after["w"], TWO_FOUR, 1)
    np.testing.assert_array_equal(after["w"], pruned(weight, 0))


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (node("Gather", "w i", "e"), "also used by Gather node 'the_Gather'"),
        (node("Add", "x w", "e"), "also used by Add node 'the_Add'"),
        (node("Identity", "w", "e"), None),
        (node("Shape", "w", "e"), None),
    ],
)
def test_what_else_uses_a_weight(extra: onnx.NodeProto, said: str | None, tmp_path: Path) -> None:
    nodes = [extra, node("MatMul", "x w", "h"), node("MatMul", "h v")]
    proto = model(nodes, w=dense(8, 8), v=dense(8, 8))
    if extra.op_type == "Gather":
        proto.graph.input.append(helper.make_tensor_value_info("i", TensorProto.INT64, [1]))
    report = prune_onnx(proto, tmp_path / "s.onnx")
    first, second = report.layers
    assert second.reason is None and (first.reason is None if said is None else said in str(first.reason))
    proto.graph.output.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, None))
    first, second = prune_onnx(proto, tmp_path / "s.onnx").layers
    assert first.reason is not None and second.reason is None


def test_layers_by_name_and_those_that_share_with_them(tmp_path: Path) -> None:
    nodes = [
        node("MatMul", "x a.w", "h"),
        node("Gemm", "h a.w", "g"),
        node("Conv", "g b.w", "c"),
        node("MatMul", "c c.w"),
    ]
    proto = model(nodes, **{"a.w": dense(8, 8), "b.w": dense(8, 3, 1, 1), "c.w": dense(8, 8)})
    reasons = lambda **chosen: [layer.reason for layer in prune_onnx(proto, tmp_path / "s.onnx", **chosen).layers]  # noqa: E731
    misfit = "3 inputs to reduce over, not a multiple of 4"
    assert reasons() == [None, None, misfit, None]
    assert reasons(only=["a.*"]) == [None, None, "not chosen", "not chosen"]
    assert reasons(exclude=["c.w"]) == [None, None, misfit, "excluded"]
    shared = "shares its weight with node 'the_Gemm': excluded"
    assert reasons(exclude=["the_Gemm"]) == [shared, "excluded", misfit, None]
    for option in ("only", "exclude"):
        with pytest.raises(ConfigError, match=rf"{option} 'd\.\*' matches no layer.*a\.w"):
            reasons(**{option: ["d.*"]})
    with pytest.raises(
        SparsityError, match=r"nothing can be pruned to 2:4: 3 of 4 layers: not chosen; 1 of 4.*3 inputs"
    ):
        reasons(only=["b.w"])


def test_external_data_in_and_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    constants = {"w": dense(64, 64), "b": dense(64), "v": dense(64, 64), "e": np.arange(4096, dtype=np.int64)}
    nodes = [node("Gemm", "x w b", "h", transB=1), node("Gemm", "h v", "g"), node("Gather", "e i", "k")]
    proto = model(nodes, **constants)
    proto.graph.input.append(helper.make_tensor_value_info("i", TensorProto.INT64, [1]))
    proto.graph.output[0].name = "g"
    given, source, target = onnx.ModelProto(), tmp_path / "m.onnx", tmp_path / "s.onnx"
    given.CopyFrom(proto)
    onnx.save(proto, source, save_as_external_data=True, all_tensors_to_one_file=False, size_threshold=0)
    names = {path.name for path in tmp_path.iterdir()}
    prune_onnx(source, target)
    assert {path.name for path in tmp_path.iterdir()} == names | {"s.onnx", "s.onnx.data"}
    after = initializers(target)
    for name in ("b", "e"):
        assert after[name].tobytes() == constants[name].tobytes()
    np.testing.assert_array_equal(after["w"], pruned(constants["w"], 1))
    np.testing.assert_array_equal(after["v"], pruned(constants["v"], 0))
    # a large model is split, whatever it was; one that is not has one file
    other = tmp_path / "other"
    other.mkdir()
    prune_onnx(given, other / "s.onnx")
    assert [path.name for path in other.iterdir()] == ["s.onnx"]
    monkeypatch.setattr(onnx_edit, "ONE_FILE_BYTES", 10_000)
    prune_onnx(given, other / "s.onnx")
    assert sorted(path.name for path in other.iterdir()) == ["s.onnx", "s.onnx.data"]
    for name, value in initializers(other / "s.onnx").items():
        assert value.tobytes() == after[name].tobytes()
    np.testing.assert_array_equal(numpy_helper.to_array(given.graph.initializer[0]), constants["w"])  # as it was


def test_again_changes_nothing(tmp_path: Path) -> None:
    weight = np.array([[-0.0, 1, 0, 2], [0, 0, 0, 0]], np.float32)
    onnx.save(
        model([node("Gemm", "x w", "h", transB=1), node("MatMul", "h v")], w=weight, v=dense(4, 5)), tmp_path / "m"
    )
    prune_onnx(tmp_path / "m", tmp_path / "a")
    report = prune_onnx(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert initializers(tmp_path / "a")["w"].tobytes() == weight.tobytes()
    assert [(layer.kept, layer.changed) for layer in report.layers] == [(1.0, False), (1.0, False)]


def test_the_input_is_replaced_only_if_told(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(model([node("MatMul", "x w")], w=dense(8, 8)), path)
    before = path.read_bytes()
    (tmp_path / "link").symlink_to(path)
    for target in (path, tmp_path / "link"):
        with pytest.raises(ConfigError, match="would replace"):
            prune_onnx(path, target)
    assert path.read_bytes() == before
    prune_onnx(path, path, overwrite=True)
    np.testing.assert_array_equal(initializers(path)["w"], pruned(dense(8, 8), 0))
    large = model([node("MatMul", "x w")], w=dense(32, 32))
    onnx.save(large, path, save_as_external_data=True, location="m.onnx.data", size_threshold=0)
    prune_onnx(path, path, overwrite=True)  # the data that is read is the data that is replaced
    np.testing.assert_array_equal(initializers(path)["w"], pruned(dense(32, 32), 0))


def test_failures_leave_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = model([node("MatMul", "x w")], w=dense(8, 8))
    target = tmp_path / "s.onnx"
    bad = dense(8, 8)
    bad[3, 3] = np.nan
    with pytest.raises(SparsityError, match=r"the_MatMul'.*'w' holds NaN"):
        prune_onnx(model([node("MatMul", "x w")], w=bad), target)
    with pytest.raises(SparsityError, match="no layer with a constant weight"):
        prune_onnx(model([node("MatMul", "x x")]), target)
    with pytest.raises(SparsityError, match=r"nothing can be pruned to 2:4.*not a multiple of 4"):
        prune_onnx(model([node("MatMul", "x w")], w=dense(6, 8)), target)
    with pytest.raises(OutputError, match="folder does not exist"):
        prune_onnx(good, tmp_path / "absent" / "s.onnx")
    with pytest.raises(OutputError, match="is a directory"):
        prune_onnx(good, tmp_path)
    with pytest.raises(InvalidModel, match="does not exist"):
        prune_onnx(tmp_path / "absent.onnx", target)
    monkeypatch.setattr("tamis.sparsity.prune_onnx_group.store", lambda tensor, value: None)
    with pytest.raises(SparsityLost, match="pruned, but in the file 'w'"):
        prune_onnx(good, target)
    monkeypatch.undo()

    def write_nonsense(proto: onnx.ModelProto, *rest: Any, **options: Any) -> None:
        proto.graph.node[0].attribute.append(helper.make_attribute("nonsense", 1))
        onnx_edit.write(proto, *rest, **options)

    monkeypatch.setattr(MODULE, "write", write_nonsense)
    with pytest.raises(SparsityError, match=r"ONNX's checker refuses what was made.*nonsense"):
        prune_onnx(good, target)
    monkeypatch.setattr(MODULE, "write", lambda *_, **__: (tmp_path / "no" / "file").write_text(""))
    with pytest.raises(OutputError, match=r"cannot write .*s\.onnx"):
        prune_onnx(good, target)
    assert list(tmp_path.iterdir()) == []


def test_what_the_checker_has_against_the_input_is_let_pass(tmp_path: Path) -> None:
    proto = model([node("MatMul", "x w")], w=dense(8, 8))
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    for given in (proto, tmp_path / "m.onnx"):
        onnx.save(proto, tmp_path / "m.onnx")
        prune_onnx(given, tmp_path / "s.onnx")
        np.testing.assert_array_equal(initializers(tmp_path / "s.onnx")["w"], pruned(dense(8, 8), 0))


def test_infinity_is_the_largest(tmp_path: Path) -> None:
    weight = np.array([[np.inf, 1, 2, -np.inf]], np.float32)
    report, after = run(tmp_path, [node("Gemm", "x w", transB=1)], {"w": weight})
    np.testing.assert_array_equal(after["w"], [[np.inf, 0, 0, -np.inf]])
    assert report.layers[0].kept is None


def test_weights_in_bodies(tmp_path: Path) -> None:
    output = [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)]
    bodies = {}
    for name in ("then_branch", "else_branch"):  # both call their weight w; the outer one is o
        stored = [numpy_helper.from_array(dense(8, 8) * (2 if name == "then_branch" else 3), "w")]
        nodes = [helper.make_node("MatMul", ["x", "w"], ["h"], name), helper.make_node("MatMul", ["h", "o"], ["z"])]
        bodies[name] = helper.make_graph(nodes, name, [], output, stored)
    proto = model([node("If", "c", **bodies)], o=dense(8, 8))
    proto.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    report = prune_onnx(proto, tmp_path / "s.onnx")
    assert [(layer.name, layer.node) for layer in report.pruned] == [
        *(("w", "then_branch"), ("o", "")),
        *(("w", "else_branch"), ("o", "")),
    ] or len(report.pruned) == 4
    after = onnx.load(tmp_path / "s.onnx")
    np.testing.assert_array_equal(numpy_helper.to_array(after.graph.initializer[0]), pruned(dense(8, 8), 0))
    for attribute in after.graph.node[0].attribute:
        factor = 2 if attribute.name == "then_branch" else 3
        np.testing.assert_array_equal(
            numpy_helper.to_array(attribute.g.initializer[0]), pruned(dense(8, 8) * factor, 0)
        )


def test_what_pruning_cannot_see_through_says_so(tmp_path: Path) -> None:
    padded = [node("Pad", "a pads", "w"), node("MatMul", "x w", "h"), node("MatMul", "h c")]
    report, after = run(tmp_path, padded, {"a": dense(6, 8), "pads": np.array([2, 0, 0, 0]), "c": dense(8, 8)})
    assert "passes Pad node 'the_Pad'" in str(report.layers[0].reason)
    products = [node("MatMul", "a b", "w"), node("MatMul", "x w", "h"), node("MatMul", "h c")]
    report, after = run(tmp_path, products, {"a": dense(8, 8), "b": dense(8, 8), "c": dense(8, 8)})
    assert "computed by MatMul node 'the_MatMul'" in str(report.layers[0].reason)
    shifted = [node("Add", "a one", "w"), node("MatMul", "x w", "h"), node("MatMul", "h c")]
    report, after = run(tmp_path, shifted, {"a": dense(8, 8), "one": dense(1, 8), "c": dense(8, 8)})
    assert "computed by Add node 'the_Add'" in str(report.layers[0].reason)
    assert after["a"].tobytes() == dense(8, 8).tobytes()


def test_constant_nodes_hold_weights_too(tmp_path: Path) -> None:
    constant = helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(dense(8, 12)))
    prune_onnx(model([constant, node("MatMul", "x w")]), tmp_path / "s.onnx")
    stored = onnx.load(tmp_path / "s.onnx").graph.node[0].attribute[0].t
    np.testing.assert_array_equal(numpy_helper.to_array(stored), pruned(dense(8, 12), 0))


def test_agrees_with_pruning_in_torch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, groups=2),
        nn.Flatten(2),
        nn.Linear(16, 20),
        nn.Linear(20, 8),
    ).eval()
    image = torch.randn(2, 3, 8, 8)
    names = {"input_names": ["x"], "output_names": ["y"]}
    export_onnx(network, (image,), tmp_path / "dense.onnx", **names)
    report = prune_onnx(tmp_path / "dense.onnx", tmp_path / "here.onnx")
    prune(network)
    finalize(network)
    export_onnx(network, (image,), tmp_path / "there.onnx", **names)
    here, there = (outputs(tmp_path / name, image.numpy()) for name in ("here.onnx", "there.onnx"))
    np.testing.assert_allclose(here, there, atol=1e-6)
    assert [layer.reason is None for layer in report.layers] == [False, True, True, True]


def test_progress_is_told(tmp_path: Path) -> None:
    calls: list[tuple[Any, ...]] = []
    prune_onnx(
        model([node("MatMul", "x w")], w=dense(8, 8)), tmp_path / "s.onnx", progress=lambda *call: calls.append(call)
    )
    assert calls == [("check", 0, 1, "the_MatMul"), ("check", 1, 1, ""), ("prune", 0, 1, "w")]
