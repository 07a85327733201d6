"""From ONNX to OpenVINO's model file, the same bytes in every process.

OpenVINO numbers the nodes that its front end makes by a counter of the process, and writes versions and
conversion options into the file. Here such nodes are renamed after the layer that uses them and everything
that is not the model itself is left out.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import onnx
from onnx import helper, numpy_helper

from tamis.compiler.tactics.lowering_writer import SEPARATOR, layer_of_name
from tamis.errors import BuildError, MissingLibrary
from tamis.formats.dtype import DType

# ONNX operators whose second input is a weight that OpenVINO rounds when it computes in bfloat16.
_WITH_WEIGHTS = ("Conv", "Gemm", "MatMul")


def to_openvino(model: onnx.ModelProto, precision: DType = DType.FLOAT32) -> tuple[bytes, bytes]:
    """OpenVINO's graph (XML) and weights (binary) of a lowered region; equal models give equal bytes.

    With ``precision`` bfloat16, weights of products and convolutions are stored rounded, in half the space. A
    region that runs in bfloat16 rounds them anyhow, to the same values: the results are equal bit for bit.

    Raises ``MissingLibrary`` without OpenVINO and ``BuildError`` when its front end refuses the model.
    """
    try:
        import openvino  # noqa: PLC0415  an optional library, loaded on use
    except ImportError as error:
        raise MissingLibrary("OpenVINO is not installed", remedy="run 'pip install openvino'") from error
    if precision == DType.BFLOAT16:
        model = _rounded(model)
    try:
        network = openvino.Core().read_model(model.SerializeToString())
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise BuildError(
            f"OpenVINO cannot read the region '{model.graph.name}' ({reason})", remedy="exclude openvino"
        ) from error
    _rename(network, model.graph)
    with tempfile.TemporaryDirectory(prefix="tamis-") as folder:
        xml, weights = Path(folder, "region.xml"), Path(folder, "region.bin")
        openvino.serialize(network, str(xml), str(weights))
        return _stripped(xml.read_bytes()), weights.read_bytes()


def _rounded(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its weights in bfloat16, each behind a conversion back to float32."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    weights = {node.input[1] for node in graph.node if node.op_type in _WITH_WEIGHTS}
    # What something else reads too, such as an embedding table, must stay exact.
    for node in graph.node:
        product = node.op_type in _WITH_WEIGHTS
        weights -= {value for index, value in enumerate(node.input) if not (product and index == 1)}
    casts = []
    for item in graph.initializer:
        if item.name not in weights or item.data_type != onnx.TensorProto.FLOAT:
            continue
        name = item.name
        item.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(item).astype(DType.BFLOAT16.numpy)))
        item.name = f"{name}.bfloat16"
        casts.append(helper.make_node("Cast", [item.name], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    return result


def _rename(network: Any, graph: onnx.GraphProto) -> None:
    """Give every operation a name that depends on the graph alone.

    An operation that stands for an ONNX node has its name, which contains the separator, as no name made by
    OpenVINO does. Others belong to the layer that reads them; the node behind an output is named after that
    output, so its layer is looked up.
    """
    network.set_friendly_name("region")
    operations = network.get_ordered_ops()
    owners = _owners_of_outputs(network, graph)
    for operation in reversed(operations):
        key = operation.get_name()  # unique in a process
        if key not in owners:
            owners[key] = layer_of_name(operation.get_friendly_name()) or _reader_of(operation, owners)
    counts: dict[str, int] = {}
    for operation in operations:
        if layer_of_name(operation.get_friendly_name()) is None:
            base = f"{owners[operation.get_name()]}{SEPARATOR}{operation.get_type_name()}"
            counts[base] = counts.get(base, -1) + 1
            operation.set_friendly_name(f"{base}.{counts[base]}")


def _owners_of_outputs(network: Any, graph: onnx.GraphProto) -> dict[str, str]:
    """The layers of the operations right before the outputs, and of the outputs themselves."""
    layers = {value: layer_of_name(node.name) or "" for node in graph.node for value in node.output}
    owners = {}
    for output, result in zip(graph.output, network.get_results(), strict=True):
        layer = layers.get(output.name, "")
        owners[result.get_name()] = layer
        owners[result.input_value(0).get_node().get_name()] = layer
    return owners


def _reader_of(operation: Any, owners: dict[str, str]) -> str:
    """The layer that reads an operation, the first by name of several; empty for a dead end."""
    readers = [port.get_node().get_name() for output in operation.outputs() for port in output.get_target_inputs()]
    return min((owners[reader] for reader in readers if reader in owners), default="")


def _stripped(xml: bytes) -> bytes:
    """The XML without run-time information, versions and tensor names."""
    root = ElementTree.fromstring(xml)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in ("rt_info", "meta_data"):
                parent.remove(child)
        if parent.tag == "port":
            parent.attrib.pop("names", None)
    text: bytes = ElementTree.tostring(root, encoding="utf-8")
    return text
