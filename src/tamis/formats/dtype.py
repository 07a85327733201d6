"""Element types: one name each, their size, and their NumPy counterpart.

The names are those that ONNX, safetensors and NumPy users know. ``bfloat16`` and the 8-bit floats have no
NumPy type of their own; they come from ``ml_dtypes``, as in ONNX's own tools.

``tf32`` is a precision of products, not a type in memory: operands are float32, of which the tensor cores read ten
bits of the mantissa. ``storage`` gives the type in which a layer of a precision keeps its values.
"""

from __future__ import annotations

from enum import Enum

import ml_dtypes
import numpy as np


class DType(str, Enum):
    """An element type; the value is its name in files and messages."""

    FLOAT64 = "float64"
    FLOAT32 = "float32"
    TF32 = "tf32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    FLOAT8_E4M3 = "float8_e4m3"
    INT64 = "int64"
    INT32 = "int32"
    INT16 = "int16"
    INT8 = "int8"
    UINT8 = "uint8"
    UINT16 = "uint16"
    UINT32 = "uint32"
    UINT64 = "uint64"
    BOOL = "bool"

    def __str__(self) -> str:
        return self.value

    @property
    def numpy(self) -> np.dtype:
        """The NumPy type that holds elements of this type bit for bit."""
        special = {
            DType.TF32: np.dtype(np.float32),
            DType.BFLOAT16: np.dtype(ml_dtypes.bfloat16),
            DType.FLOAT8_E4M3: np.dtype(ml_dtypes.float8_e4m3fn),
        }
        return special.get(self) or np.dtype(self.value)

    @property
    def storage(self) -> DType:
        """The type of the values in memory: float32 for ``tf32``, else the type itself."""
        return DType.FLOAT32 if self is DType.TF32 else self

    @property
    def size_bytes(self) -> int:
        """Bytes of one element."""
        return int(self.numpy.itemsize)

    @property
    def is_float(self) -> bool:
        """Whether this is a floating-point type of any width."""
        return self.value.startswith(("float", "bfloat", "tf"))

    @classmethod
    def of(cls, array: np.ndarray) -> DType:
        """The type of a NumPy array's elements; ``ValueError`` for one Tamis has no name for."""
        name = {"float8_e4m3fn": "float8_e4m3"}.get(array.dtype.name, array.dtype.name)
        return cls(name)
