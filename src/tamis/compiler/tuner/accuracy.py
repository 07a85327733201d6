"""How far a result is from its reference."""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
import torch

from tamis.engine.plan import Accuracy
from tamis.formats.dtype import DType

Array: TypeAlias = "np.ndarray | torch.Tensor"

# Elements compared at a time.
_PART = 1 << 24
# The error of a result that is infinite or NaN where the reference is not.
_NOT_FINITE = 1e30


def compare(result: Array, reference: Array) -> Accuracy:
    """Accuracy of ``result``; anything not finite where the reference is finite counts as infinitely wrong.

    Both are NumPy arrays or torch tensors of any type with equal numbers of elements; tensors are compared where they
    lie, in float64, a part at a time.
    """
    flat, wanted = _flat(result), _flat(reference)
    error = scale = dot = square_a = square_b = noise = 0.0
    for start in range(0, flat.numel(), _PART):
        a, b = flat[start : start + _PART].double(), wanted[start : start + _PART].double()
        left_out = (a == b) & b.isinf()  # equal infinities are equal; NaN never is
        if bool(left_out.any()):
            a, b = a.masked_fill(left_out, 0.0), b.masked_fill(left_out, 0.0)
        if not bool((a.isfinite() & b.isfinite()).all()):
            return Accuracy(_NOT_FINITE, -1.0, -999.0)
        difference = a - b
        error, scale = max(error, float(difference.abs().max())), max(scale, float(b.abs().max()))
        dot, noise = dot + float(a @ b), noise + float(difference @ difference)
        square_a, square_b = square_a + float(a @ a), square_b + float(b @ b)
    if error == 0.0:
        return Accuracy(0.0, 1.0, 999.0)
    cosine = dot / math.sqrt(square_a * square_b) if square_a and square_b else 0.0
    sqnr = 10 * math.log10(square_b / noise) if noise and square_b else -999.0
    return Accuracy(float(f"{error / max(scale, 1e-30):.6g}"), float(f"{cosine:.9g}"), round(sqnr, 2))


def _flat(values: Array) -> torch.Tensor:
    """The elements in row-major order, on the device on which they are."""
    if isinstance(values, torch.Tensor):
        return values.reshape(-1)
    return torch.from_numpy(np.asarray(values, dtype=np.float64).reshape(-1))


def worst(accuracies: list[Accuracy]) -> Accuracy:
    """The least accurate of several, field by field."""
    return Accuracy(
        max(a.max_relative_error for a in accuracies),
        min(a.cosine for a in accuracies),
        min(a.sqnr_db for a in accuracies),
    )


def objection(accuracy: Accuracy, precision: DType, cosine: float, relative: float) -> str | None:
    """Why a result is not acceptable in its precision, or None.

    float32 results must be within ``relative`` of the largest reference value; lower precisions must point in
    the same direction to within ``cosine``.
    """
    if accuracy.max_relative_error >= _NOT_FINITE and precision != DType.FLOAT32:
        return f"overflows: not finite in {precision} on the sample inputs"
    if precision == DType.FLOAT32 and not accuracy.max_relative_error <= relative:
        return f"wrong: largest error {accuracy.max_relative_error:.3g} of the largest value, allowed {relative:g}"
    if precision != DType.FLOAT32 and not accuracy.cosine >= cosine:
        return f"too inaccurate: cosine {accuracy.cosine:.6f}, asked for {cosine:g}"
    return None
