"""Small ONNX models for tests of the whole way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def two_of_four(weight: np.ndarray, axis: int) -> np.ndarray:
    """The weight with the two smallest of every four along ``axis`` set to zero; the last group may be shorter."""
    moved = np.moveaxis(weight, axis, -1)
    size = moved.shape[-1]
    moved = np.pad(moved, ((0, 0),) * (moved.ndim - 1) + ((0, -size % 4),))
    groups = moved.reshape(-1, 4).copy()
    np.put_along_axis(groups, np.argsort(np.abs(groups), axis=1)[:, :2], 0.0, axis=1)
    return np.ascontiguousarray(np.moveaxis(groups.reshape(moved.shape)[..., :size], -1, axis))


def save_cnn(path: Path, *, batch: int | str = 2) -> Path:
    """image [batch,4,8,8] -> conv -> relu -> pool -> linear (2:4) -> relu -> linear -> scores [batch,10]."""
    random = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return (random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    weights = {
        "conv.weight": draw(8, 4, 3, 3),
        "hidden.weight": two_of_four(draw(64, 128), 1),
        "hidden.bias": draw(64),
        "scores.weight": draw(10, 64),
        "scores.bias": draw(10),
    }
    nodes = [
        helper.make_node("Conv", ["image", "conv.weight"], ["conv"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["conv"], ["conv.relu"], "conv_relu"),
        helper.make_node("MaxPool", ["conv.relu"], ["pool"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["pool"], ["flat"], "flat"),
        helper.make_node("Gemm", ["flat", "hidden.weight", "hidden.bias"], ["hidden"], "hidden", transB=1),
        helper.make_node("Relu", ["hidden"], ["hidden.relu"], "hidden_relu"),
        helper.make_node("Gemm", ["hidden.relu", "scores.weight", "scores.bias"], ["scores"], "last", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "cnn",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 4, 8, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, 10])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def save_mlp(path: Path, *, width: int = 2048, layers: int = 2, scale: float = 1.0, rows: int = 1) -> Path:
    """x [rows,width] -> linear layers of 2:4 weights -> y; large enough that 2:4 weights come faster from memory."""
    random = np.random.default_rng(0)
    weights = [two_of_four(random.standard_normal((width, width)).astype(np.float32), 1) for _ in range(layers)]
    names = ["x", *(f"h{i}" for i in range(1, layers)), "y"]
    nodes = [
        helper.make_node("Gemm", [names[i], f"w{i}"], [names[i + 1]], f"linear{i}", transB=1) for i in range(layers)
    ]
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [rows, width])],
        [numpy_helper.from_array(array * np.float32(scale / width**0.5), f"w{i}") for i, array in enumerate(weights)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def save_residual(path: Path, *, batch: int = 1) -> Path:
    """image [batch,4,8,8] -> stem -> two residual blocks with convolutions as shortcuts -> y [batch,32,8,8]."""
    random = np.random.default_rng(0)
    weights: dict[str, np.ndarray] = {}
    nodes: list[onnx.NodeProto] = []

    def conv(source: str, target: str, outputs: int, inputs: int, size: int) -> str:
        weights[f"{target}.w"] = (random.standard_normal((outputs, inputs, size, size)) / inputs).astype(np.float32)
        nodes.append(helper.make_node("Conv", [source, f"{target}.w"], [target], target, pads=[size // 2] * 4))
        return target

    def relu(source: str, target: str) -> str:
        nodes.append(helper.make_node("Relu", [source], [target], target))
        return target

    x, width = relu(conv("image", "stem", 16, 4, 3), "stem.relu"), 16
    for block, result in (("one", "middle"), ("two", "y")):
        branch = relu(conv(x, f"{block}.a", 16, width, 1), f"{block}.a.relu")
        branch = relu(conv(branch, f"{block}.b", 16, 16, 3), f"{block}.b.relu")
        branch = conv(branch, f"{block}.c", 32, 16, 1)
        shortcut, width = conv(x, f"{block}.short", 32, width, 1), 32
        nodes.append(helper.make_node("Add", [branch, shortcut], [f"{block}.sum"], f"{block}.sum"))
        x = relu(f"{block}.sum", result)
    graph = helper.make_graph(
        nodes,
        "residual",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 4, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 32, 8, 8])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def save_joint(path: Path) -> Path:
    """image [1,16,8,8] -> two 3x3 convolutions with ReLU, joined with the pooled image -> a convolution -> y."""
    random = np.random.default_rng(0)
    weights: dict[str, np.ndarray] = {}
    nodes: list[onnx.NodeProto] = []

    def conv(source: str, target: str, outputs: int, inputs: int) -> str:
        weights[f"{target}.w"] = (random.standard_normal((outputs, inputs, 3, 3)) / inputs).astype(np.float32)
        nodes.append(helper.make_node("Conv", [source, f"{target}.w"], [target], target, pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [target], [f"{target}.relu"], f"{target}.relu"))
        return f"{target}.relu"

    nodes.append(helper.make_node("MaxPool", ["image"], ["pool"], "pool", kernel_shape=[3, 3], pads=[1] * 4))
    pieces = [conv("image", "left", 24, 16), "pool", conv("image", "right", 32, 16)]
    nodes.append(helper.make_node("Concat", pieces, ["joint"], "joint", axis=1))
    result = conv("joint", "last", 16, 72)
    graph = helper.make_graph(
        nodes,
        "joint",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 16, 8, 8])],
        [helper.make_tensor_value_info(result, TensorProto.FLOAT, [1, 16, 8, 8])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path)
    return path
