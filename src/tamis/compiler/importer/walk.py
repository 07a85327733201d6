"""The walk over the ONNX nodes: every node becomes operators of the network, a constant, or a refusal."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto

from tamis.compiler.importer.call import Call
from tamis.compiler.importer.network import Network
from tamis.compiler.importer.reference import evaluate_by_reference
from tamis.compiler.importer.structure import live, node_label, ordered
from tamis.compiler.importer.table import OPERATORS
from tamis.compiler.importer.tensors import sparse_to_array, to_array
from tamis.errors import BuildError, InvalidModel, ModelError, UnsupportedModel

FunctionKey = tuple[str, str, str]


@dataclass(frozen=True)
class Refusal:
    """A node that Tamis cannot run: its operator, its name, and why when the operator itself is known."""

    operator: str
    node: str
    reason: str = ""


@dataclass(frozen=True)
class Scope:
    """What the nodes of one graph or function body see.

    ``values`` maps ONNX names to values of the network, None for a result that could not be made;
    ``tensors`` holds initializers that were not needed yet.
    """

    values: MutableMapping[str, str | None]
    tensors: MutableMapping[str, onnx.TensorProto | onnx.SparseTensorProto]
    opsets: Mapping[str, int]
    attributes: Mapping[str, AttributeProto] = field(default_factory=dict)
    prefix: str = ""
    inside: tuple[FunctionKey, ...] = ()

    @property
    def public(self) -> bool:
        """Whether this is the main graph, whose value names are the user's."""
        return not self.prefix


