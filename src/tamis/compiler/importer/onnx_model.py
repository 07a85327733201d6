"""The import of a whole ONNX model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import onnx

from tamis.compiler.importer.inputs import input_types
from tamis.compiler.importer.network import Network
from tamis.compiler.importer.walk import Refusal, Scope, Walk, graph_tensors
from tamis.compiler.ir.graph import Graph
from tamis.errors import InvalidModel, UnsupportedModel
from tamis.formats.dtype import DType
from tamis.onnx_files.load import Source, load_model
from tamis.onnx_files.tensors import ELEMENT_TYPES, element_type

OLDEST_OPSET = 7
NEWEST_OPSET = 28
NODES_SHOWN = 3


def import_onnx(source: Source, shapes: Mapping[str, tuple[int, ...]] = MappingProxyType({})) -> Graph:
    """An ONNX model as a graph with concrete shapes and float32 arithmetic.

    Args:
        source: path of an ``.onnx`` file, its bytes, or a parsed model. External data is looked for in the
            file's folder and memory-mapped.
        shapes: shapes of inputs by name; needed for inputs with symbolic dimensions.

    Returns:
        The graph. Whatever can be computed from constants is; inputs and outputs keep their declared types
        through a ``Cast`` at the border; ``Node.origin`` names the ONNX node.

    Raises:
        ConfigError: ``shapes`` does not fit the model or leaves a dimension open.
        InvalidModel: the file is missing, damaged or contradicts itself.
        UnsupportedModel: the model uses operators or types that Tamis cannot run; all of them are listed.
    """
    model, folder, name = load_model(source)
    opsets = _opsets(model)
    graph = model.graph
    tensors = graph_tensors(graph)
    outputs = [output.name for output in graph.output]
    doubled = [output for output, count in Counter(outputs).items() if count > 1]
    if doubled:
        raise InvalidModel(f"the output '{doubled[0]}' is declared twice")
    network = Network(graph.name or name, outputs)
    inputs = [value for value in graph.input if value.name not in tensors]
    values: dict[str, str | None] = {
        name: network.add_input(name, type_) for name, type_ in input_types(inputs, shapes).items()
    }
    walk = Walk(network, model.functions, folder)
    scope = Scope(values, tensors, opsets)
    walk.nodes(graph.node, outputs, scope)
    if walk.refusals:
        raise _unsupported(walk.refusals)
    return network.finish([(output.name, *_output(output, walk, scope)) for output in graph.output])


def _opsets(model: onnx.ModelProto) -> dict[str, int]:
    opsets = {"" if entry.domain == "ai.onnx" else entry.domain: entry.version for entry in model.opset_import}
    if not opsets and model.ir_version >= 3:
        raise InvalidModel("the model declares no opset, or is truncated")
    # Models before IR version 3 had no list; a model of other domains alone needs no default one.
    opsets.setdefault("", 1 if not opsets else OLDEST_OPSET)
    version = opsets[""]
    if version < OLDEST_OPSET:
        raise UnsupportedModel(
            f"the model uses opset {version}, older than {OLDEST_OPSET}",
            remedy="convert it with onnx.version_converter.convert_version(model, 17)",
        )
    if version > NEWEST_OPSET:
        _check_newer(model, version)
    return opsets


def _check_newer(model: onnx.ModelProto, version: int) -> None:
    """Accept a newer opset as long as every operator still means what it did in the newest known one."""
    operators = sorted({node.op_type for node in model.graph.node if node.domain in ("", "ai.onnx")})
    known = version <= onnx.defs.onnx_opset_version()
    changed = [operator for operator in operators if not known or _since(operator, version) > NEWEST_OPSET]
    if changed:
        raise UnsupportedModel(
            f"the model uses opset {version}, where the meaning of {', '.join(changed)} is not known "
            f"(newest known: {NEWEST_OPSET})",
            remedy=f"export it with opset {NEWEST_OPSET} or older",
        )


def _since(operator: str, version: int) -> int:
    """The opset in which an operator got the meaning that it has in ``version``."""
    if not onnx.defs.has(operator):
        return version
    return int(onnx.defs.get_schema(operator, version).since_version)


def _output(output: onnx.ValueInfoProto, walk: Walk, scope: Scope) -> tuple[str, DType | None]:
    """The value behind a graph output and its declared element type, None when it declares none."""
    if output.name not in scope.values and output.name not in scope.tensors:
        raise InvalidModel(f"the output '{output.name}' is neither an input, an initializer nor a result")
    value = walk.value(output.name, scope)
    if not value:
        raise InvalidModel(f"the output '{output.name}' has no value")
    element = output.type.tensor_type.elem_type
    if element not in ELEMENT_TYPES:
        if element:
            element_type(element, f"output '{output.name}'")
        return value, None
    declared, computed = ELEMENT_TYPES[element], walk.network.dtype(value)
    if declared != computed and not (declared.is_float and computed.is_float):
        raise InvalidModel(f"the output '{output.name}' is declared {declared} but computed as {computed}")
    return value, declared


def _unsupported(refusals: Sequence[Refusal]) -> UnsupportedModel:
    """One error that lists every operator that cannot be run, why, and where."""
    groups: dict[tuple[str, str], list[str]] = {}
    for refusal in refusals:
        groups.setdefault((refusal.operator, refusal.reason), []).append(refusal.node)
    parts = []
    for (operator, reason), nodes in groups.items():
        shown = ", ".join(f"'{node}'" for node in nodes[:NODES_SHOWN])
        more = f" and {len(nodes) - NODES_SHOWN} more" if len(nodes) > NODES_SHOWN else ""
        count = f"{len(nodes)} node{'s' if len(nodes) > 1 else ''}"
        parts.append(f"{operator} ({count}: {shown}{more}{'; ' + reason if reason else ''})")
    operators = len({operator for operator, _ in groups})
    return UnsupportedModel(
        f"{operators} operator{'s' if operators > 1 else ''} of the model cannot be run: {'; '.join(parts)}",
        remedy="cut them out with onnx.utils.extract_model, or export the network without them",
    )
