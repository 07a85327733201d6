"""The precision that a layer runs in: which ones a GPU has, and constants in it."""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np

from tamis.engine.plan import DeviceInfo
from tamis.formats.dtype import DType

# What a GPU must have for a precision that older ones lack.
_NEEDED_FEATURE = {DType.TF32: "tf32", DType.BFLOAT16: "bf16"}


@dataclass(frozen=True, eq=False)
class SameArray:
    """An array as an argument of a cached function: equal to itself only, so no content is compared."""

    array: np.ndarray

    def __hash__(self) -> int:
        return id(self.array)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SameArray) and other.array is self.array


def to_precision(array: np.ndarray, dtype: DType) -> np.ndarray:
    """Floating-point constants in the storage type of ``dtype``, rounded to nearest even; other constants unchanged.

    Finite values stay finite: a mask filled with the smallest float32 must not become minus infinity, which
    would turn a fully masked row into NaN. Zeros stay zeros.
    """
    dtype = dtype.storage
    if array.dtype.kind != "f" and array.dtype != ml_dtypes.bfloat16:
        return array
    if array.dtype == dtype.numpy:
        return array
    if dtype == DType.FLOAT32:
        return array.astype(np.float32)
    limit = float(ml_dtypes.finfo(dtype.numpy).max)  # type: ignore[no-untyped-call]
    clipped = np.where(np.isfinite(array), np.clip(array, -limit, limit), array)
    return clipped.astype(dtype.numpy)


def runs_in(precision: DType, device: DeviceInfo) -> bool:
    """Whether the device has matrix instructions of a precision; float32 and float16 are everywhere."""
    known = precision in (DType.FLOAT32, DType.FLOAT16) or precision in _NEEDED_FEATURE
    return known and _NEEDED_FEATURE.get(precision, "") in ("", *device.features)
