"""cuSPARSELt's C interface through ctypes: the part of ``cusparseLt.h`` that Tamis calls, and nothing more.

Checked against the headers of nvidia-cusparselt-cu13 0.8.0, 0.8.1 and 0.10.0, which differ in nothing used here. From
0.8 on every opaque structure is 512 bytes, 16-byte aligned; older libraries have larger ones and are refused.
Structures must not move once they are made, because they point to each other.
"""

from __future__ import annotations

import ctypes
import functools
from ctypes import c_char_p, c_int, c_int32, c_int64, c_size_t, c_uint32, c_void_p
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from tamis.devices.cuda.shared_library import Signature, candidates, open_library
from tamis.errors import DeviceError, MissingLibrary

NAMES = ("libcusparseLt.so.0",)
SUCCESS = 0
OPAQUE_BYTES = 512
OPAQUE_ALIGNMENT = 16
OLDEST = (0, 8, 0)
_REMEDY = "pip install nvidia-cusparselt-cu13, 0.8.1 or newer"


class DataType(IntEnum):
    """``cudaDataType``, ``CUDA_``."""

    R_16F = 2
    R_16BF = 14


class ComputeType(IntEnum):
    """``cusparseComputeType``, ``CUSPARSE_COMPUTE_``."""

    C_32F = 2


class Operation(IntEnum):
    """``cusparseOperation_t``, ``CUSPARSE_OPERATION_``."""

    NON_TRANSPOSE = 0
    TRANSPOSE = 1


class Order(IntEnum):
    """``cusparseOrder_t``, ``CUSPARSE_ORDER_``."""

    COL = 1
    ROW = 2


class Sparsity(IntEnum):
    """``cusparseLtSparsity_t``, ``CUSPARSELT_SPARSITY_``: 2:4 for 16-bit values."""

    S_50_PERCENT = 0


class MatmulAttribute(IntEnum):
    """``cusparseLtMatmulDescAttribute_t``, ``CUSPARSELT_MATMUL_``: int, float and pointer."""

    ACTIVATION_RELU = 0
    ACTIVATION_RELU_UPPERBOUND = 1
    BIAS_POINTER = 8


class AlgorithmAttribute(IntEnum):
    """``cusparseLtMatmulAlgAttribute_t``, ``CUSPARSELT_MATMUL_``; all are int."""

    ALG_CONFIG_ID = 0
    ALG_CONFIG_MAX_ID = 1
    SPLIT_K = 3
    SPLIT_K_MODE = 4


class SplitMode(IntEnum):
    """``cusparseLtSplitKMode_t``, ``CUSPARSELT_``: who adds up the parts of a product split along k."""

    SPLIT_K_MODE_ONE_KERNEL = 1
    SPLIT_K_MODE_TWO_KERNELS = 2


class Property(IntEnum):
    """``libraryPropertyType``, which has no prefix."""

    MAJOR_VERSION = 0
    MINOR_VERSION = 1
    PATCH_LEVEL = 2


class Opaque:
    """One of the library's opaque structures, at an aligned address that does not change."""

    def __init__(self) -> None:
        self._memory = (ctypes.c_uint8 * (OPAQUE_BYTES + OPAQUE_ALIGNMENT))()
        start = ctypes.addressof(self._memory)
        self.address = start + -start % OPAQUE_ALIGNMENT


