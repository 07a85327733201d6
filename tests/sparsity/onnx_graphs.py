"""ONNX graphs built by hand for tests of checking and pruning."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tamis.formats import NM, magnitude_mask

TWO_FOUR = NM(2, 4)


def sparse(*shape: int, axis: int) -> NDArray[np.float32]:
    weight = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return np.where(magnitude_mask(weight, TWO_FOUR, axis), weight, np.float32(0))


def dense(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def model(nodes: list[onnx.NodeProto], **constants: NDArray[Any]) -> onnx.ModelProto:
    """A graph from x to y, with images of the rank of the largest weight if there is a convolution."""
    convolution = any("Conv" in node.op_type for node in nodes)
    rank = max(value.ndim for value in constants.values()) if convolution else 2
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None] * rank)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * rank)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def node(op: str, inputs: str, output: str = "y", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), [output], name=f"the_{op}", **attributes)
