"""Collects the ONNX nodes and constants of one lowered region."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tamis.compiler.ir.graph import Graph, Node, TensorType
from tamis.formats.dtype import DType

# Follows a layer's name in the names of its ONNX nodes: ``<layer>#<number>``.
SEPARATOR = "#"

_ONNX_TYPES = {
    DType.FLOAT64: TensorProto.DOUBLE,
    DType.FLOAT32: TensorProto.FLOAT,
    DType.FLOAT16: TensorProto.FLOAT16,
    DType.BFLOAT16: TensorProto.BFLOAT16,
    DType.FLOAT8_E4M3: TensorProto.FLOAT8E4M3FN,
    DType.INT64: TensorProto.INT64,
    DType.INT32: TensorProto.INT32,
    DType.INT16: TensorProto.INT16,
    DType.INT8: TensorProto.INT8,
    DType.UINT8: TensorProto.UINT8,
    DType.UINT16: TensorProto.UINT16,
    DType.UINT32: TensorProto.UINT32,
    DType.UINT64: TensorProto.UINT64,
    DType.BOOL: TensorProto.BOOL,
}


def onnx_type(dtype: DType) -> int:
    """ONNX's number of an element type."""
    return int(_ONNX_TYPES[dtype])


def value_info(name: str, type_: TensorType) -> onnx.ValueInfoProto:
    """The declaration of a graph input or output."""
    return helper.make_tensor_value_info(name, onnx_type(type_.dtype), list(type_.shape))


def layer_of_name(name: str) -> str | None:
    """The layer that an ONNX or OpenVINO node of a lowered region belongs to, from its name."""
    layer, separator, _ = name.rpartition(SEPARATOR)
    return layer if separator else None


class Writer:
    """The ONNX nodes of a region while it is lowered; ``begin`` starts the next layer."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.nodes: list[onnx.NodeProto] = []
        self._arrays: dict[str, np.ndarray] = {}
        self._layer = ""
        self._count = 0

    def begin(self, node: Node) -> None:
        """Name the following ONNX nodes after this layer, and know the constants that it may read."""
        self._layer, self._count = node.name, 0
        self._arrays |= {v: self.graph.constants[v] for v in node.inputs if v in self.graph.constants}

    def shape(self, value: str) -> tuple[int, ...]:
        """The shape of a value of the graph."""
        return self.graph.types[value].shape

    def dtype(self, value: str) -> DType:
        """The element type of a value of the graph."""
        return self.graph.types[value].dtype

    def constant(self, array: np.ndarray) -> str:
        """A constant that belongs to the current layer."""
        name = f"{self._layer}{SEPARATOR}{self._count}.constant"
        self._count += 1
        self._arrays[name] = array
        return name

    def integers(self, values: Sequence[int] | np.ndarray) -> str:
        """A constant list of int64, as ONNX wants shapes and axes."""
        return self.constant(np.array(values, dtype=np.int64))

    def add(self, kind: str, inputs: Sequence[str], output: str | None = None, **attributes: Any) -> str:
        """An ONNX node with one output; returns that output's name, a fresh one by default."""
        return self.add_many(kind, inputs, [output or self._fresh()], **attributes)[0]

    def add_many(self, kind: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> Sequence[str]:
        """An ONNX node with any number of outputs."""
        name = f"{self._layer}{SEPARATOR}{self._count}"
        self._count += 1
        self.nodes.append(helper.make_node(kind, list(inputs), list(outputs), name=name, **attributes))
        return outputs

    def _fresh(self) -> str:
        name = f"{self._layer}{SEPARATOR}{self._count}.value"
        self._count += 1
        return name

    def initializers(self) -> list[onnx.TensorProto]:
        """The constants that some node reads."""
        read = {value for node in self.nodes for value in node.input}
        return [
            numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)
            for name, array in self._arrays.items()
            if name in read
        ]
