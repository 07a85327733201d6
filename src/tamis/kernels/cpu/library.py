"""Load the kernels' shared library and describe its C interface (``tamis_cpu.h``) to ctypes."""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tamis.errors import DeviceError, MissingLibrary
from tamis.kernels.cpu.build import LIBRARY_NAME

ABI = 2
LEVELS = ("portable", "avx2", "avx512", "avx512_bf16", "amx")

_STATUS = {
    1: "a size, a code or a pointer makes no sense, or layers or pieces do not join",
    2: "the workspace is too small",
    3: "this processor or this build has no such instruction set",
    4: "a row stride is smaller than the row",
}
SMALL_WORKSPACE = 2


class EpilogueStruct(ctypes.Structure):
    """``tamis_epilogue``."""

    _fields_ = [("kind", ctypes.c_int32), ("p0", ctypes.c_float), ("p1", ctypes.c_float)]


class MatrixStruct(ctypes.Structure):
    """``tamis_matrix``."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("stride", ctypes.c_int64),
        ("dtype", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
    ]


class LinearStruct(ctypes.Structure):
    """``tamis_linear``."""

    _fields_ = [
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("epilogue", ctypes.POINTER(EpilogueStruct)),
        ("n", ctypes.c_int64),
        ("k", ctypes.c_int64),
        ("weight_dtype", ctypes.c_int32),
        ("pattern", ctypes.c_int32),
        ("epilogue_count", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
    ]


class PieceStruct(ctypes.Structure):
    """``tamis_piece``."""

    _fields_ = [
        ("matrix", MatrixStruct),
        ("column", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("layer", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
    ]


class ChainStruct(ctypes.Structure):
    """``tamis_chain``."""

    _fields_ = [
        ("layers", ctypes.POINTER(LinearStruct)),
        ("residuals", ctypes.POINTER(MatrixStruct)),
        ("pieces", ctypes.POINTER(PieceStruct)),
        ("workspace", ctypes.c_void_p),
        ("workspace_bytes", ctypes.c_int64),
        ("x", MatrixStruct),
        ("y", MatrixStruct),
        ("x_columns", ctypes.c_int64),
        ("layer_count", ctypes.c_int32),
        ("piece_count", ctypes.c_int32),
        ("isa", ctypes.c_int32),
        ("threads", ctypes.c_int32),
    ]


@dataclass(frozen=True)
class Library:
    """The loaded library: its file, the levels that can run here (lowest first), and its OpenMP runtime."""

    path: Path
    levels: tuple[str, ...]
    openmp: str
    handle: Any

    def level(self, isa: str | None) -> int:
        """The number of the level ``isa`` (None: the best); ``DeviceError`` if it cannot run here."""
        name = self.levels[-1] if isa is None else isa
        if name not in self.levels:
            raise DeviceError(
                f"the CPU kernels cannot run at level '{name}' here",
                remedy=f"use one of {', '.join(self.levels)}",
            )
        return LEVELS.index(name)

    def check(self, status: int) -> None:
        """Raise ``DeviceError`` for a result code that is not zero."""
        if status:
            raise DeviceError(f"a CPU kernel refused its arguments: {_STATUS.get(status, f'code {status}')}")


@functools.cache
def load(path: Path | None = None) -> Library:
    """The library of this installation, or one at ``path``. ``MissingLibrary`` when it was not built."""
    file = path or Path(__file__).with_name(LIBRARY_NAME)
    remedy = "reinstall Tamis where a C++ compiler (g++ or clang++) is installed"
    if not file.is_file():
        raise MissingLibrary(f"the CPU kernels ({file.name}) were not built", remedy=remedy)
    try:
        handle = ctypes.CDLL(str(file.resolve()))
        abi = int(handle.tamis_cpu_abi())
    except (OSError, AttributeError) as error:
        raise MissingLibrary(f"the CPU kernels cannot be loaded: {error}", remedy=remedy) from error
    if abi != ABI:
        raise MissingLibrary(f"the CPU kernels have interface {abi}, not {ABI}", remedy=remedy)
    handle.tamis_chain_workspace.argtypes = [ctypes.c_void_p, ctypes.c_int64]
    handle.tamis_chain_workspace.restype = ctypes.c_int64
    handle.tamis_chain_run.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    handle.tamis_chain_run.restype = ctypes.c_int32
    handle.tamis_cpu_set_openmp.argtypes = [ctypes.c_void_p] * 3
    handle.tamis_cpu_set_openmp.restype = None
    mask = int(handle.tamis_cpu_isa_mask())
    available = tuple(name for bit, name in enumerate(LEVELS) if mask >> bit & 1)
    return Library(file, available, _share_openmp(handle), handle)


def levels() -> tuple[str, ...]:
    """The instruction-set levels that can run here, lowest first."""
    return load().levels


def _share_openmp(handle: Any) -> str:
    """Give the kernels the OpenMP runtime of PyTorch; returns where it was found, "" if nowhere.

    Two runtimes in one process would each keep spinning workers on the same cores.
    """
    for candidate in (None, *_openmp_candidates()):  # None: what the process already shares, preloads included
        try:
            runtime = ctypes.CDLL(candidate)
            functions = [runtime.GOMP_parallel, runtime.omp_get_thread_num, runtime.omp_get_num_threads]
        except (OSError, AttributeError):
            continue  # not loadable, or an OpenMP library without these names: try the next
        handle.tamis_cpu_set_openmp(*(ctypes.cast(function, ctypes.c_void_p) for function in functions))
        return candidate or "process"
    return ""


def _openmp_candidates() -> list[str]:
    """OpenMP runtimes by path, best first: PyTorch's own, those already in the process, the system's."""
    found: list[str] = []
    spec = importlib.util.find_spec("torch")
    if spec and spec.origin:
        package = Path(spec.origin).parent
        for folder in (package / "lib", package.with_name("torch.libs")):
            files = sorted(folder.glob("lib*omp*.so*"))
            found += [str(file) for file in files if re.match(r"lib[gi]?omp", file.name)]
    maps = Path("/proc/self/maps")
    if maps.is_file():
        loaded = re.findall(r"(/\S*/lib[gi]?omp[\w.-]*\.so[\w.]*)$", maps.read_text(encoding="utf-8"), re.MULTILINE)
        found += dict.fromkeys(loaded)
    system = ctypes.util.find_library("gomp")
    return [*found, *([system] if system else [])]
