"""Conversions that change nothing in memory cost nothing and make no step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from paper_gpu import H200, PaperGpu, make_up_measurements
from tamis.compiler import BuildConfig, build
from tamis.compiler.planner.conversions import same_memory
from tamis.engine.check import check_plan
from tamis.engine.plan import Format
from tamis.formats.dtype import DType
from tamis.runtime import Session

ROWS, IMAGE = Format(DType.FLOAT32), Format(DType.FLOAT32, "channels_last")


@pytest.mark.parametrize(
    ("shape", "source", "target", "expected"),
    [
        ((2, 8, 1, 1), ROWS, IMAGE, True),
        ((2, 1, 5, 7), IMAGE, ROWS, True),
        ((2, 8, 1, 2), ROWS, IMAGE, False),
        ((2, 8, 1, 1), ROWS, Format(DType.FLOAT16, "channels_last"), False),
        ((2, 8), ROWS, ROWS, True),
    ],
)
def test_same_memory(shape: tuple[int, ...], source: Format, target: Format, expected: bool) -> None:
    assert same_memory(shape, source, target) is expected
    if expected and len(shape) == 4:
        values = np.arange(np.prod(shape)).reshape(shape)
        np.testing.assert_array_equal(values.ravel(), values.transpose(0, 2, 3, 1).ravel())


def pooled_classifier(path: Path) -> Path:
    random = np.random.default_rng(0)
    weights = {"c": random.standard_normal((16, 8, 3, 3)), "w": random.standard_normal((10, 16))}
    nodes = [
        helper.make_node("Conv", ["image", "c"], ["conv"], "conv", pads=[1] * 4),
        helper.make_node("GlobalAveragePool", ["conv"], ["mean"], "mean"),
        helper.make_node("Flatten", ["mean"], ["flat"], "flat"),
        helper.make_node("Gemm", ["flat", "w"], ["scores"], "last", transB=1),
    ]
    graph = helper.make_graph(
        nodes, "pooled", [helper.make_tensor_value_info("image", TensorProto.FLOAT, [2, 8, 6, 6])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [2, 10])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def test_a_mean_over_pixels_needs_no_conversion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = pooled_classifier(tmp_path / "pooled.onnx")
    image = np.random.default_rng(1).standard_normal((2, 8, 6, 6)).astype(np.float32)
    on_cpu = build(path, BuildConfig(exclude_tactics=("openvino",), repetitions=3))
    scores = Session(on_cpu).run({"image": image})["scores"]
    weights = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    padded = np.pad(image, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3)).mean(axis=(2, 3))
    expected = np.einsum("ncrs,kcrs->nk", windows, weights["c"]) @ weights["w"].T
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-4)
    make_up_measurements(monkeypatch)
    monkeypatch.setattr("tamis.compiler.open_device", lambda kind: PaperGpu(H200))
    plan = build(path, BuildConfig(device="cuda", precisions=(DType.FLOAT16,))).plan
    check_plan(plan)
    means = [b for b in plan.buffers if b.name.startswith("mean")]
    assert any(b.place == "alias" for b in means), [(b.name, b.place) for b in means]
    assert not [s.name for s in plan.steps if s.name.startswith("convert mean") and s.precision == DType.FLOAT16]
