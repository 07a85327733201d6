"""The constants of an ONNX model: what is known before it runs, which stored tensor it comes from, and by which nodes.

Bodies of `If`, `Loop` and `Scan` are graphs of their own that see the names around them. Needs only onnx and NumPy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tamis.errors import InvalidModel, first_line
from tamis.onnx_files import Source, bodies_of, load_model, sparse_to_array, to_array

if TYPE_CHECKING:
    import onnx

MASKING = ("Mul", "Where")
# What takes elements of its first input to other places, and maybe leaves some out.
REARRANGING = (
    *("Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Reshape"),
    *("Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"),
)
_STANDARD = ("", "ai.onnx")
_RANDOM = (
    *("Bernoulli", "Multinomial"),
    *("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"),
)
_CONTRIBUTED = ("DequantizeLinear", "QuantizeLinear")  # also in Microsoft's domain, with the same meaning
_CONTRIBUTED_AS = {"": 21}
_SAMPLE = 4096  # elements

Key = tuple[int, str]
Overrides = Mapping[Key, NDArray[Any]]
NONE: Overrides = {}


@dataclass(frozen=True)
class Step:
    """A node that a weight passes on its way to a layer: through which input, by its place, and which output."""

    node: onnx.NodeProto
    position: int
    output: str
    graph: OnnxGraph

    @property
    def input(self) -> str:
        """The name of the input."""
        return str(self.node.input[self.position])


@dataclass(frozen=True)
class Origin:
    """Where a constant comes from.

    Attributes:
        source: the tensor it is from: an initializer, or the output of a node that makes it of nothing.
        home: the graph that holds `source`.
        steps: the nodes between, in their order.
    """

    source: str
    home: OnnxGraph
    steps: tuple[Step, ...] = ()

    @property
    def key(self) -> Key:
        """Equal for all that comes from the same tensor."""
        return id(self.home), self.source


@dataclass(frozen=True)
class Constant:
    """A value known before the model runs.

    Attributes:
        value: as it arrives.
        origins: what it comes from, the largest part first; more than one where a `Concat` joins several.
        masks: the nodes between that made elements zero, maybe some that a node behind them left out.
    """

    value: NDArray[Any]
    origins: tuple[Origin, ...]
    masks: tuple[Step, ...] = ()


class OnnxGraph:
    """One graph, or the body of a node: its nodes, its stored tensors, and which names are constant."""

    def __init__(
        self, proto: onnx.GraphProto, opsets: Mapping[str, int], folder: Path | None, parent: OnnxGraph | None = None
    ) -> None:
        self.proto = proto
        self.nodes: list[onnx.NodeProto] = list(proto.node)
        self._opsets = opsets
        self._folder = folder
        self._parent = parent
        self._stored: dict[str, onnx.TensorProto] = {tensor.name: tensor for tensor in proto.initializer}
        self._sparse = {tensor.values.name: tensor for tensor in proto.sparse_initializer}
        self._producers = {name: node for node in self.nodes for name in node.output if name}
        self._names = {*self._stored, *self._sparse, *self._producers, *(entry.name for entry in proto.input)}
        self._constants = {*self._stored, *self._sparse}
        for node in self.nodes:  # in topological order, as ONNX demands
            if _foldable(node) and all(self.is_constant(name) for name in node.input if name):
                self._constants.update(node.output)
        self.bodies = [
            OnnxGraph(body, opsets, folder, self)
            for node in self.nodes
            for attribute in node.attribute
            for body in bodies_of(attribute)
        ]

    def graphs(self) -> Iterator[OnnxGraph]:
        """This graph and all bodies within it."""
        yield self
        for body in self.bodies:
            yield from body.graphs()

    def home_of(self, name: str) -> OnnxGraph | None:
        """The graph, this one or one around it, that a name belongs to."""
        graph: OnnxGraph | None = self
        while graph is not None and name not in graph._names:
            graph = graph._parent
        return graph

    def is_constant(self, name: str) -> bool:
        """Whether a tensor depends on nothing but constants."""
        home = self.home_of(name)
        return home is not None and name in home._constants

    def stored(self, name: str) -> onnx.TensorProto | None:
        """The stored tensor of this graph behind a name: an initializer, or what a `Constant` node holds."""
        if name in self._stored:
            return self._stored[name]
        node = self._producers.get(name)
        if node is None or node.op_type != "Constant":
            return None
        for attribute in node.attribute:
            if attribute.name == "value":
                tensor: onnx.TensorProto = attribute.t
                return tensor
        return None

    def constant(self, name: str, changed: Overrides = NONE) -> Constant | None:
        """The value of a tensor, None if it is not constant.

        Args:
            name: of the tensor.
            changed: values to take in place of stored ones, by the `id` of the graph and the name there.

        Raises:
            InvalidModel: a node in front of it cannot be computed, or stored bytes are missing.
        """
        home = self.home_of(name)
        if home is None or name not in home._constants:
            return None
        if (id(home), name) in changed:
            return Constant(changed[id(home), name], (Origin(name, home),))
        return home._own(name, changed)

    def _own(self, name: str, changed: Overrides) -> Constant:
        own = (Origin(name, self),)
        if name in self._stored:
            return Constant(to_array(self._stored[name], self._folder), own)
        if name in self._sparse:
            return Constant(sparse_to_array(self._sparse[name], self._folder), own)
        if (tensor := self.stored(name)) is not None:
            return Constant(to_array(tensor, self._folder), own)
        node = self._producers[name]
        known = {each: self.constant(each, changed) for each in node.input if each}
        inputs = {each: constant for each, constant in known.items() if constant is not None}
        value = self.run(node, {each: constant.value for each, constant in inputs.items()})[name]
        if not inputs:
            return Constant(value, own)
        places = _weights_among(node, {each: constant.value for each, constant in inputs.items()})
        origins = tuple(
            replace(origin, steps=(*origin.steps, Step(node, place, name, self)))
            for place in places
            for origin in inputs[node.input[place]].origins
        )
        masks = tuple(mask for place in places for mask in inputs[node.input[place]].masks)
        if node.op_type in MASKING and np.count_nonzero(value) < np.count_nonzero(inputs[node.input[places[0]]].value):
            masks += (Step(node, places[0], name, self),)
        return Constant(value, origins, masks)

    def run(self, node: onnx.NodeProto, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The outputs of a node by name, given its inputs by name."""
        import onnx  # noqa: PLC0415
        from onnx.reference import ReferenceEvaluator  # noqa: PLC0415

        opsets = self._opsets
        if node.domain not in _STANDARD:
            plain = onnx.NodeProto()
            plain.CopyFrom(node)
            plain.domain = ""
            node, opsets = plain, _CONTRIBUTED_AS
        starts = [onnx.helper.make_value_info(name, onnx.TypeProto()) for name in inputs]
        ends = [onnx.helper.make_value_info(name, onnx.TypeProto()) for name in node.output if name]
        graph = onnx.helper.make_graph([node], "constant", starts, ends)
        try:
            with np.errstate(all="ignore"):
                values = ReferenceEvaluator(graph, opsets=dict(opsets)).run(None, dict(inputs))
        except Exception as error:  # of whatever kind the operator's implementation raises
            raise InvalidModel(
                f"{node.op_type} in front of a weight cannot be computed: {first_line(error)}",
                layer=node.name or node.output[0],
                remedy="simplify the model first, with onnxslim or onnxsim",
            ) from error
        return dict(zip((name for name in node.output if name), values, strict=True))