class Walk:
    """One import: walks graphs, inlines functions and decided branches, collects refusals."""

    def __init__(
        self, network: Network, functions: Sequence[onnx.FunctionProto], folder: Path | None
    ) -> None:
        self.network = network
        self.folder = folder
        self.refusals: list[Refusal] = []
        self._functions = {(f.domain, f.name, getattr(f, "overload", "")): f for f in functions}

    def nodes(self, nodes: Sequence[onnx.NodeProto], wanted: Sequence[str], scope: Scope) -> None:
        """Import the nodes that ``wanted`` results need."""
        nodes = list(nodes)  # protobuf makes a new object at every look; these are the ones to keep
        labels = {id(node): node_label(node, index) for index, node in enumerate(nodes)}
        order = ordered(nodes, {*scope.values, *scope.tensors})
        for node in live(order, wanted):
            self._node(node, scope.prefix + labels[id(node)], scope)

    def value(self, name: str, scope: Scope) -> str | None:
        """The value behind an ONNX name, an initializer being read at its first use."""
        if name not in scope.values and name in scope.tensors:
            tensor = scope.tensors[name]
            sparse = isinstance(tensor, onnx.SparseTensorProto)
            array = sparse_to_array(tensor, self.folder) if sparse else to_array(tensor, self.folder)
            scope.values[name] = self.network.constant(array, name)
        return scope.values[name]

    def _node(self, node: onnx.NodeProto, label: str, scope: Scope) -> None:
        operator = f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
        try:
            results = self._results(node, label, scope)
        except UnsupportedModel as error:
            self.network.abandon_call()
            self.refusals.append(Refusal(operator, label, error.cause))
            results = None
        except BuildError as error:
            raise InvalidModel(
                f"{node.op_type} does not fit its inputs: {error.cause}", layer=label
            ) from None
        except ModelError as error:
            if error.layer:
                raise
            raise type(error)(error.cause, layer=label, remedy=error.remedy) from None
        if results is None:
            results = [None] * len(node.output)
        for name, value in zip(node.output, results, strict=False):
            if name:
                scope.values[name] = value
        for name in node.output[len(results) :]:
            if name:
                self.refusals.append(Refusal(operator, label, f"its output '{name}' is not available"))
                scope.values[name] = None

    def _results(self, node: onnx.NodeProto, label: str, scope: Scope) -> Sequence[str | None] | None:
        domain = "" if node.domain == "ai.onnx" else node.domain
        inputs = [self.value(name, scope) if name else "" for name in node.input]
        function = self._functions.get((node.domain, node.op_type, getattr(node, "overload", "")))
        if function is not None:
            return self._inline(function, node, inputs, label, scope)
        if domain == "" and node.op_type == "If":
            return self._if(node, inputs, label, scope)
        convert = OPERATORS.get(domain, {}).get(node.op_type)
        if None in inputs:
            if convert is None:
                self.refusals.append(Refusal(f"{domain}.{node.op_type}".lstrip("."), label))
            return None
        known = [value for value in inputs if value is not None]
        if convert is None:
            return self._by_reference(node, known, label, scope)
        opset = scope.opsets.get(domain, 1)
        call = Call(
            label,
            node.op_type,
            domain,
            opset,
            tuple(known),
            tuple(node.output),
            self._attributes(node, scope),
        )
        made = convert(self.network, call)
        results = (made,) if isinstance(made, str) else tuple(made)
        return self.network.close_call(label, results, tuple(node.output), scope.public)

    def _by_reference(
        self, node: onnx.NodeProto, inputs: Sequence[str], label: str, scope: Scope
    ) -> Sequence[str] | None:
        """Evaluate an operator that Tamis does not have, when it has only constants to work on."""
        arrays = [self.network.known(value) if value else None for value in inputs]
        constant = all(a is not None for a, value in zip(arrays, inputs, strict=True) if value)
        results = evaluate_by_reference(node, arrays, scope.opsets) if constant else None
        if results is None:
            domain = "" if node.domain == "ai.onnx" else node.domain
            self.refusals.append(Refusal(f"{domain}.{node.op_type}".lstrip("."), label))
            return None
        values = [self.network.constant(array) for array in results]
        return self.network.close_call(label, values, tuple(node.output), scope.public)

    def _attributes(self, node: onnx.NodeProto, scope: Scope) -> dict[str, Any]:
        result = {}
        for attribute in node.attribute:
            source = attribute
            if attribute.ref_attr_name:
                if attribute.ref_attr_name not in scope.attributes:
                    continue
                source = scope.attributes[attribute.ref_attr_name]
            result[attribute.name] = self._attribute_value(source)
        return result

    def _attribute_value(self, attribute: AttributeProto) -> Any:
        if attribute.type == AttributeProto.TENSOR:
            return to_array(attribute.t, self.folder)
        if attribute.type == AttributeProto.SPARSE_TENSOR:
            return sparse_to_array(attribute.sparse_tensor, self.folder)
        if attribute.type == AttributeProto.STRING:
            return attribute.s.decode("utf-8", "replace")
        if attribute.type == AttributeProto.STRINGS:
            return tuple(text.decode("utf-8", "replace") for text in attribute.strings)
        value = onnx.helper.get_attribute_value(attribute)
        many = (AttributeProto.INTS, AttributeProto.FLOATS, AttributeProto.TENSORS, AttributeProto.GRAPHS)
        return tuple(value) if attribute.type in many else value

    def _if(
        self, node: onnx.NodeProto, inputs: Sequence[str | None], label: str, scope: Scope
    ) -> list[str | None]:
        """The branch that a constant condition selects, in place of the If."""
        condition = inputs[0] if inputs else None
        if condition is None:
            return [None] * len(node.output)
        decided = self.network.constant_of(condition, "the condition")
        name = "then_branch" if bool(np.all(decided)) else "else_branch"
        branch = next((a.g for a in node.attribute if a.name == name), None)
        if branch is None:
            raise InvalidModel(f"If lacks its '{name}'", layer=label)
        own: dict[str, str | None] = {}
        tensors = graph_tensors(branch)
        inner = Scope(
            ChainMap(own, scope.values),
            ChainMap(tensors, scope.tensors),
            scope.opsets,
            scope.attributes,
            f"{label}/",
            scope.inside,
        )
        names = [output.name for output in branch.output]
        self.nodes(branch.node, names, inner)
        return [self.value(output, inner) for output in names]

    def _inline(
        self,
        function: onnx.FunctionProto,
        node: onnx.NodeProto,
        inputs: Sequence[str | None],
        label: str,
        scope: Scope,
    ) -> list[str | None]:
        """The body of a model-local function, in place of its call."""
        key = (function.domain, function.name, getattr(function, "overload", ""))
        if key in scope.inside:
            raise InvalidModel(f"the function '{function.name}' calls itself", layer=label)
        given = {attribute.name: attribute for attribute in node.attribute}
        for name, attribute in list(given.items()):
            if attribute.ref_attr_name:
                given.pop(name)
                if attribute.ref_attr_name in scope.attributes:
                    given[name] = scope.attributes[attribute.ref_attr_name]
        defaults = {attribute.name: attribute for attribute in function.attribute_proto}
        padded = [*inputs, *[""] * (len(function.input) - len(inputs))]
        inner = Scope(
            dict(zip(function.input, padded, strict=False)),
            {},
            {entry.domain: entry.version for entry in function.opset_import} or scope.opsets,
            {**defaults, **given},
            f"{label}/",
            (*scope.inside, key),
        )
        self.nodes(function.node, list(function.output), inner)
        return [self.value(name, inner) for name in function.output]


def graph_tensors(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto | onnx.SparseTensorProto]:
    """The initializers of a graph by name, dense and sparse."""
    tensors: dict[str, onnx.TensorProto | onnx.SparseTensorProto] = {}
    for tensor in graph.initializer:
        if tensor.name in tensors:
            raise InvalidModel(f"the initializer '{tensor.name}' is there twice")
        tensors[tensor.name] = tensor
    return tensors | {tensor.values.name: tensor for tensor in graph.sparse_initializer}
