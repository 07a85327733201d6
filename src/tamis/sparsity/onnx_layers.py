"""Which nodes of an ONNX graph are layers: which input is the weight, and the axis that it reduces over."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tamis.errors import InvalidModel
from tamis.sparsity.check import Progress
from tamis.sparsity.layer_names import JOINED
from tamis.sparsity.onnx_graph import Constant, OnnxGraph, Overrides

if TYPE_CHECKING:
    import onnx

_OTHERS = (
    *("Attention", "Einsum", "GRU", "LSTM", "MatMulBnb4", "MatMulNBits"),
    *("MoE", "QAttention", "QGemm", "QMoE", "RNN"),
)


@dataclass(frozen=True)
class _Port:
    """An input that may be a weight: its place, the reduction axis (negative: from the end), its zero point's place."""

    weight: int
    axis: int
    zero_point: int | None = None


@dataclass(frozen=True)
class OnnxLayer:
    """A node that multiplies with a constant weight.

    Attributes:
        graph: where the node is.
        node: the node.
        port: which of its inputs is the weight.
        constant: the weight as it arrives at the node.
        axis: the reduction axis of the weight, from the front.
        zero_point: what a quantised weight holds where it is zero, in a shape that spreads over the weight.
        groups: of a convolution, else 1.
    """

    graph: OnnxGraph
    node: onnx.NodeProto
    port: int
    constant: Constant
    axis: int
    zero_point: NDArray[Any] | None
    groups: int

    @property
    def name(self) -> str:
        """The stored tensor that the weight comes from; several are joined by `JOINED`."""
        return JOINED.join(dict.fromkeys(origin.source for origin in self.constant.origins))

    @property
    def weight(self) -> NDArray[Any]:
        """The numbers that the layer multiplies with, up to a scale."""
        return centred(self.constant.value, self.zero_point)

    @property
    def masked_by(self) -> str | None:
        """The node that makes elements of the weight zero when the model runs; None if none does."""
        for mask in self.constant.masks:
            before = mask.graph.constant(mask.input)
            assert before is not None
            without = self.changed({(id(mask.graph), mask.output): before.value})
            if np.count_nonzero(self.weight) < np.count_nonzero(without):
                return f"{mask.node.op_type} node '{mask.node.name or mask.output}'"
        return None

    @property
    def inputs_per_group(self) -> int:
        """How many inputs one output sums over, for each tap of a filter."""
        size = int(self.constant.value.shape[self.axis])
        # the weight of a Conv has one group's channels on its axis, that of a ConvTranspose all of them
        return size // self.groups if self.node.op_type == "ConvTranspose" else size

    @property
    def scope(self) -> str:
        """The torch module a node came from, as PyTorch's exporter records it; empty if it does not say."""
        entries = {entry.key: entry.value for entry in self.node.metadata_props}
        try:
            names = ast.literal_eval(entries.get("pkg.torch.onnx.name_scopes", "[]"))
            return str(names[-2]) if len(names) > 1 else ""
        except (ValueError, SyntaxError, TypeError):
            return ""  # not written by that exporter

    def changed(self, overrides: Overrides) -> NDArray[Any]:
        """The weight with other values in the stored tensors."""
        constant = self.graph.constant(self.node.input[self.port], overrides)
        assert constant is not None
        return centred(constant.value, self.zero_point)


def layers(root: OnnxGraph, progress: Progress | None = None) -> Iterator[OnnxLayer]:
    """All layers, in graph order, those of a body after the graph around it.

    One is computed at a time, so that no more than one weight need be in memory.
    """
    places = [(graph, node) for graph in root.graphs() for node in graph.nodes]
    for done, (graph, node) in enumerate(places):
        if progress:
            progress("check", done, len(places), node.name)
        if (layer := layer_of(graph, node)) is not None:
            yield layer
    if progress:
        progress("check", len(places), len(places), "")


def unjudged(root: OnnxGraph) -> dict[str, int]:
    """How many nodes of which other operators are given constants that could be weights, as `LSTM` is."""
    counts: dict[str, int] = {}
    for graph in root.graphs():
        for node in graph.nodes:
            if node.op_type in _OTHERS and any(graph.is_constant(name) for name in node.input[1:3] if name):
                counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return counts


def centred(value: NDArray[Any], zero_point: NDArray[Any] | None) -> NDArray[Any]:
    """A quantised weight less its zero point; others as they are."""
    return value if zero_point is None else value.astype(np.int32) - zero_point.astype(np.int32)


def layer_of(graph: OnnxGraph, node: onnx.NodeProto) -> OnnxLayer | None:
    """A node as a layer; None if it is none, or its weight is not constant."""
    ports = _ports(node)
    if not ports or all(graph.is_constant(name) for name in node.output):
        return None  # a constant itself, such as the product of two small matrices that becomes a weight
    for port in ports:
        if port.weight >= len(node.input) or not graph.is_constant(node.input[port.weight]):
            continue
        constant = graph.constant(node.input[port.weight])
        if constant is None or constant.value.ndim == 0:
            continue
        rank = constant.value.ndim
        axis = max(port.axis + rank, 0) if port.axis < 0 else port.axis
        if axis >= rank:
            raise InvalidModel(
                f"{node.op_type} has a weight of rank {rank}",
                layer=node.name or node.output[0],
                remedy="mend the model",
            )
        zero_point = _zero_point(graph, node, port, rank)
        return OnnxLayer(graph, node, port.weight, constant, axis, zero_point, attribute(node, "group", 1))
    return None


def _zero_point(graph: OnnxGraph, node: onnx.NodeProto, port: _Port, rank: int) -> NDArray[Any] | None:
    if port.zero_point is None:
        return None
    if port.zero_point >= len(node.input) or not node.input[port.zero_point]:
        return np.zeros((), np.int32)
    constant = graph.constant(node.input[port.zero_point])
    if constant is None:
        raise InvalidModel(
            "the zero point of its weight is not constant", layer=node.name or node.output[0], remedy="mend the model"
        )
    value = constant.value
    if value.size == 1:
        return value.reshape(())
    if "Conv" in node.op_type:
        return value.reshape(-1, *(1,) * (rank - 1))  # one for each output channel, the first axis
    return value[..., None] if port.weight < 2 and port.axis == -1 and value.ndim == 1 else value  # one for each row


def _ports(node: onnx.NodeProto) -> tuple[_Port, ...]:
    if node.domain not in ("", "ai.onnx", "com.microsoft"):
        return ()
    operator = node.op_type
    if operator in ("Conv", "FusedConv"):
        return (_Port(1, 1),)
    if operator == "ConvTranspose":
        return (_Port(1, 0),)
    if operator in ("Gemm", "FusedGemm", "FusedMatMul"):
        stacked = -2 if operator == "FusedMatMul" else 0  # of the two last axes, the first
        last = stacked + 1
        return (
            _Port(1, last if attribute(node, "transB", 0) else stacked),
            _Port(0, stacked if attribute(node, "transA", 0) else last),
        )
    if operator == "MatMul":
        return (_Port(1, -2), _Port(0, -1))
    if operator == "QLinearConv":
        return (_Port(3, 1, 5),)
    if operator == "QLinearMatMul":
        return (_Port(3, -2, 5), _Port(0, -1, 2))
    if operator == "ConvInteger":
        return (_Port(1, 1, 3),)
    if operator == "MatMulInteger":
        return (_Port(1, -2, 3), _Port(0, -1, 2))
    return ()


def attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    """An integer attribute of a node."""
    return next((int(entry.i) for entry in node.attribute if entry.name == name), default)
