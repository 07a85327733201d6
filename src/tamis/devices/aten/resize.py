"""Resize with exactly ONNX's coordinates.

Torch's own resampling where its coordinates are the same; otherwise, since every mode is separable, a gather
(nearest) or a small matrix product (linear, cubic) along each axis that changes, prepared while binding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tamis.devices.aten.binding import Binding, Prepared
from tamis.devices.aten.pointwise import nn


@dataclass(frozen=True)
class _Axis:
    """One axis that is resampled: input size, output size and the scale that maps coordinates."""

    axis: int
    size: int
    count: int
    scale: float


def resize(binding: Binding) -> Prepared:
    """``aten.resize``."""
    a = binding.attributes
    x = binding.argument(0)
    shape, scales = [int(v) for v in a["shape"]], [float(v) for v in a["scales"]]
    axes = [
        _Axis(axis, size, shape[axis], scales[axis])
        for axis, size in enumerate(x.shape)
        if shape[axis] != size or scales[axis] != 1
    ]
    if not axes:
        return Prepared(lambda x: x.clone(), (x,))
    fast = _by_torch(binding, axes)
    if fast is not None:
        return Prepared(fast, (x,))
    if a["mode"] == "nearest":
        picks = [(axis.axis, torch.as_tensor(_nearest(a, axis))) for axis in axes]
        return Prepared(lambda x: _pick(x, picks), (x,))
    between = x.dtype if x.dtype in (torch.float32, torch.float64) else torch.float32
    matrices = [(axis.axis, torch.as_tensor(_weights(a, axis)).to(between)) for axis in axes]
    return Prepared(lambda x: _multiply(x.to(between), matrices).to(x.dtype), (x,))


def _pick(x: torch.Tensor, picks: Sequence[tuple[int, torch.Tensor]]) -> torch.Tensor:
    for axis, index in picks:
        x = torch.index_select(x, axis, index)
    return x


def _multiply(x: torch.Tensor, matrices: Sequence[tuple[int, torch.Tensor]]) -> torch.Tensor:
    for axis, matrix in matrices:
        x = torch.movedim(nn.linear(torch.movedim(x, axis, -1), matrix), -1, axis)
    return x


def _by_torch(binding: Binding, axes: Sequence[_Axis]) -> Callable[[Any], Any] | None:
    """Torch's kernel for the last two axes of an image, or None where its coordinates differ."""
    a, x = binding.attributes, binding.argument(0)
    if len(x.shape) != 4 or any(axis.axis < 2 for axis in axes) or not x.dtype.is_floating_point:
        return None
    size, scales = [int(v) for v in a["shape"][2:]], [float(v) for v in a["scales"][2:]]
    rows, columns = (_Axis(2 + i, x.shape[2 + i], size[i], scales[i]) for i in range(2))
    if a["mode"] == "nearest":
        same = all(
            np.array_equal(_nearest(a, axis), np.arange(axis.count) * axis.size // axis.count)
            and axis.count % axis.size == 0
            for axis in (rows, columns)
        )
        return (lambda x: nn.upsample_nearest2d(x, size)) if same else None
    corners = a["coordinates"] == "align_corners"
    if not corners and a["coordinates"] != "half_pixel":
        return None
    if a["mode"] == "linear" and not a.get("exclude_outside"):
        return lambda x: nn.upsample_bilinear2d(x, size, corners, *scales)
    if a["mode"] == "cubic" and not a.get("exclude_outside") and a.get("cubic_coefficient", -0.75) == -0.75:
        return lambda x: nn.upsample_bicubic2d(x, size, corners, *scales)
    return None


def _coordinates(kind: str, axis: _Axis) -> np.ndarray:
    """Where each output position lies in the input (ONNX Resize, ``coordinate_transformation_mode``)."""
    x = np.arange(axis.count, dtype=np.float64)
    half = (x + 0.5) / axis.scale - 0.5
    if kind == "half_pixel":
        return half
    if kind == "half_pixel_symmetric":
        adjustment = axis.count / (axis.scale * axis.size)
        return axis.size / 2 * (1 - adjustment) + half
    if kind == "pytorch_half_pixel":
        return half if axis.count > 1 else np.zeros(1)
    if kind == "align_corners":
        # By the rounded size, whatever the scale says.
        span = max(axis.count - 1, 1)
        return np.asarray(x * (axis.size - 1) / span)
    return np.asarray(x / axis.scale)


def _nearest(a: Any, axis: _Axis) -> np.ndarray:
    x = _coordinates(a["coordinates"], axis)
    # Scales come in float32: exact halves and integers may be off by that much, and fall to the wrong side.
    snapped = np.round(x * 2) / 2
    x = np.where(np.abs(x - snapped) < 1e-6 * np.maximum(np.abs(x), 1), snapped, x)
    rounding = {
        "round_prefer_floor": np.ceil(x - 0.5),
        "round_prefer_ceil": np.floor(x + 0.5),
        "floor": np.floor(x),
        "ceil": np.ceil(x),
    }
    chosen = rounding[a.get("nearest", "round_prefer_floor")]
    return np.asarray(np.clip(chosen, 0, axis.size - 1), dtype=np.int64)


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
    """Keys' kernel with parameter ``a``."""
    d = np.abs(distance)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def _weights(a: Any, axis: _Axis) -> np.ndarray:
    """Interpolation along one axis as a matrix [outputs, inputs]."""
    x = _coordinates(a["coordinates"], axis)
    base = np.floor(x).astype(np.int64)
    matrix = np.zeros((axis.count, axis.size))
    rows = np.arange(axis.count)
    for offset in (0, 1) if a["mode"] == "linear" else (-1, 0, 1, 2):
        source = base + offset
        distance = x - source
        weight = (
            _cubic(distance, float(a.get("cubic_coefficient", -0.75))) if a["mode"] == "cubic" else 1 - np.abs(distance)
        )
        if a.get("exclude_outside"):
            weight = np.where((source >= 0) & (source < axis.size), weight, 0.0)
        np.add.at(matrix, (rows, np.clip(source, 0, axis.size - 1)), weight)
    return matrix / matrix.sum(axis=1, keepdims=True) if a.get("exclude_outside") else matrix
