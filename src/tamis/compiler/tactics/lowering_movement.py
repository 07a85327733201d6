"""Layers that move, select or reduce elements, as ONNX nodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tamis.compiler.ir.graph import Node
from tamis.compiler.ir.ops import (
    ArgReduce,
    Cast,
    Concat,
    CumSum,
    DepthToSpace,
    Expand,
    Gather,
    GatherElements,
    GatherND,
    Pad,
    Reduce,
    Reshape,
    Resize,
    ScatterElements,
    ScatterND,
    Slice,
    SpaceToDepth,
    Split,
    Tile,
    TopK,
    Transpose,
    Triangle,
    Where,
)
from tamis.compiler.tactics.lowering_writer import Writer, onnx_type

_REDUCE = {
    "mean": "ReduceMean", "sum": "ReduceSum", "max": "ReduceMax", "min": "ReduceMin", "prod": "ReduceProd",
    "l1": "ReduceL1", "l2": "ReduceL2", "sum_square": "ReduceSumSquare", "log_sum": "ReduceLogSum",
    "log_sum_exp": "ReduceLogSumExp",
}  # fmt: skip


def where(writer: Writer, node: Node, op: Where) -> None:
    """Where."""
    writer.add("Where", node.inputs, node.output)


def cast(writer: Writer, node: Node, op: Cast) -> None:
    """Cast."""
    writer.add("Cast", node.inputs, node.output, to=onnx_type(op.to))


def reduce(writer: Writer, node: Node, op: Reduce) -> None:
    """One of ONNX's reductions."""
    writer.add(_REDUCE[op.kind], [*node.inputs, writer.integers(op.axes)], node.output, keepdims=int(op.keep))


def arg_reduce(writer: Writer, node: Node, op: ArgReduce) -> None:
    """ArgMax or ArgMin."""
    kind = "ArgMax" if op.kind == "max" else "ArgMin"
    writer.add(kind, node.inputs, node.output, axis=op.axis, keepdims=int(op.keep), select_last_index=int(op.last))


def top_k(writer: Writer, node: Node, op: TopK) -> None:
    """TopK."""
    inputs = [*node.inputs, writer.integers((op.k,))]
    writer.add_many("TopK", inputs, node.outputs, axis=op.axis, largest=int(op.largest), sorted=1)


def reshape(writer: Writer, node: Node, op: Reshape) -> None:
    """Reshape to the concrete shape."""
    more = {"allowzero": 1} if 0 in op.shape else {}
    writer.add("Reshape", [*node.inputs, writer.integers(op.shape)], node.output, **more)


def transpose(writer: Writer, node: Node, op: Transpose) -> None:
    """Transpose."""
    writer.add("Transpose", node.inputs, node.output, perm=op.perm)


def concat(writer: Writer, node: Node, op: Concat) -> None:
    """Concat."""
    writer.add("Concat", node.inputs, node.output, axis=op.axis)


def split(writer: Writer, node: Node, op: Split) -> None:
    """Split into the given sizes."""
    writer.add_many("Split", [*node.inputs, writer.integers(op.sizes)], node.outputs, axis=op.axis)


def slice_(writer: Writer, node: Node, op: Slice) -> None:
    """Slice with every bound made concrete."""
    shape = writer.shape(node.inputs[0])
    starts, ends = [], []
    for axis, start, stop, step in zip(op.axes, op.starts, op.stops, op.steps, strict=True):
        first, last, _ = slice(start, stop, step).indices(shape[axis])
        starts.append(first)
        # Backward to the very beginning: one before it, counted from the end.
        ends.append(last if last >= 0 else -shape[axis] - 1)
    lists = [writer.integers(values) for values in (starts, ends, op.axes, op.steps)]
    writer.add("Slice", [*node.inputs, *lists], node.output)


def gather(writer: Writer, node: Node, op: Gather) -> None:
    """Gather."""
    writer.add("Gather", node.inputs, node.output, axis=op.axis)


def gather_elements(writer: Writer, node: Node, op: GatherElements) -> None:
    """GatherElements, of no more data than the indices reach: OpenVINO wants the other axes equal."""
    data, indices = node.inputs
    shape, reach = writer.shape(data), writer.shape(indices)
    axes = [axis for axis in range(len(shape)) if axis != op.axis % len(shape) and shape[axis] != reach[axis]]
    for axis in axes:
        # Not Slice: OpenVINO (2026.4) drops it before GatherElements and then finds the shapes wrong.
        data = writer.add("Gather", [data, writer.integers(range(reach[axis]))], axis=axis)
    writer.add("GatherElements", [data, indices], node.output, axis=op.axis)


def gather_nd(writer: Writer, node: Node, op: GatherND) -> None:
    """GatherND."""
    writer.add("GatherND", node.inputs, node.output, batch_dims=op.batch_dims)


