"""How far a result is from its reference."""

from __future__ import annotations

import numpy as np

from tamis.engine.plan import Accuracy
from tamis.formats.dtype import DType

# The error of a result that is infinite or NaN where the reference is not.
_NOT_FINITE = 1e30


def compare(result: np.ndarray, reference: np.ndarray) -> Accuracy:
    """Accuracy of ``result``; anything not finite where the reference is finite counts as infinitely wrong."""
    a = np.asarray(result, dtype=np.float64).ravel()
    b = np.asarray(reference, dtype=np.float64).ravel()
    same = a == b  # equal infinities are equal; NaN never is
    if same.all():
        return Accuracy(0.0, 1.0, 999.0)
    infinite = same & np.isinf(b)
    if infinite.any():
        a, b = np.where(infinite, 0.0, a), np.where(infinite, 0.0, b)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return Accuracy(_NOT_FINITE, -1.0, -999.0)
    error, scale = np.abs(a - b), float(np.abs(b).max())
    norm_a, norm_b = float(np.linalg.norm(a)), float(np.linalg.norm(b))
    noise = float(np.linalg.norm(a - b))
    cosine = float(a @ b / (norm_a * norm_b)) if norm_a and norm_b else 0.0
    sqnr = 20 * np.log10(norm_b / noise) if noise and norm_b else -999.0
    return Accuracy(
        float(f"{float(error.max()) / max(scale, 1e-30):.6g}"), float(f"{cosine:.9g}"), round(float(sqnr), 2)
    )


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
