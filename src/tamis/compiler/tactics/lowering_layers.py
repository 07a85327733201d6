"""Layers that compute, as ONNX nodes: convolutions, matrix products, normalisations, pooling."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tamis.compiler.ir.graph import Node
from tamis.compiler.ir.ops import (
    Attention,
    BatchNorm,
    Conv,
    ConvTranspose,
    Dequantize,
    Einsum,
    Elementwise,
    GroupNorm,
    LayerNorm,
    Linear,
    LocalResponseNorm,
    MatMul,
    Pool,
    Quantize,
    Softmax,
    epilogue_of,
)
from tamis.compiler.tactics.lowering_pointwise import lower_program
from tamis.compiler.tactics.lowering_writer import Writer, onnx_type
from tamis.formats.dtype import DType


def _with_epilogue(writer: Writer, node: Node, kind: str, inputs: Sequence[str], **attributes: Any) -> None:
    """One ONNX node and the layer's epilogue behind it."""
    program = epilogue_of(node.op)
    value = writer.add(kind, inputs, None if program else node.output, **attributes)
    if program:
        lower_program(writer, program, node, value, DType.FLOAT32)


def conv(writer: Writer, node: Node, op: Conv) -> None:
    """Conv with its epilogue."""
    _with_epilogue(
        writer, node, "Conv", node.inputs[: 3 if op.bias else 2], strides=op.strides, pads=op.pads,
        dilations=op.dilations, group=op.groups,
    )  # fmt: skip


def conv_transpose(writer: Writer, node: Node, op: ConvTranspose) -> None:
    """ConvTranspose with its epilogue."""
    _with_epilogue(
        writer, node, "ConvTranspose", node.inputs[: 3 if op.bias else 2], strides=op.strides, pads=op.pads,
        dilations=op.dilations, output_padding=op.output_pads, group=op.groups,
    )  # fmt: skip


def linear(writer: Writer, node: Node, op: Linear) -> None:
    """Gemm for a matrix; for other ranks MatMul by the transposed weight, and Add."""
    x, weight = node.inputs[:2]
    if len(writer.shape(x)) == 2:
        _with_epilogue(writer, node, "Gemm", node.inputs[: 3 if op.bias else 2], transB=1)
        return
    if weight in writer.graph.constants:
        turned = writer.constant(np.ascontiguousarray(writer.graph.constants[weight].T))
    else:
        turned = writer.add("Transpose", [weight], perm=(1, 0))
    if not op.bias:
        _with_epilogue(writer, node, "MatMul", [x, turned])
        return
    _with_epilogue(writer, node, "Add", [writer.add("MatMul", [x, turned]), node.inputs[2]])


def mat_mul(writer: Writer, node: Node, op: MatMul) -> None:
    """MatMul with its epilogue."""
    _with_epilogue(writer, node, "MatMul", node.inputs[:2])


def attention(writer: Writer, node: Node, op: Attention) -> None:
    """MatMul, Softmax, MatMul: the form that OpenVINO makes one node of."""
    q, k, v = node.inputs[:3]
    rank = len(writer.shape(k))
    turned = writer.add("Transpose", [k], perm=(*range(rank - 2), rank - 1, rank - 2))
    scores = writer.add("MatMul", [q, turned])
    if op.scale != 1.0:
        scores = writer.add("Mul", [scores, writer.constant(np.array(op.scale, np.float32))])
    if op.mask:
        mask = node.inputs[3]
        if writer.dtype(mask) == DType.BOOL:
            lowest = writer.constant(np.array(-np.inf, np.float32))
            scores = writer.add("Where", [mask, scores, lowest])
        else:
            scores = writer.add("Add", [scores, mask])
    some_kept = _rows_kept(writer, node.inputs[3]) if op.mask else None
    mixed = writer.add("MatMul", [writer.add("Softmax", [scores], axis=-1), v], None if some_kept else node.output)
    if some_kept:
        # Not on the probabilities: this leaves the pattern whole that OpenVINO fuses, and is smaller.
        writer.add("Where", [some_kept, mixed, writer.constant(np.array(0, np.float32))], node.output)


def _rows_kept(writer: Writer, mask: str) -> str | None:
    """Where a row of the mask lets anything through, as a value; None when it is known that all rows do."""
    boolean = writer.dtype(mask) == DType.BOOL
    known = writer.graph.constants.get(mask)
    if known is not None:
        kept = known.any(axis=-1, keepdims=True) if boolean else (known > -np.inf).any(axis=-1, keepdims=True)
        return None if kept.all() else writer.constant(np.asarray(kept))
    if not boolean:
        # Compared before reducing: OpenVINO's largest of nothing but -inf is the lowest finite number.
        mask = writer.add("Greater", [mask, writer.constant(np.array(-np.inf, np.float32))])
    numbers = writer.add("Cast", [mask], to=onnx_type(DType.FLOAT32))
    most = writer.add("ReduceMax", [numbers, writer.integers((-1,))], keepdims=1)
    return writer.add("Cast", [most], to=onnx_type(DType.BOOL))


def elementwise(writer: Writer, node: Node, op: Elementwise) -> None:
    """The program as ordinary nodes."""
    lower_program(writer, op.program, node, node.inputs[0], writer.dtype(node.inputs[0]))