def open_graph(model: Source) -> tuple[onnx.ModelProto, OnnxGraph, Path | None]:
    """The parsed model with its local functions inlined, its graph, and the folder of its external data.

    The weights of a large file stay in it, as external data.

    Raises:
        InvalidModel: the file is missing, unreadable, not ONNX, truncated or empty.
    """
    from onnx import inliner  # noqa: PLC0415

    proto, folder, _ = load_model(model, mapped=True)
    if proto.functions:
        proto = inliner.inline_local_functions(proto)
    opsets = {entry.domain: entry.version for entry in proto.opset_import}
    return proto, OnnxGraph(proto.graph, opsets, folder), folder


def _weights_among(node: onnx.NodeProto, values: Mapping[str, NDArray[Any]]) -> list[int]:
    """The places of a node's inputs that are weights: the largest; of several, a mask has fewer different values."""
    places = [place for place, name in enumerate(node.input) if name]
    if node.op_type == "Concat":
        return sorted(places, key=lambda place: -values[node.input[place]].size)
    if node.op_type in REARRANGING or any(isinstance(value, list) for value in values.values()):
        return [0]
    size = max(value.size for value in values.values())
    largest = [place for place in places if values[node.input[place]].size == size]
    return [largest[0] if len(largest) == 1 else max(largest, key=lambda place: _different(values[node.input[place]]))]


def _different(value: NDArray[Any]) -> int:
    sample = value.reshape(-1)[:: max(1, value.size // _SAMPLE)]
    return np.unique(sample.astype(np.float64)).size if sample.dtype.kind not in "SUOc" else 0


def has_body(node: onnx.NodeProto) -> bool:
    """Whether a node runs graphs of its own."""
    return any(bodies_of(attribute) for attribute in node.attribute)


def _foldable(node: onnx.NodeProto) -> bool:
    if node.domain not in _STANDARD and node.op_type not in _CONTRIBUTED:
        return False
    return node.op_type not in _RANDOM and not has_body(node)