_P = c_void_p
SIGNATURES: tuple[Signature, ...] = (
    ("cusparseLtGetProperty", c_int, (c_int, _P)),
    ("cusparseLtGetErrorString", c_char_p, (c_int,)),
    ("cusparseLtInit", c_int, (_P,)),
    ("cusparseLtDenseDescriptorInit", c_int, (_P, _P, c_int64, c_int64, c_int64, c_uint32, c_int, c_int)),
    ("cusparseLtStructuredDescriptorInit", c_int, (_P, _P, c_int64, c_int64, c_int64, c_uint32, c_int, c_int, c_int)),
    ("cusparseLtMatDescriptorDestroy", c_int, (_P,)),
    ("cusparseLtMatmulDescriptorInit", c_int, (_P, _P, c_int, c_int, _P, _P, _P, _P, c_int)),
    ("cusparseLtMatmulDescSetAttribute", c_int, (_P, _P, c_int, _P, c_size_t)),
    ("cusparseLtMatmulAlgSelectionInit", c_int, (_P, _P, _P, c_int)),
    ("cusparseLtMatmulAlgSelectionDestroy", c_int, (_P,)),
    ("cusparseLtMatmulAlgSetAttribute", c_int, (_P, _P, c_int, _P, c_size_t)),
    ("cusparseLtMatmulAlgGetAttribute", c_int, (_P, _P, c_int, _P, c_size_t)),
    ("cusparseLtMatmulPlanInit", c_int, (_P, _P, _P, _P)),
    ("cusparseLtMatmulPlanDestroy", c_int, (_P,)),
    ("cusparseLtMatmulGetWorkspace", c_int, (_P, _P, _P)),
    ("cusparseLtSpMMACompressedSize2", c_int, (_P, _P, _P, _P)),
    ("cusparseLtSpMMACompress2", c_int, (_P, _P, c_int, c_int, _P, _P, _P, _P)),
    ("cusparseLtMatmul", c_int, (_P, _P, _P, _P, _P, _P, _P, _P, _P, _P, c_int32)),
)


@dataclass(frozen=True)
class Found:
    """A library that can be loaded: its file and its version."""

    path: str
    version: tuple[int, int, int]


@functools.cache
def newest() -> Found:
    """The newest cuSPARSELt: that of PyTorch, or of a newer wheel beside it. Raises ``MissingLibrary``."""
    found, reason = [], ""
    for path in candidates(NAMES):
        try:
            found.append(Found(path, _version_of(open_library(path, SIGNATURES[:1]))))
        except OSError as error:
            reason = str(error)
    if not found:
        raise MissingLibrary(f"cuSPARSELt was not found ({reason})", remedy=_REMEDY)
    best = max(found, key=lambda each: each.version)  # the first of equals
    if best.version < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise MissingLibrary(f"cuSPARSELt {_text(best.version)} is older than {oldest}", remedy=_REMEDY)
    return best


@functools.cache
def load() -> Any:
    """The newest cuSPARSELt with typed functions. Raises ``MissingLibrary``."""
    try:
        return open_library(newest().path, SIGNATURES)
    except OSError as error:
        raise MissingLibrary(f"cuSPARSELt cannot be used ({error})", remedy=_REMEDY) from error


def version() -> str:
    """The library's version, such as ``0.8.1``. Raises ``MissingLibrary``."""
    return _text(newest().version)


def advice(version: str, architecture: str) -> str | None:
    """What a user of this version on this architecture (``sm_90``) should know, as one sentence; or None.

    Release 0.8.0, which PyTorch 2.11 brings, is slower on H100-class GPUs and on L4 than the releases before
    and after it.
    """
    if version == "0.8.0" and architecture in ("sm_89", "sm_90"):
        return (
            f"cuSPARSELt 0.8.0 has a performance regression on {architecture} that 0.8.1 repairs: "
            "pip install nvidia-cusparselt-cu13==0.8.1"
        )
    return None


def check(library: Any, status: int, what: str, layer: str | None = None) -> None:
    """Raise ``DeviceError`` for a status that is not success."""
    if status != SUCCESS:
        reason = library.cusparseLtGetErrorString(status).decode()
        raise DeviceError(f"cuSPARSELt cannot {what}: {reason}", layer=layer)


def _version_of(library: Any) -> tuple[int, int, int]:
    numbers = []
    for each in Property:
        value = c_int()
        if library.cusparseLtGetProperty(each, ctypes.byref(value)) != SUCCESS:
            raise OSError("the version cannot be read")
        numbers.append(value.value)
    return numbers[0], numbers[1], numbers[2]


def _text(version: tuple[int, int, int]) -> str:
    return ".".join(map(str, version))
