"""cuBLASLt's C interface through ctypes: the part of ``cublasLt.h`` that Tamis calls, and nothing more.

Checked against the headers of nvidia-cublas 13.10.0 and CUDA 13.0 (``library_types.h``); these values have not
changed since CUDA 11.4. Each enumeration names the prefix of its members in the header, so that a test can compare.
Opaque descriptors are pointers that the library allocates.
"""

from __future__ import annotations

import ctypes
import functools
from ctypes import c_char_p, c_float, c_int, c_int64, c_size_t, c_uint64, c_void_p
from enum import IntEnum
from typing import Any

from tamis.devices.cuda.shared_library import Signature, load_first
from tamis.errors import DeviceError

NAMES = ("libcublasLt.so.13", "libcublasLt.so.12")
SUCCESS = 0


class DataType(IntEnum):
    """``cudaDataType``, ``CUDA_``."""

    R_32F = 0
    R_16F = 2
    R_16BF = 14


class ComputeType(IntEnum):
    """``cublasComputeType_t``, ``CUBLAS_COMPUTE_``."""

    C_32F = 68
    C_32F_FAST_TF32 = 77


class Operation(IntEnum):
    """``cublasOperation_t``, ``CUBLAS_OP_``."""

    N = 0
    T = 1


class MatmulAttribute(IntEnum):
    """``cublasLtMatmulDescAttributes_t``, ``CUBLASLT_MATMUL_DESC_``."""

    TRANSA = 3
    TRANSB = 4
    EPILOGUE = 7
    BIAS_POINTER = 8
    BIAS_DATA_TYPE = 26


class LayoutAttribute(IntEnum):
    """``cublasLtMatrixLayoutAttribute_t``, ``CUBLASLT_MATRIX_LAYOUT_``."""

    BATCH_COUNT = 5
    STRIDED_BATCH_OFFSET = 6


class PreferenceAttribute(IntEnum):
    """``cublasLtMatmulPreferenceAttributes_t``, ``CUBLASLT_MATMUL_PREF_``."""

    MAX_WORKSPACE_BYTES = 1
    REDUCTION_SCHEME_MASK = 3
    MIN_ALIGNMENT_A_BYTES = 5
    MIN_ALIGNMENT_B_BYTES = 6
    MIN_ALIGNMENT_C_BYTES = 7
    MIN_ALIGNMENT_D_BYTES = 8


class ReductionScheme(IntEnum):
    """``cublasLtReductionScheme_t``, ``CUBLASLT_REDUCTION_SCHEME_``: how a split sum over k is put together."""

    INPLACE = 1
    COMPUTE_TYPE = 2


class Epilogue(IntEnum):
    """``cublasLtEpilogue_t``, ``CUBLASLT_EPILOGUE_``. GELU is the tanh approximation."""

    DEFAULT = 1
    RELU = 2
    BIAS = 4
    RELU_BIAS = 6
    GELU = 32
    GELU_BIAS = 36


class Algorithm(ctypes.Structure):
    """``cublasLtMatmulAlgo_t``: 64 opaque bytes."""

    _fields_ = (("data", c_uint64 * 8),)


class HeuristicResult(ctypes.Structure):
    """``cublasLtMatmulHeuristicResult_t``: an algorithm, its workspace in bytes, and whether it can be used."""

    _fields_ = (
        ("algorithm", Algorithm),
        ("workspace_bytes", c_size_t),
        ("state", c_int),
        ("waves", c_float),
        ("reserved", c_int * 4),
    )


SIGNATURES: tuple[Signature, ...] = (
    ("cublasLtGetVersion", c_size_t, ()),
    ("cublasLtGetStatusString", c_char_p, (c_int,)),
    ("cublasLtCreate", c_int, (c_void_p,)),
    ("cublasLtMatmulDescCreate", c_int, (c_void_p, c_int, c_int)),
    ("cublasLtMatmulDescDestroy", c_int, (c_void_p,)),
    ("cublasLtMatmulDescSetAttribute", c_int, (c_void_p, c_int, c_void_p, c_size_t)),
    ("cublasLtMatrixLayoutCreate", c_int, (c_void_p, c_int, c_uint64, c_uint64, c_int64)),
    ("cublasLtMatrixLayoutDestroy", c_int, (c_void_p,)),
    ("cublasLtMatrixLayoutSetAttribute", c_int, (c_void_p, c_int, c_void_p, c_size_t)),
    ("cublasLtMatmulPreferenceCreate", c_int, (c_void_p,)),
    ("cublasLtMatmulPreferenceDestroy", c_int, (c_void_p,)),
    ("cublasLtMatmulPreferenceSetAttribute", c_int, (c_void_p, c_int, c_void_p, c_size_t)),
    (
        "cublasLtMatmulAlgoGetHeuristic",
        c_int,
        (
            c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_int, c_void_p, c_void_p,
        ),
    ),
    (
        "cublasLtMatmul",
        c_int,
        (
            c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p,
            c_void_p, c_void_p, c_void_p, c_void_p, c_size_t, c_void_p,
        ),
    ),
)  # fmt: skip


@functools.cache
def load() -> Any:
    """cuBLASLt with typed functions, loaded once. Raises ``MissingLibrary``."""
    remedy = "install a CUDA build of PyTorch, or pip install nvidia-cublas"
    return load_first("cuBLASLt", NAMES, SIGNATURES, remedy)


def version() -> str:
    """The library's version, such as ``13.1.0``. Raises ``MissingLibrary``."""
    number = int(load().cublasLtGetVersion())
    return f"{number // 10000}.{number % 10000 // 100}.{number % 100}"


def check(library: Any, status: int, what: str, layer: str | None = None) -> None:
    """Raise ``DeviceError`` for a status that is not success."""
    if status != SUCCESS:
        reason = library.cublasLtGetStatusString(status).decode()
        raise DeviceError(f"cuBLASLt cannot {what}: {reason}", layer=layer)
