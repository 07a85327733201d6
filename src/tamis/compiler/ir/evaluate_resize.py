"""NumPy meaning of Resize.

Every ONNX interpolation is separable: one small matrix of weights for each axis that changes, or for nearest
one row of indices.
"""

from __future__ import annotations

import numpy as np

from tamis.compiler.ir.ops import Resize


def source_coordinates(op: Resize, axis: int, size: int) -> np.ndarray:
    """Where each output position of ``axis`` lies in the input of ``size`` elements (float64)."""
    count, scale = op.shape[axis], float(op.scales[axis])
    x = np.arange(count, dtype=np.float64)
    if op.coordinates == "half_pixel":
        return (x + 0.5) / scale - 0.5
    if op.coordinates == "half_pixel_symmetric":
        # The part of the last pixel that rounding the size cut off is shared by both ends.
        adjustment = count / (scale * size)
        return size / 2 * (1 - adjustment) + (x + 0.5) / scale - 0.5
    if op.coordinates == "pytorch_half_pixel":
        return (x + 0.5) / scale - 0.5 if count > 1 else np.zeros(1)
    if op.coordinates == "align_corners":
        # The rounded size counts, as in torch, ONNX Runtime and TensorRT; ONNX's reference differs where a
        # scale does not give a whole number.
        return x * (size - 1) / (count - 1) if count > 1 else np.zeros(count)
    return x / scale


def nearest_indices(op: Resize, axis: int, size: int) -> np.ndarray:
    """Index of the input element that each output position of ``axis`` copies."""
    x = source_coordinates(op, axis, size)
    # Scales come in float32: coordinates that should be exact integers or halves may be off by that much.
    snapped = np.round(x * 2) / 2
    x = np.where(np.abs(x - snapped) < 1e-6 * np.maximum(np.abs(x), 1), snapped, x)
    rounding = {
        "round_prefer_floor": np.ceil(x - 0.5),
        "round_prefer_ceil": np.floor(x + 0.5),
        "floor": np.floor(x),
        "ceil": np.ceil(x),
    }
    return np.asarray(np.clip(rounding[op.nearest], 0, size - 1)).astype(np.int64)


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
    d = np.abs(distance)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.asarray(np.where(d <= 1, near, np.where(d < 2, far, 0.0)))


def interpolation_matrix(op: Resize, axis: int, size: int) -> np.ndarray:
    """Weights [outputs, inputs] of linear or cubic interpolation along ``axis`` (float64)."""
    x = source_coordinates(op, axis, size)
    base = np.floor(x)
    offsets = (0, 1) if op.mode == "linear" else (-1, 0, 1, 2)
    matrix = np.zeros((op.shape[axis], size))
    rows = np.arange(op.shape[axis])
    for offset in offsets:
        taken = (base + offset).astype(np.int64)
        weight = _cubic(x - taken, op.cubic_coefficient) if op.mode == "cubic" else 1 - np.abs(x - taken)
        if op.exclude_outside:
            weight = np.where((taken >= 0) & (taken < size), weight, 0.0)
        np.add.at(matrix, (rows, np.clip(taken, 0, size - 1)), weight)
    return np.asarray(matrix / matrix.sum(axis=1, keepdims=True)) if op.exclude_outside else matrix


def resize(op: Resize, x: np.ndarray) -> np.ndarray:
    """The resampled tensor, in the type of ``x``."""
    result = x
    for axis, size in enumerate(x.shape):
        if op.shape[axis] == size and op.scales[axis] == 1:
            continue
        if op.mode == "nearest":
            result = np.take(result, nearest_indices(op, axis, size), axis=axis)
            continue
        matrix = interpolation_matrix(op, axis, size)
        if np.issubdtype(x.dtype, np.floating):
            matrix = matrix.astype(x.dtype)
        result = np.moveaxis(np.tensordot(matrix, result, axes=(1, axis)), 0, axis)
    return np.ascontiguousarray(result).astype(x.dtype, copy=False)
