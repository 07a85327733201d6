"""NumPy meaning of convolution, pooling and the other operators on images.

Convolutions are sums over the taps of the kernel: for each tap one strided view of the input and one matrix
product. That needs no unrolled copy of the input, and it reads the same for 1, 2 and 3 axes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from types import MappingProxyType
from typing import Any

import numpy as np

from tamis.compiler.ir.infer_spatial import pooled_size, window_count
from tamis.compiler.ir.ops import (
    Conv,
    ConvTranspose,
    DepthToSpace,
    LocalResponseNorm,
    Pad,
    Pool,
    SpaceToDepth,
)

Arrays = Sequence[np.ndarray]


def _spatial_pad(x: np.ndarray, begin: Sequence[int], end: Sequence[int], value: float = 0) -> np.ndarray:
    if not any(begin) and not any(end):
        return x
    return np.pad(x, [(0, 0), (0, 0), *zip(begin, end, strict=True)], constant_values=value)


def _window(
    tap: Sequence[int], sizes: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> tuple[slice, ...]:
    """What one kernel tap sees of the padded input at all output positions."""
    places = zip(tap, sizes, strides, dilations, strict=True)
    cuts = (slice(t * d, t * d + (size - 1) * s + 1, s) for t, size, s, d in places)
    return (slice(None), slice(None), *cuts)


def _tap(weight: np.ndarray, tap: tuple[int, ...]) -> np.ndarray:
    """``weight`` [G,rows,columns,kernel...] at one position of the kernel."""
    index: Any = (..., *tap)
    return np.asarray(weight[index])


def _grouped_product(weight: np.ndarray, x: np.ndarray) -> np.ndarray:
    """``weight`` [G,K/G,C/G] times ``x`` [N,G,C/G,P] -> [N,G,K/G,P]; depthwise without a matrix product."""
    if weight.shape[2] == 1:
        return np.asarray(weight[None, :, :, 0, None] * x)
    return np.asarray(weight @ x)


def _conv(op: Conv, inputs: Arrays) -> np.ndarray:
    x, weight = inputs[:2]
    n, channels, *_ = x.shape
    filters, per_group, *kernel = weight.shape
    rank, groups = len(kernel), op.groups
    sizes = [
        window_count(x.shape[2 + i], kernel[i], op.strides[i], op.pads[i] + op.pads[i + rank], op.dilations[i])
        for i in range(rank)
    ]
    padded = _spatial_pad(x, op.pads[:rank], op.pads[rank:])
    taps = weight.reshape(groups, filters // groups, per_group, *kernel)
    result = np.zeros((n, groups, filters // groups, int(np.prod(sizes))), np.result_type(x, weight))
    for tap in product(*map(range, kernel)):
        seen = padded[_window(tap, sizes, op.strides, op.dilations)]
        seen = seen.reshape(n, groups, channels // groups, -1)
        result += _grouped_product(_tap(taps, tap), seen)
    result = result.reshape(n, filters, *sizes)
    return result + inputs[2].reshape(-1, *[1] * rank) if op.bias else result


def _conv_transpose(op: ConvTranspose, inputs: Arrays) -> np.ndarray:
    x, weight = inputs[:2]
    n, channels, *sizes = x.shape
    _, filters, *kernel = weight.shape
    rank, groups = len(kernel), op.groups
    full = [
        op.strides[i] * (sizes[i] - 1) + op.dilations[i] * (kernel[i] - 1) + 1 + op.output_pads[i] for i in range(rank)
    ]
    result = np.zeros((n, groups * filters, *full), np.result_type(x, weight))
    taps = np.swapaxes(weight.reshape(groups, channels // groups, filters, *kernel), 1, 2)
    flat = x.reshape(n, groups, channels // groups, -1)
    for tap in product(*map(range, kernel)):
        part = _grouped_product(_tap(taps, tap), flat).reshape(n, groups * filters, *sizes)
        result[_window(tap, sizes, op.strides, op.dilations)] += part
    crop = tuple(slice(op.pads[i], full[i] - op.pads[i + rank]) for i in range(rank))
    result = result[(slice(None), slice(None), *crop)]
    return result + inputs[2].reshape(-1, *[1] * rank) if op.bias else result


def _pool(op: Pool, inputs: Arrays) -> np.ndarray:
    x = inputs[0]
    rank = len(op.kernel)
    begin, end = op.pads[:rank], op.pads[rank:]
    sizes = [pooled_size(op, axis, size) for axis, size in enumerate(x.shape[2:])]
    # A partial last window (ceil) may hang over the padding; those cells are never counted.
    reach = [(sizes[i] - 1) * op.strides[i] + op.dilations[i] * (op.kernel[i] - 1) + 1 for i in range(rank)]
    over = [max(reach[i] - x.shape[2 + i] - begin[i] - end[i], 0) for i in range(rank)]
    bottom = np.iinfo(x.dtype).min if np.issubdtype(x.dtype, np.integer) else -np.inf
    after = [e + o for e, o in zip(end, over, strict=True)]
    padded = _spatial_pad(x, begin, after, bottom if op.kind == "max" else 0)
    windows = [_window(tap, sizes, op.strides, op.dilations) for tap in product(*map(range, op.kernel))]
    result = padded[windows[0]].copy()
    for window in windows[1:]:
        if op.kind == "max":
            np.maximum(result, padded[window], out=result)
        else:
            result += padded[window]
    if op.kind == "max":
        return result
    counted = np.ones((1, 1, *x.shape[2:]), np.int64)
    counted = _spatial_pad(_spatial_pad(counted, begin, end, int(op.count_pads)), [0] * rank, over)
    counts = np.sum([counted[window] for window in windows], axis=0)
    return np.asarray(result / np.maximum(counts, 1).astype(x.dtype))


def _pad(op: Pad, inputs: Arrays) -> np.ndarray:
    x = inputs[0]
    rank = x.ndim
    crop = tuple(slice(max(-op.pads[i], 0), x.shape[i] - max(-op.pads[i + rank], 0)) for i in range(rank))
    width = [(max(op.pads[i], 0), max(op.pads[i + rank], 0)) for i in range(rank)]
    if op.mode == "constant":
        return np.pad(x[crop], width, constant_values=x.dtype.type(op.value))
    return np.pad(x[crop], width, mode=op.mode)


def _depth_to_space(op: DepthToSpace, inputs: Arrays) -> np.ndarray:
    n, c, h, w = inputs[0].shape
    b = op.block
    if op.mode == "DCR":
        cut = inputs[0].reshape(n, b, b, c // b**2, h, w).transpose(0, 3, 4, 1, 5, 2)
    else:
        cut = inputs[0].reshape(n, c // b**2, b, b, h, w).transpose(0, 1, 4, 2, 5, 3)
    return cut.reshape(n, c // b**2, h * b, w * b)


def _space_to_depth(op: SpaceToDepth, inputs: Arrays) -> np.ndarray:
    n, c, h, w = inputs[0].shape
    b = op.block
    cut = inputs[0].reshape(n, c, h // b, b, w // b, b).transpose(0, 3, 5, 1, 2, 4)
    return cut.reshape(n, c * b**2, h // b, w // b)


def _local_response_norm(op: LocalResponseNorm, inputs: Arrays) -> np.ndarray:
    x = inputs[0]
    channels = x.shape[1]
    before, after = (op.size - 1) // 2, op.size - 1 - (op.size - 1) // 2
    squares = np.zeros_like(x)
    for channel in range(channels):
        window = slice(max(0, channel - before), min(channels, channel + after + 1))
        squares[:, channel] = (x[:, window] ** 2).sum(axis=1)
    scalar = x.dtype.type
    return np.asarray(x / (scalar(op.bias) + scalar(op.alpha / op.size) * squares) ** scalar(op.beta))


SPATIAL: Mapping[type, Callable[[Any, Arrays], np.ndarray]] = MappingProxyType(
    {
        Conv: _conv,
        ConvTranspose: _conv_transpose,
        Pool: _pool,
        Pad: _pad,
        DepthToSpace: _depth_to_space,
        SpaceToDepth: _space_to_depth,
        LocalResponseNorm: _local_response_norm,
    }
)