def softmax(writer: Writer, node: Node, op: Softmax) -> None:
    """Softmax or LogSoftmax."""
    writer.add("LogSoftmax" if op.log else "Softmax", node.inputs, node.output, axis=op.axis)


def layer_norm(writer: Writer, node: Node, op: LayerNorm) -> None:
    """Add for the residual, then LayerNormalization, or root mean square normalisation in parts."""
    x = node.inputs[0]
    if op.residual:
        x = writer.add("Add", [x, node.inputs[-1]], node.outputs[1] if len(node.outputs) > 1 else None)
    parameters = list(node.inputs[1 : 1 + op.scale + op.bias])
    if op.rms:
        _rms_norm(writer, node, op, x, parameters)
        return
    shape = writer.shape(node.inputs[0])[op.axis :]
    parameters = [_expanded(writer, parameter, shape) for parameter in parameters]
    if not op.scale:
        # ONNX wants a scale.
        parameters.insert(0, writer.constant(np.ones(shape, np.float32)))
    writer.add("LayerNormalization", [x, *parameters], node.output, axis=op.axis, epsilon=op.epsilon)


def _expanded(writer: Writer, value: str, shape: tuple[int, ...]) -> str:
    """A parameter in the full shape, as OpenVINO wants it."""
    if writer.shape(value) == shape:
        return value
    if value in writer.graph.constants:
        return writer.constant(np.broadcast_to(writer.graph.constants[value], shape))
    return writer.add("Expand", [value, writer.integers(shape)])


def _rms_norm(writer: Writer, node: Node, op: LayerNorm, x: str, parameters: list[str]) -> None:
    square = writer.add("Pow", [x, writer.constant(np.array(2.0, np.float32))])
    axes = writer.integers(range(op.axis, 0))
    mean = writer.add("ReduceMean", [square, axes], keepdims=1)
    root = writer.add("Sqrt", [writer.add("Add", [mean, writer.constant(np.array(op.epsilon, np.float32))])])
    value = writer.add("Div", [x, root], None if parameters else node.output)
    for index, parameter in enumerate(parameters):
        kind = "Mul" if op.scale and index == 0 else "Add"
        value = writer.add(kind, [value, parameter], node.output if index == len(parameters) - 1 else None)


def batch_norm(writer: Writer, node: Node, op: BatchNorm) -> None:
    """BatchNormalization."""
    writer.add("BatchNormalization", node.inputs, node.output, epsilon=op.epsilon)


def group_norm(writer: Writer, node: Node, op: GroupNorm) -> None:
    """InstanceNormalization, for groups of channels on the tensor with a group as one channel."""
    x, scale, bias = node.inputs
    shape = writer.shape(x)
    if op.groups == shape[1] and len(shape) > 2:
        writer.add("InstanceNormalization", node.inputs, node.output, epsilon=op.epsilon)
        return
    grouped = writer.add("Reshape", [x, writer.integers((shape[0], op.groups, -1))])
    ones = writer.constant(np.ones(op.groups, np.float32))
    zeros = writer.constant(np.zeros(op.groups, np.float32))
    normal = writer.add("InstanceNormalization", [grouped, ones, zeros], epsilon=op.epsilon)
    value = writer.add("Reshape", [normal, writer.integers(shape)])
    column = writer.integers((-1, *(1 for _ in shape[2:])))
    value = writer.add("Mul", [value, writer.add("Reshape", [scale, column])])
    writer.add("Add", [value, writer.add("Reshape", [bias, column])], node.output)


def local_response_norm(writer: Writer, node: Node, op: LocalResponseNorm) -> None:
    """LRN."""
    writer.add("LRN", node.inputs, node.output, size=op.size, alpha=op.alpha, beta=op.beta, bias=op.bias)


def pool(writer: Writer, node: Node, op: Pool) -> None:
    """MaxPool or AveragePool."""
    more = {} if op.kind == "max" else {"count_include_pad": int(op.count_pads)}
    writer.add(
        "MaxPool" if op.kind == "max" else "AveragePool", node.inputs, node.output, kernel_shape=op.kernel,
        strides=op.strides, pads=op.pads, dilations=op.dilations, ceil_mode=int(op.ceil), **more,
    )  # fmt: skip


def einsum(writer: Writer, node: Node, op: Einsum) -> None:
    """Einsum."""
    writer.add("Einsum", node.inputs, node.output, equation=op.equation)


def quantize(writer: Writer, node: Node, op: Quantize) -> None:
    """QuantizeLinear; the zero point gives the type."""
    writer.add("QuantizeLinear", node.inputs, node.output, axis=op.axis)


def dequantize(writer: Writer, node: Node, op: Dequantize) -> None:
    """DequantizeLinear."""
    writer.add("DequantizeLinear", node.inputs, node.output, axis=op.axis)


LAYERS: Mapping[type, Callable[[Writer, Node, Any], None]] = {
    Attention: attention,
    BatchNorm: batch_norm,
    Conv: conv,
    ConvTranspose: conv_transpose,
    Dequantize: dequantize,
    Einsum: einsum,
    Elementwise: elementwise,
    GroupNorm: group_norm,
    LayerNorm: layer_norm,
    Linear: linear,
    LocalResponseNorm: local_response_norm,
    MatMul: mat_mul,
    Pool: pool,
    Quantize: quantize,
    Softmax: softmax,
}