def scatter_elements(writer: Writer, node: Node, op: ScatterElements) -> None:
    """ScatterElements."""
    writer.add("ScatterElements", node.inputs, node.output, axis=op.axis, reduction=op.reduction)


def scatter_nd(writer: Writer, node: Node, op: ScatterND) -> None:
    """ScatterND."""
    writer.add("ScatterND", node.inputs, node.output, reduction=op.reduction)


def expand(writer: Writer, node: Node, op: Expand) -> None:
    """Expand."""
    writer.add("Expand", [*node.inputs, writer.integers(op.shape)], node.output)


def tile(writer: Writer, node: Node, op: Tile) -> None:
    """Tile."""
    writer.add("Tile", [*node.inputs, writer.integers(op.repeats)], node.output)


def pad(writer: Writer, node: Node, op: Pad) -> None:
    """Pad; by gathering along each axis where the padding wraps around or reflects more than once."""
    shape = writer.shape(node.inputs[0])
    far = any(amount >= size for amount, size in zip(op.pads, shape * 2, strict=True))
    if op.mode == "wrap" or (op.mode == "reflect" and far):
        _pad_by_gather(writer, node, op, shape)
        return
    inputs = [*node.inputs, writer.integers(op.pads)]
    if op.mode == "constant":
        inputs.append(writer.constant(np.array(op.value).astype(writer.dtype(node.inputs[0]).numpy)))
    writer.add("Pad", inputs, node.output, mode=op.mode)


def _pad_by_gather(writer: Writer, node: Node, op: Pad, shape: tuple[int, ...]) -> None:
    value, rank = node.inputs[0], len(shape)
    padded = [axis for axis in range(rank) if op.pads[axis] or op.pads[axis + rank]]
    for axis in padded:
        begin, end = op.pads[axis], op.pads[axis + rank]
        kept = np.arange(max(-begin, 0), shape[axis] - max(-end, 0))
        index = np.pad(kept, (max(begin, 0), max(end, 0)), mode=op.mode)
        last = node.output if axis == padded[-1] else None
        value = writer.add("Gather", [value, writer.integers(index)], last, axis=axis)
    if not padded:
        writer.add("Identity", [value], node.output)


def resize(writer: Writer, node: Node, op: Resize) -> None:
    """Resize by sizes where they imply the scales, else by scales."""
    shape = writer.shape(node.inputs[0])
    implied = np.array(op.shape, np.float64) / np.maximum(np.array(shape, np.float64), 1)
    if np.allclose(implied, op.scales, rtol=1e-6, atol=0):
        inputs = [*node.inputs, "", "", writer.integers(op.shape)]
    else:
        inputs = [*node.inputs, "", writer.constant(np.array(op.scales, np.float32))]
    writer.add(
        "Resize", inputs, node.output, mode=op.mode, coordinate_transformation_mode=op.coordinates,
        nearest_mode=op.nearest, cubic_coeff_a=op.cubic_coefficient, exclude_outside=int(op.exclude_outside),
    )  # fmt: skip


def depth_to_space(writer: Writer, node: Node, op: DepthToSpace) -> None:
    """DepthToSpace."""
    writer.add("DepthToSpace", node.inputs, node.output, blocksize=op.block, mode=op.mode)


def space_to_depth(writer: Writer, node: Node, op: SpaceToDepth) -> None:
    """SpaceToDepth."""
    writer.add("SpaceToDepth", node.inputs, node.output, blocksize=op.block)


def cum_sum(writer: Writer, node: Node, op: CumSum) -> None:
    """CumSum."""
    axis = writer.constant(np.array(op.axis, np.int64))
    more = {"exclusive": int(op.exclusive), "reverse": int(op.reverse)}
    writer.add("CumSum", [*node.inputs, axis], node.output, **more)


def triangle(writer: Writer, node: Node, op: Triangle) -> None:
    """Trilu."""
    diagonal = writer.constant(np.array(op.diagonal, np.int64))
    writer.add("Trilu", [*node.inputs, diagonal], node.output, upper=int(op.upper))


MOVEMENTS: Mapping[type, Callable[[Writer, Node, Any], None]] = {
    ArgReduce: arg_reduce,
    Cast: cast,
    Concat: concat,
    CumSum: cum_sum,
    DepthToSpace: depth_to_space,
    Expand: expand,
    Gather: gather,
    GatherElements: gather_elements,
    GatherND: gather_nd,
    Pad: pad,
    Reduce: reduce,
    Reshape: reshape,
    Resize: resize,
    ScatterElements: scatter_elements,
    ScatterND: scatter_nd,
    Slice: slice_,
    SpaceToDepth: space_to_depth,
    Split: split,
    Tile: tile,
    TopK: top_k,
    Transpose: transpose,
    Triangle: triangle,
    Where: where,
}
