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

from tamis.compiler.tactics.lowering_writer import SEPARATOR, layer_of_name
from tamis.errors import BuildError, MissingLibrary


def to_openvino(model: onnx.ModelProto) -> tuple[bytes, bytes]:
    """OpenVINO's graph (XML) and weights (binary) of a lowered region; equal models give equal bytes.

    Raises ``MissingLibrary`` without OpenVINO and ``BuildError`` when its front end refuses the model.
    """
    try:
        import openvino  # noqa: PLC0415  an optional library, loaded on use
    except ImportError as error:
        raise MissingLibrary(
            "OpenVINO is not installed", remedy='install it with pip install "tamis[openvino]"'
        ) from error
    try:
        network = openvino.Core().read_model(model.SerializeToString())
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise BuildError(
            f"OpenVINO cannot read the region '{model.graph.name}' ({reason})", remedy="exclude openvino"
        ) from error
    known = {node.name for node in model.graph.node} | {item.name for item in model.graph.initializer}
    _rename(network, known | {item.name for item in model.graph.input})
    with tempfile.TemporaryDirectory(prefix="tamis-") as folder:
        xml, weights = Path(folder, "region.xml"), Path(folder, "region.bin")
        openvino.serialize(network, str(xml), str(weights))
        return _stripped(xml.read_bytes()), weights.read_bytes()


def _rename(network: Any, known: set[str]) -> None:
    """Name what the front end added after the layer that reads it, in the order of the graph."""
    network.set_friendly_name("region")
    operations = network.get_ordered_ops()
    owners: dict[str, str] = {}  # by the name the operation has now, which is unique in a process
    for operation in reversed(operations):
        name = operation.get_friendly_name()
        owner = layer_of_name(name) if name in known else None
        if owner is None:
            readers = [
                port.get_node() for output in operation.outputs() for port in output.get_target_inputs()
            ]
            found = sorted(owners[reader.get_name()] for reader in readers if reader.get_name() in owners)
            producers = [
                layer_of_name(value.get_node().get_friendly_name()) for value in operation.input_values()
            ]
            owner = next(iter(found or [layer for layer in producers if layer]), "")
        owners[operation.get_name()] = owner
    counts: dict[str, int] = {}
    for operation in operations:
        name = operation.get_friendly_name()
        if name in known:
            continue
        base = f"{owners[operation.get_name()]}{SEPARATOR}{operation.get_type_name()}"
        counts[base] = counts.get(base, -1) + 1
        operation.set_friendly_name(f"{base}.{counts[base]}")


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
