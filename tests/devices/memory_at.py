"""NumPy views of memory by address, for libraries that tests stand in for."""

from __future__ import annotations

import ctypes

import ml_dtypes
import numpy as np

TYPES = {0: np.dtype(np.float32), 2: np.dtype(np.float16), 14: np.dtype(ml_dtypes.bfloat16)}


def column_major(address: int, kind: int, rows: int, columns: int, leading: int) -> np.ndarray:
    """The column-major matrix [rows, columns] at an address; ``kind`` is a ``cudaDataType``. Writable."""
    dtype = TYPES[kind]
    size = leading * (columns - 1) + rows
    flat = np.frombuffer((ctypes.c_uint8 * (size * dtype.itemsize)).from_address(address), dtype)
    stride = dtype.itemsize
    return np.lib.stride_tricks.as_strided(flat, (rows, columns), (stride, leading * stride))


def vector(address: int, kind: int, size: int) -> np.ndarray:
    """The vector at an address."""
    return column_major(address, kind, size, 1, size)[:, 0]
