"""Regions that OpenVINO runs on the device's own memory."""

from __future__ import annotations

import builtins
import gc
import weakref
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from tamis.compiler.ir.evaluate import run
from tamis.compiler.ir.graph import Graph, Node, TensorType
from tamis.compiler.ir.ops import Cast, Conv, Elementwise, Linear, Pointwise, Pool, Reshape
from tamis.compiler.tactics.lowering import lower_to_onnx, to_openvino
from tamis.devices.base import BoundShape
from tamis.devices.cpu import CpuDevice, openvino
from tamis.engine.plan import Format, Step
from tamis.errors import DeviceError, MissingLibrary
from tamis.formats.dtype import DType

pytest.importorskip("openvino")
DEVICE = CpuDevice(threads=2)
RELU = Pointwise("relu")


def network() -> Graph:
    """Two convolutions and a linear layer from an image, one more input, and three outputs."""
    random = np.random.default_rng(0)
    shapes = {
        "x": (2, 3, 8, 8), "other": (2, 4), "w1": (8, 3, 3, 3), "b1": (8,), "w2": (8, 8, 3, 3), "w3": (4, 8),
        "a": (2, 8, 8, 8), "b": (2, 8, 8, 8), "pooled": (2, 8, 1, 1), "flat": (2, 8),
        "y": (2, 4), "big": (2, 4),
    }  # fmt: skip
    types = {name: TensorType(shape) for name, shape in shapes.items()}
    types["count"] = TensorType((2, 4), DType.INT64)
    constants = {
        name: (random.standard_normal(shapes[name]) / 3).astype(np.float32) for name in ("w1", "b1", "w2", "w3")
    }
    square = {"strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1)}
    nodes = (
        Node("conv1", Conv(**square, bias=True, epilogue=(RELU,)), ("x", "w1", "b1"), ("a",)),
        Node("conv2", Conv(**square, epilogue=(Pointwise("add", operand=2), RELU)), ("a", "w2", "a"), ("b",)),
        Node("pool", Pool("average", (8, 8), (1, 1), (0,) * 4, (1, 1)), ("b",), ("pooled",)),
        Node("flatten", Reshape((2, 8)), ("pooled",), ("flat",)),
        Node("head", Linear(epilogue=(Pointwise("mul", operand=2),)), ("flat", "w3", "other"), ("y",)),
        Node("compare", Elementwise((Pointwise("greater", operand=1),)), ("y", "other"), ("big",)),
        Node("count", Cast(DType.INT64), ("big",), ("count",)),
    )
    types["big"] = TensorType((2, 4), DType.BOOL)
    return Graph("small", ("x", "other"), ("y", "a", "count"), nodes, types, constants)


class Bound:
    """The network bound as one region, with its slots."""

    def __init__(self, precision: str = "float32", border: DType = DType.FLOAT32, preallocated: bool = True) -> None:
        graph = network()
        xml, weights = to_openvino(lower_to_onnx(graph, graph.nodes, graph.inputs, graph.outputs))
        constants = {
            "xml": DEVICE.upload(np.frombuffer(xml, np.uint8)),
            "bin": DEVICE.upload(np.frombuffer(weights, np.uint8)),
        }
        step = Step("region", "openvino.region", graph.inputs, graph.outputs, ("xml", "bin"),
                    {"precision": precision})  # fmt: skip
        random = np.random.default_rng(1)
        self.feeds = {name: random.standard_normal(graph.types[name].shape).astype(np.float32) for name in graph.inputs}
        self.slots: list[Any] = []
        inputs, outputs = [], []
        for name in graph.inputs:
            stored = self.feeds[name].astype(border.numpy)
            self.feeds[name] = stored.astype(np.float32)
            inputs.append(BoundShape(len(self.slots), stored.shape, Format(border)))
            self.slots.append(DEVICE.upload(stored))
        for name in graph.outputs:
            type_ = graph.types[name]
            format = Format(border if type_.dtype == DType.FLOAT32 else type_.dtype)
            outputs.append(BoundShape(len(self.slots), type_.shape, format, preallocated))
            empty = DEVICE.empty(type_.shape, format)
            empty.fill_(float("nan") if empty.is_floating_point() else 99)
            self.slots.append(empty if preallocated else None)
        self.given = list(self.slots)
        self.runner = DEVICE.bind(step, constants, inputs, outputs)
        self.graph, self.outputs = graph, outputs

    def check(self, relative: float) -> None:
        expected = run(self.graph, self.feeds)
        for bound, name in zip(self.outputs, self.graph.outputs, strict=True):
            got = DEVICE.download(self.slots[bound.slot])
            assert DType.of(got) == bound.format.dtype
            if expected[name].dtype == np.int64:
                np.testing.assert_array_equal(got, expected[name])
                continue
            scale = float(np.abs(expected[name]).max())
            error = float(np.abs(got.astype(np.float32) - expected[name]).max()) / scale
            assert error <= relative


@pytest.mark.parametrize("preallocated", [True, False])
@pytest.mark.parametrize(("precision", "relative"), [("float32", 1e-5), ("bfloat16", 0.03)])
@pytest.mark.parametrize("border", [DType.FLOAT32, DType.BFLOAT16])
def test_agrees_with_the_graph(precision: str, relative: float, border: DType, preallocated: bool) -> None:
    bound = Bound(precision, border, preallocated)
    before = [DEVICE.download(tensor).tobytes() for tensor in bound.slots[:2]]
    with torch.inference_mode():
        bound.runner(bound.slots)
        bound.runner(bound.slots)
    bound.check(relative if border == DType.FLOAT32 else max(relative, 0.01))
    assert [DEVICE.download(tensor).tobytes() for tensor in bound.slots[:2]] == before
    if preallocated:
        assert all(a is b for a, b in zip(bound.given, bound.slots, strict=True))


def test_follows_tensors_that_move_or_change() -> None:
    bound = Bound()
    bound.runner(bound.slots)
    for turn in range(3):
        bound.feeds["x"] = np.random.default_rng(turn).standard_normal((2, 3, 8, 8)).astype(np.float32)
        if turn == 1:
            bound.slots[0].copy_(torch.from_numpy(bound.feeds["x"]))
        else:
            bound.slots[0] = DEVICE.upload(bound.feeds["x"])
            bound.slots[2] = torch.full_like(bound.slots[2], float("nan"))
        bound.runner(bound.slots)
        bound.check(1e-5)


def test_lets_go_of_inputs_and_keeps_its_weights() -> None:
    bound = Bound()
    bound.runner(bound.slots)
    gone = weakref.ref(bound.slots[0])
    bound.slots[0] = DEVICE.upload(bound.feeds["x"])
    bound.given = []
    gc.collect()
    assert gone() is None
    bound.runner(bound.slots)
    bound.check(1e-5)


def test_strided_tensors_are_refused() -> None:
    bound = Bound()
    bound.slots[0] = bound.slots[0].transpose(2, 3)
    with pytest.raises(DeviceError, match="strided"):
        bound.runner(bound.slots)
    step = Step("region", "openvino.region", ("x",), ("y",), ("xml", "bin"), {"precision": "float32"})
    shape = BoundShape(0, (1, 3, 4, 4), Format(layout="channels_last"))
    with pytest.raises(DeviceError, match="layer 'region': OpenVINO is given row-major"):
        DEVICE.bind(step, {}, [shape], [])


def test_profile_names_layers() -> None:
    graph = network()
    xml, weights = to_openvino(lower_to_onnx(graph, graph.nodes, graph.inputs, graph.outputs))
    feeds = [np.ones(graph.types[name].shape, np.float32) for name in graph.inputs]
    times = openvino.profile_region(xml, np.frombuffer(weights, np.uint8), DType.FLOAT32, 2, feeds)
    layers = {node.name for node in graph.nodes}
    assert set(times) <= layers
    assert {"conv1", "conv2", "head"} <= set(times)
    assert all(time >= 0 for time in times.values())
    assert times["conv1"] > 0 and times["conv2"] > 0


def test_a_missing_library_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without(name: str, *arguments: Any, **more: Any) -> Any:
        if name == "openvino":
            raise ImportError(name)
        return original(name, *arguments, **more)

    openvino._library.cache_clear()
    monkeypatch.setattr(builtins, "__import__", without)
    try:
        with pytest.raises(MissingLibrary, match="pip install openvino"):
            openvino._library()
    finally:
        openvino._library.cache_clear()


def test_unknown_kernels() -> None:
    with pytest.raises(DeviceError, match=r"layer 'r': kernel openvino\.other is unknown"):
        DEVICE.bind(Step("r", "openvino.other", (), ()), {}, [], [])


def attention_and_tail(tail: list[onnx.NodeProto]) -> Any:
    """Attention of one head, then some nodes that read its result ``a`` and write ``y``, as OpenVINO's model."""
    nodes = [
        onnx.helper.make_node("MatMul", ["q", "k"], ["scores"]),
        onnx.helper.make_node("Softmax", ["scores"], ["p"], axis=-1),
        onnx.helper.make_node("MatMul", ["p", "q"], ["a"]),
        *tail,
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [onnx.helper.make_tensor_value_info(n, 1, s) for n, s in (("q", [3, 5, 16]), ("k", [3, 16, 5]))],
        [onnx.helper.make_tensor_value_info("y", 1, None)],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=9)
    return openvino._core().read_model(model.SerializeToString())


def test_a_model_that_breaks_the_code_generator_compiles() -> None:
    """Without the setting this ends the process: a difference behind attention that is read twice."""
    make = onnx.helper.make_node
    model = attention_and_tail([make("Sub", ["a", "q"], ["d"]), make("Mul", ["d", "d"], ["y"])])
    settings = openvino._settings(model, "float32", 1, alone=False)
    assert settings["SNIPPETS_MODE"] == "DISABLE"
    openvino._core().compile_model(model, "CPU", settings)
    usual = attention_and_tail([make("Transpose", ["a"], ["t"], perm=[1, 0, 2]), make("Relu", ["t"], ["y"])])
    assert "SNIPPETS_MODE" not in openvino._settings(usual, "float32", 1, alone=False)
