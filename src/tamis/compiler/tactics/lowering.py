"""Regions of the graph as ONNX models, and as OpenVINO's files.

Every ONNX node is named ``<layer>#<number>``, so that what a library reports can be mapped back to layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import helper

from tamis.compiler.ir.graph import Graph, Node
from tamis.compiler.ir.ops import Cast, LocalResponseNorm, Pool, Quantize, Reduce, Resize
from tamis.compiler.tactics.lowering_layers import LAYERS
from tamis.compiler.tactics.lowering_movement import MOVEMENTS
from tamis.compiler.tactics.lowering_openvino import to_openvino
from tamis.compiler.tactics.lowering_writer import Writer, value_info
from tamis.errors import BuildError
from tamis.formats.dtype import DType

__all__ = ["lower_to_onnx", "refuses_lowering", "to_openvino"]

OPSET = 20
IR_VERSION = 9


def refuses_lowering(node: Node) -> str | None:
    """Why a layer has no counterpart in ONNX that OpenVINO runs with the same meaning, or None."""
    op = node.op
    if type(op) not in LAYERS and type(op) not in MOVEMENTS:
        return f"{type(op).__name__} is not among the operators that can be lowered"
    if isinstance(op, Reduce) and not op.axes:
        return "a reduction over no axes means something else in ONNX"
    if isinstance(op, Cast | Quantize) and op.to == DType.FLOAT8_E4M3:
        return "float8 is not lowered"
    if isinstance(op, LocalResponseNorm) and op.size % 2 == 0:
        return "OpenVINO centres an even window of channels elsewhere"
    if isinstance(op, Pool) and op.ceil and any(op.pads):
        return "OpenVINO counts partial windows beside padding differently"
    if isinstance(op, Resize):
        return _refuses_resize(op)
    return None


def _refuses_resize(op: Resize) -> str | None:
    if any(scale != 1 for scale in op.scales[:2]):
        return "OpenVINO resizes spatial axes only"
    if op.coordinates == "half_pixel_symmetric":
        return "OpenVINO has no half_pixel_symmetric coordinates"
    if op.exclude_outside and op.mode != "nearest":
        return "OpenVINO has no exclude_outside"
    return None


def lower_to_onnx(
    graph: Graph, nodes: Sequence[Node], inputs: Sequence[str], outputs: Sequence[str]
) -> onnx.ModelProto:
    """A region of the graph as an ONNX model with the given inputs and outputs, in that order.

    Raises ``BuildError`` for a layer that ``refuses_lowering``.
    """
    writer = Writer(graph)
    for node in nodes:
        reason = refuses_lowering(node)
        if reason is not None:
            raise BuildError(f"cannot be lowered to ONNX: {reason}", layer=node.name)
        writer.begin(node)
        lower = LAYERS.get(type(node.op)) or MOVEMENTS[type(node.op)]
        lower(writer, node, node.op)
    body = helper.make_graph(
        writer.nodes,
        "region",
        [value_info(name, graph.types[name]) for name in inputs],
        [value_info(name, graph.types[name]) for name in outputs],
        writer.initializers(),
    )
    return helper.make_model(
        body, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="tamis"
    )
