"""Operators that ONNX's own cases do not cover well, against ONNX's reference implementation."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from tamis.compiler.importer import import_onnx
from tamis.compiler.ir.evaluate import run
from tamis.compiler.ir.verify import verify

RANDOM = np.random.default_rng(3)


def check(
    op_type: str,
    inputs: list[np.ndarray],
    constants: list[np.ndarray] | None = None,
    *,
    opset: int = 21,
    **attributes: object,
) -> None:
    """One node with run-time inputs first, then constants."""
    feeds = {f"x{i}": array for i, array in enumerate(inputs)}
    fixed = {f"c{i}": np.asarray(array) for i, array in enumerate(constants or [])}
    graph = helper.make_graph(
        [helper.make_node(op_type, [*feeds, *fixed], ["y"], **attributes)],
        "one",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
            for name, a in feeds.items()
        ],
        [onnx.ValueInfoProto(name="y")],
        [numpy_helper.from_array(array, name) for name, array in fixed.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    (expected,) = ReferenceEvaluator(model).run(None, feeds)
    imported = import_onnx(model)
    verify(imported)
    got = run(imported, feeds)["y"]
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def f32(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("kind", ["Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "PRelu"])
def test_binary_with_the_constant_on_either_side(kind: str) -> None:
    positive = np.abs(f32(2, 3, 4)) + 0.1
    check(kind, [positive], [f32(4)])
    if kind != "PRelu":
        model_inputs = [np.abs(f32(3, 1)) + 0.1, positive]
        check(kind, model_inputs)


@pytest.mark.parametrize("kind", ["Mod", "Div"])
@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.int8])
def test_integer_division(kind: str, dtype: type[np.generic]) -> None:
    """Quotients truncate toward zero; Mod has the sign of the divisor, fmod that of the dividend."""
    a = np.asarray([-7, -6, -1, 0, 1, 6, 7], dtype)
    for b in (-3, -1, 1, 3):
        x, y = a, np.full_like(a, b)
        got = run_pair(kind, x, y)
        quotient = np.trunc(x.astype(np.float64) / b)
        expected = quotient if kind == "Div" else x - b * np.floor(x / b)
        np.testing.assert_array_equal(got, expected.astype(dtype))
        if kind == "Mod":
            np.testing.assert_array_equal(run_pair(kind, x, y, fmod=1), np.fmod(x, y))


def run_pair(kind: str, a: np.ndarray, b: np.ndarray, **attributes: object) -> np.ndarray:
    element = helper.np_dtype_to_tensor_dtype(a.dtype)
    graph = helper.make_graph(
        [helper.make_node(kind, ["a", "b"], ["y"], **attributes)],
        "pair",
        [helper.make_tensor_value_info(name, element, a.shape) for name in "ab"],
        [onnx.ValueInfoProto(name="y")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return run(import_onnx(model), {"a": a, "b": b})["y"]


def test_slices_of_every_kind() -> None:
    x = np.arange(10, dtype=np.float32)
    for start in (-20, -10, -3, 0, 3, 9, 20):
        for stop in (-20, -10, -3, 0, 3, 9, 20):
            for step in (-3, -1, 1, 2):
                if range(*slice(start, stop, step).indices(10)):
                    check("Slice", [x], [np.asarray([v]) for v in (start, stop, 0, step)])


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
def test_pads(mode: str) -> None:
    x = f32(2, 3, 4)
    check("Pad", [x], [np.asarray([0, 1, 2, 1, 0, 3])], mode=mode)
    check("Pad", [x], [np.asarray([1, 2]), np.asarray(0.0, np.float32), np.asarray([-1])], mode=mode)


def test_negative_pads_crop() -> None:
    x = f32(4, 5)
    graph = helper.make_graph(
        [helper.make_node("Pad", ["x", "p"], ["y"])],
        "crop",
        [helper.make_tensor_value_info("x", 1, [4, 5])],
        [onnx.ValueInfoProto(name="y")],
        [numpy_helper.from_array(np.asarray([-1, 1, 0, -2]), "p")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    expected = np.pad(x[1:, :-2], ((0, 0), (1, 0)))
    np.testing.assert_array_equal(run(import_onnx(model), {"x": x})["y"], expected)


def test_one_hot_with_odd_indices() -> None:
    indices = np.asarray([[-4, -3, -1], [0, 2, 3]])
    for axis in (-1, 0, 1, 2):
        check("OneHot", [indices], [np.asarray(3), np.asarray([-1.5, 2.5], np.float32)], axis=axis)


@pytest.mark.parametrize("p", [1, 2, 3])
def test_lp_pools(p: int) -> None:
    x = f32(1, 2, 6, 5)
    got = run_one("GlobalLpPool", x, p=p)
    expected = (np.abs(x) ** p).sum(axis=(2, 3), keepdims=True) ** (1 / p)
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    got = run_one("LpPool", x, p=p, kernel_shape=[2, 2], strides=[2, 2])
    windows = np.lib.stride_tricks.sliding_window_view(np.abs(x) ** p, (2, 2), (2, 3))[:, :, ::2, ::2]
    np.testing.assert_allclose(got, windows.sum(axis=(4, 5)) ** (1 / p), rtol=1e-5)


def run_one(kind: str, x: np.ndarray, *, opset: int = 17, domain: str = "", **attributes: object) -> np.ndarray:
    graph = helper.make_graph(
        [helper.make_node(kind, ["x"], ["y"], domain=domain, **attributes)],
        "one",
        [helper.make_tensor_value_info("x", helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)],
        [onnx.ValueInfoProto(name="y")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return run(import_onnx(model), {"x": x})["y"]


def test_not() -> None:
    x = np.asarray([True, False])
    assert run_one("Not", x).tolist() == [False, True]


def test_root_mean_square_normalisation_as_onnx_runtime_writes_it() -> None:
    x, scale = f32(2, 3, 8), f32(8)
    graph = helper.make_graph(
        [helper.make_node("SimplifiedLayerNormalization", ["x", "s"], ["y"], epsilon=1e-6)],
        "rms",
        [helper.make_tensor_value_info("x", 1, x.shape)],
        [onnx.ValueInfoProto(name="y")],
        [numpy_helper.from_array(scale, "s")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    expected = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * scale
    np.testing.assert_allclose(run(import_onnx(model), {"x": x})["y"], expected, rtol=1e-5)


def test_clip_with_huge_integer_bounds() -> None:
    x = np.asarray([-(2**62), -1, 0, 2**62])
    low, high = np.asarray(-(2**60) - 1), np.asarray(2**60 + 1)
    check("Clip", [x], [low, high])


def test_not_a_number_passes_through() -> None:
    """A NaN must never be turned into a number by an activation or a pooling."""
    x = np.asarray([[[np.nan, 1.0, -1.0, 0.5]]], np.float32)
    for kind in (
        "Relu",
        "LeakyRelu",
        "Elu",
        "Sigmoid",
        "Tanh",
        "HardSigmoid",
        "HardSwish",
        "Softplus",
        "Gelu",
        "Mish",
    ):
        opset = 20 if kind == "Gelu" else 18
        result = run_one(kind, x, opset=opset)
        assert np.isnan(result[0, 0, 0]) and np.isfinite(result[0, 0, 1:]).all(), kind
    assert np.isnan(run_one("MaxPool", x, kernel_shape=[2])[0, 0, 0])
    assert np.isnan(run_one("ReduceMax", x, opset=13)).all()
    assert np.isnan(run_one("Softmax", x)).all()


def test_top_k_among_equals_takes_the_first() -> None:
    x = np.asarray([[3, 1, 3, 2, 3, 1]], np.float32)
    for largest in (0, 1):
        graph = helper.make_graph(
            [helper.make_node("TopK", ["x", "k"], ["v", "i"], largest=largest)],
            "top",
            [helper.make_tensor_value_info("x", 1, x.shape)],
            [onnx.ValueInfoProto(name="v"), onnx.ValueInfoProto(name="i")],
            [numpy_helper.from_array(np.asarray([3]), "k")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        result = run(import_onnx(model), {"x": x})
        assert result["i"].tolist() == ([[0, 2, 4]] if largest else [[1, 5, 3]])
