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
from tamis.compiler.importer.network import Network, inside
from tamis.compiler.importer.reference import evaluate_by_reference
from tamis.compiler.importer.standard_functions import standard_function
from tamis.compiler.importer.structure import live, node_label, ordered, reads
from tamis.compiler.importer.table import OPERATORS
from tamis.errors import BuildError, InvalidModel, ModelError, UnsupportedModel
from tamis.onnx_files.tensors import sparse_to_array, to_array

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

    def __init__(self, network: Network, functions: Sequence[onnx.FunctionProto], folder: Path | None) -> None:
        self.network = network
        self.folder = folder
        self.refusals: list[Refusal] = []
        self._functions = {(f.domain, f.name, getattr(f, "overload", "")): f for f in functions}

    def nodes(self, nodes: Sequence[onnx.NodeProto], wanted: Sequence[str], scope: Scope) -> None:
        """Import the nodes that ``wanted`` results need."""
        nodes = list(nodes)  # protobuf makes a new object at every look; these are the ones to keep
        labels = {id(node): node_label(node, index) for index, node in enumerate(nodes)}
        order = ordered(nodes, {*scope.values, *scope.tensors})
        alive = live(order, wanted)
        used = set(wanted).union(*map(reads, alive))
        for node in alive:
            self._node(node, scope.prefix + labels[id(node)], scope, used)

    def value(self, name: str, scope: Scope) -> str | None:
        """The value behind an ONNX name, an initializer being read at its first use."""
        if name not in scope.values and name in scope.tensors:
            tensor = scope.tensors[name]
            sparse = isinstance(tensor, onnx.SparseTensorProto)
            array = sparse_to_array(tensor, self.folder) if sparse else to_array(tensor, self.folder)
            scope.values[name] = self.network.initializer(array, name)
        return scope.values[name]

    def _node(self, node: onnx.NodeProto, label: str, scope: Scope, used: set[str]) -> None:
        outputs = [name if name in used else "" for name in node.output]
        try:
            results = self._results(node, outputs, label, scope)
        except UnsupportedModel as error:
            self.network.abandon_call()
            self.refusals.append(Refusal(_operator(node), label, error.cause))
            results = None
        except BuildError as error:
            raise InvalidModel(f"{node.op_type} does not fit its inputs: {error.cause}", layer=label) from None
        except ModelError as error:
            if error.layer:
                raise
            raise type(error)(error.cause, layer=label, remedy=error.remedy) from None
        if results is None:
            results = [None] * len(outputs)
        for name, value in zip(outputs, results, strict=False):
            if name:
                scope.values[name] = value
        for name in filter(None, outputs[len(results) :]):
            self.refusals.append(Refusal(_operator(node), label, f"its output '{name}' is not available"))
            scope.values[name] = None

    def _results(
        self, node: onnx.NodeProto, outputs: Sequence[str], label: str, scope: Scope
    ) -> Sequence[str | None] | None:
        domain = "" if node.domain == "ai.onnx" else node.domain
        inputs = [self.value(name, scope) if name else "" for name in node.input]
        function = self._functions.get((node.domain, node.op_type, getattr(node, "overload", "")))
        if function is not None:
            return self._inline(function, node, inputs, outputs=outputs, label=label, scope=scope)
        if domain == "" and node.op_type == "If":
            return self._if(node, inputs, label, scope)
        convert = OPERATORS.get(domain, {}).get(node.op_type)
        known = [value for value in inputs if value is not None]
        if len(known) < len(inputs):
            if convert is None and not standard_function(node, [None] * len(inputs), scope.opsets):
                self.refusals.append(Refusal(_operator(node), label))
            return None
        if convert is not None:
            call = Call(
                name=label,
                op_type=node.op_type,
                domain=domain,
                opset=scope.opsets.get(domain, 1),
                inputs=tuple(known),
                outputs=tuple(outputs),
                attributes=self._attributes(node, scope),
            )
            made = convert(self.network, call)
            if made is not None:
                results = (made,) if isinstance(made, str) else tuple(made)
                return self.network.close_call(label, results, outputs, scope.public)
        types = [inside(self.network.types[value]) if value else None for value in known]
        body = standard_function(self._resolved(node, scope), types, scope.opsets)
        if body is not None:
            return self._inline(body, node, known, outputs=outputs, label=label, scope=scope)
        return self._by_reference(node, outputs, known, label, scope)

    def _by_reference(
        self, node: onnx.NodeProto, outputs: Sequence[str], inputs: Sequence[str], label: str, scope: Scope
    ) -> Sequence[str] | None:
        """Evaluate an operator that Tamis does not have, when it has only constants to work on."""
        arrays = [self.network.known(value) if value else None for value in inputs]
        constant = all(a is not None for a, value in zip(arrays, inputs, strict=True) if value)
        results = evaluate_by_reference(self._resolved(node, scope), arrays, scope.opsets) if constant else None
        if results is None:
            self.refusals.append(Refusal(_operator(node), label))
            return None
        values = [self.network.constant(array) for array in results]
        return self.network.close_call(label, values, outputs, scope.public)

    def _resolved(self, node: onnx.NodeProto, scope: Scope) -> onnx.NodeProto:
        """The node with references to attributes of an enclosing function replaced by their values."""
        if not any(attribute.ref_attr_name for attribute in node.attribute):
            return node
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        del copy.attribute[:]
        for attribute in node.attribute:
            source = scope.attributes.get(attribute.ref_attr_name) if attribute.ref_attr_name else attribute
            if source is not None:
                added = copy.attribute.add()
                added.CopyFrom(source)
                added.name = attribute.name
        return copy

    def _attributes(self, node: onnx.NodeProto, scope: Scope) -> dict[str, Any]:
        return {attribute.name: self._attribute_value(attribute) for attribute in self._resolved(node, scope).attribute}

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
        if value is None:
            raise InvalidModel(f"attribute '{attribute.name}' has no value")
        many = (AttributeProto.INTS, AttributeProto.FLOATS, AttributeProto.TENSORS, AttributeProto.GRAPHS)
        return tuple(value) if attribute.type in many else value

    def _if(self, node: onnx.NodeProto, inputs: Sequence[str | None], label: str, scope: Scope) -> list[str | None]:
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
        *,
        outputs: Sequence[str],
        label: str,
        scope: Scope,
    ) -> list[str | None]:
        """The body of a function, in place of its call."""
        key = (function.domain, function.name, getattr(function, "overload", ""))
        if key in scope.inside:
            raise InvalidModel(f"the function '{function.name}' calls itself", layer=label)
        given = {attribute.name: attribute for attribute in self._resolved(node, scope).attribute}
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
        pairs = list(zip(function.output, outputs, strict=False))
        self.nodes(function.node, [formal for formal, actual in pairs if actual], inner)
        return [self.value(formal, inner) if actual else None for formal, actual in pairs]


def _operator(node: onnx.NodeProto) -> str:
    """The operator's name for messages, with its domain unless that is ONNX's own."""
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"


def graph_tensors(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto | onnx.SparseTensorProto]:
    """The initializers of a graph by name, dense and sparse."""
    tensors: dict[str, onnx.TensorProto | onnx.SparseTensorProto] = {}
    for tensor in graph.initializer:
        if tensor.name in tensors:
            raise InvalidModel(f"the initializer '{tensor.name}' is there twice")
        tensors[tensor.name] = tensor
    return tensors | {tensor.values.name: tensor for tensor in graph.sparse_initializer}
