"""Shape rules of the operators that look at images: convolution, pooling, resampling."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from tamis.compiler.ir.graph import TensorType
from tamis.compiler.ir.infer_support import need, refuse, same_dtype
from tamis.compiler.ir.ops import (
    Conv,
    ConvTranspose,
    DepthToSpace,
    LocalResponseNorm,
    Op,
    Pad,
    Pool,
    Resize,
    SpaceToDepth,
)

Types = tuple[TensorType, ...]


def window_count(size: int, kernel: int, stride: int, pads: int, dilation: int) -> int:
    """Positions of a window along one axis, rounded down."""
    return (size + pads - dilation * (kernel - 1) - 1) // stride + 1


def pooled_size(op: Pool, axis: int, size: int) -> int:
    """Positions of a pooling window along one spatial axis of ``size`` elements.

    With ``ceil`` a last partial window counts if it starts inside the input or its padding at the beginning
    (the rule of torch, and of ONNX since 1.17).
    """
    kernel, stride, dilation = op.kernel[axis], op.strides[axis], op.dilations[axis]
    begin, end = op.pads[axis], op.pads[axis + len(op.kernel)]
    count = window_count(size, kernel, stride, begin + end, dilation)
    room = size + begin + end - dilation * (kernel - 1) - 1
    if op.ceil and room % stride and count * stride < size + begin:
        count += 1
    return count


def _geometry(op: Conv | ConvTranspose | Pool, spatial: int) -> None:
    lengths = {"strides": (op.strides, 1), "dilations": (op.dilations, 1), "pads": (op.pads, 2)}
    for name, (values, times) in lengths.items():
        if len(values) != spatial * times:
            raise refuse(op, f"{name} {list(values)} must have {spatial * times} entries")
    if min(*op.strides, *op.dilations) < 1:
        raise refuse(op, "strides and dilations must be at least 1")
    if min(op.pads) < 0:
        raise refuse(op, f"pads {list(op.pads)} must not be negative")


def _weight_and_bias(op: Conv | ConvTranspose, inputs: Types, outputs: int) -> None:
    x, weight = inputs[:2]
    if len(x.shape) < 3 or len(weight.shape) != len(x.shape):
        raise refuse(op, f"x {x} and weight {weight} must have the same rank, at least three")
    _geometry(op, len(x.shape) - 2)
    if op.bias and inputs[2].shape != (outputs,):
        raise refuse(op, f"bias {inputs[2]} must have {outputs} elements")
    same_dtype(op, inputs[: 3 if op.bias else 2])


def _conv(op: Conv, inputs: Types) -> Types:
    need(op, inputs, 3 if op.bias else 2, most=None)
    x, weight = inputs[:2]
    _weight_and_bias(op, inputs, weight.shape[0] if weight.shape else 0)
    if op.groups < 1 or x.shape[1] != weight.shape[1] * op.groups or weight.shape[0] % op.groups:
        raise refuse(op, f"x {x} does not fit weight {weight} in {op.groups} groups")
    rank = len(x.shape) - 2
    sizes = tuple(
        window_count(
            x.shape[2 + i],
            weight.shape[2 + i],
            op.strides[i],
            op.pads[i] + op.pads[i + rank],
            op.dilations[i],
        )
        for i in range(rank)
    )
    if min(sizes) < 1:
        raise refuse(op, f"the kernel of {weight} is larger than the padded input {x}")
    return (TensorType((x.shape[0], weight.shape[0], *sizes), x.dtype),)


def _conv_transpose(op: ConvTranspose, inputs: Types) -> Types:
    need(op, inputs, 3 if op.bias else 2, most=None)
    x, weight = inputs[:2]
    channels = weight.shape[1] * op.groups if len(weight.shape) > 1 else 0
    _weight_and_bias(op, inputs, channels)
    if op.groups < 1 or x.shape[1] != weight.shape[0] or x.shape[1] % op.groups:
        raise refuse(op, f"x {x} does not fit weight {weight} in {op.groups} groups")
    rank = len(x.shape) - 2
    if len(op.output_pads) != rank:
        raise refuse(op, f"output_pads {list(op.output_pads)} must have {rank} entries")
    sizes = tuple(
        op.strides[i] * (x.shape[2 + i] - 1)
        + op.output_pads[i]
        + op.dilations[i] * (weight.shape[2 + i] - 1)
        + 1
        - op.pads[i]
        - op.pads[i + rank]
        for i in range(rank)
    )
    if min(sizes) < 1:
        raise refuse(op, f"pads {list(op.pads)} leave nothing of the result {list(sizes)}")
    return (TensorType((x.shape[0], channels, *sizes), x.dtype),)


def _pool(op: Pool, inputs: Types) -> Types:
    need(op, inputs, 1)
    x = inputs[0]
    rank = len(x.shape) - 2
    if rank < 1 or len(op.kernel) != rank:
        raise refuse(op, f"kernel {list(op.kernel)} does not fit x {x}")
    _geometry(op, rank)
    sizes = tuple(pooled_size(op, axis, size) for axis, size in enumerate(x.shape[2:]))
    if min(sizes) < 1:
        raise refuse(op, f"the kernel {list(op.kernel)} is larger than the padded input {x}")
    return (TensorType((*x.shape[:2], *sizes), x.dtype),)


def _resize(op: Resize, inputs: Types) -> Types:
    need(op, inputs, 1)
    if len(op.shape) != len(inputs[0].shape) or len(op.scales) != len(op.shape):
        raise refuse(op, f"shape {list(op.shape)} and scales {list(op.scales)} do not fit x {inputs[0]}")
    if min(op.shape, default=1) < 1:
        raise refuse(op, f"nothing is left of the result {list(op.shape)}")
    return (TensorType(op.shape, inputs[0].dtype),)


def _pad(op: Pad, inputs: Types) -> Types:
    need(op, inputs, 1)
    x = inputs[0]
    rank = len(x.shape)
    if len(op.pads) != 2 * rank:
        raise refuse(op, f"pads {list(op.pads)} must have {2 * rank} entries")
    shape = tuple(x.shape[i] + op.pads[i] + op.pads[i + rank] for i in range(rank))
    if min(shape, default=0) < 0:
        raise refuse(op, f"pads {list(op.pads)} leave nothing of x {x}")
    return (TensorType(shape, x.dtype),)


def _depth_to_space(op: DepthToSpace, inputs: Types) -> Types:
    need(op, inputs, 1)
    n, c, h, w = _image(op, inputs[0])
    if op.block < 1 or c % op.block**2:
        raise refuse(op, f"{c} channels cannot be cut into blocks of {op.block} x {op.block}")
    return (TensorType((n, c // op.block**2, h * op.block, w * op.block), inputs[0].dtype),)


def _space_to_depth(op: SpaceToDepth, inputs: Types) -> Types:
    need(op, inputs, 1)
    n, c, h, w = _image(op, inputs[0])
    if op.block < 1 or h % op.block or w % op.block:
        raise refuse(op, f"an image of {h} x {w} cannot be cut into blocks of {op.block} x {op.block}")
    return (TensorType((n, c * op.block**2, h // op.block, w // op.block), inputs[0].dtype),)


def _image(op: Op, x: TensorType) -> tuple[int, ...]:
    if len(x.shape) != 4:
        raise refuse(op, f"x {x} must be [N,C,H,W]")
    return x.shape


def _local_response_norm(op: LocalResponseNorm, inputs: Types) -> Types:
    need(op, inputs, 1)
    if len(inputs[0].shape) < 2:
        raise refuse(op, f"x {inputs[0]} must be [N,C,...]")
    return (inputs[0],)


SPATIAL_RULES: Mapping[type, Callable[[Any, Types], Types]] = MappingProxyType(
    {
        Conv: _conv,
        ConvTranspose: _conv_transpose,
        Pool: _pool,
        Resize: _resize,
        Pad: _pad,
        DepthToSpace: _depth_to_space,
        SpaceToDepth: _space_to_depth,
        LocalResponseNorm: _local_response_norm,
    }
)
