"""Our CUDA kernels on the CPU: compiled by the C++ compiler against ``native/cuda_emulated.h``.

Tensors lie against a page that must not be touched, at the end in one run and at the beginning in another, so a
kernel that reads or writes outside them fails. Outputs are filled with NaN first, or with an integer that nothing
explains. Inputs and outputs are closed until the kernel waits for the one before it (``overlap.h``).
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import mmap
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import ml_dtypes
import numpy as np

from tamis.devices.cuda.tensor_map import BYTES, room
from tamis.formats.dtype import DType
from tamis.kernels.cpu.build import compiler
from tamis.kernels.cuda.pointwise import physical_order
from tamis.kernels.cuda.specification import Kernel, TensorMap
from tamis.kernels.cuda.unit import FOLDER, translation_unit

NATIVE = Path(__file__).parent / "native"
FAILURES = {
    1: "threads wait for each other for ever",
    2: "an access outside of the tensors, or a misaligned one",
    4: "an input or output is touched before the kernel in front has finished",
    5: "nobody waited for the kernel in front",
}
_FLAGS = (
    "-std=c++17", "-fPIC", "-fvisibility-inlines-hidden", "-ffp-contract=off", "-fno-strict-aliasing", "-Wno-psabi",
    "-Wno-unknown-pragmas", "-fsanitize=alignment,bounds,shift", "-fsanitize-undefined-trap-on-error",
    f"-I{FOLDER}", f"-I{NATIVE}",
)  # fmt: skip
_EMULATION = "libemulation.so"
_libc = ctypes.CDLL(None, use_errno=True)


@functools.cache
def _emulation() -> tuple[tempfile.TemporaryDirectory, ctypes.CDLL]:
    """The folder where libraries are made, and the library of what all kernels call, which alone is optimised.

    The header that kernels see lies there too, compiled beforehand: half of the time would go there.
    """
    folder = tempfile.TemporaryDirectory(prefix="tamis-emulated-")
    library, header = Path(folder.name) / _EMULATION, Path(folder.name) / "cuda_emulated.h"
    parts = [str(NATIVE / f"{part}_emulated.cpp") for part in ("cuda", "shared_memory", "ampere", "hopper")]
    # It jumps between stacks, which fortified functions do not allow.
    _compile(["-O2", "-U_FORTIFY_SOURCE", *_FLAGS, "-shared", *parts, "-o", str(library)])
    header.write_text((NATIVE / "cuda_emulated.h").read_text())
    _compile(["-O0", *_FLAGS, "-x", "c++-header", str(header), "-o", f"{header}.gch"])
    return folder, ctypes.CDLL(str(library))


def _compile(arguments: Sequence[str]) -> None:
    result = subprocess.run([*compiler(), *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[:4000]


@functools.cache
def compiled(text: str) -> ctypes.CDLL:
    """A library of this source and ``EMULATED_KERNEL``."""
    folder = Path(_emulation()[0].name)
    stem = folder / f"kernel{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    source, library = stem.with_suffix(".cpp"), stem.with_suffix(".so")
    source.write_text(text)
    # Standard libraries come with the emulation: the linker need not read them each time.
    around = ("-include", str(folder / "cuda_emulated.h"), "-shared", "-nostdlib", str(folder / _EMULATION))
    _compile(["-O0", *_FLAGS, str(source), *around, "-o", str(library)])
    return ctypes.CDLL(str(library))


class Guarded:
    """Memory between two forbidden pages, its content against the one at the end or the one at the beginning."""

    def __init__(self, array: np.ndarray, at_end: bool) -> None:
        page = mmap.PAGESIZE
        room = -(-max(array.nbytes, 1) // page) * page
        self._map = mmap.mmap(-1, room + 2 * page)
        self._base = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        # A tensor begins at a multiple of 16 bytes, so up to 15 bytes may lie between its end and the page.
        self._offset = page + (room - -(-array.nbytes // 16) * 16 if at_end else 0)
        self._shape, self._dtype, self._nbytes = array.shape, array.dtype, array.nbytes
        self._map[self._offset : self._offset + array.nbytes] = array.tobytes()
        for edge in (self._base, self._base + page + room):
            assert _libc.mprotect(ctypes.c_void_p(edge), ctypes.c_size_t(page), 0) == 0

    @property
    def address(self) -> int:
        return self._base + self._offset

    @property
    def pages(self) -> tuple[ctypes.c_void_p, ctypes.c_size_t]:
        """The pages between the forbidden ones: where they begin, and their bytes."""
        return ctypes.c_void_p(self._base + mmap.PAGESIZE), ctypes.c_size_t(len(self._map) - 2 * mmap.PAGESIZE)

    def read(self) -> np.ndarray:
        data = self._map[self._offset : self._offset + self._nbytes]
        return np.frombuffer(data, self._dtype).reshape(self._shape)


def run(
    kernel: Kernel,
    inputs: Sequence[np.ndarray],
    constants: Sequence[np.ndarray],
    outputs: Sequence[tuple[tuple[int, ...], np.dtype]],
) -> tuple[np.ndarray, ...]:
    """Launch a kernel; arrays are given and returned as they lie in memory."""
    results = [_run_once(kernel, inputs, constants, outputs, at_end) for at_end in (True, False)]
    for first, second in zip(*results, strict=True):
        assert first.tobytes() == second.tobytes(), "the result depends on what lies around the tensors"
    return results[0]


def poison(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """What an output holds before a kernel runs."""
    return np.full(shape, -86 if np.issubdtype(dtype, np.integer) else np.nan, dtype)


def _run_once(kernel, inputs, constants, outputs, at_end: bool) -> tuple[np.ndarray, ...]:
    library = compiled(f"{translation_unit(f'{kernel.family}.cu', kernel.defines)}EMULATED_KERNEL({kernel.function})\n")
    places = {
        "in": [Guarded(array, at_end) for array in inputs],
        "const": [Guarded(array, at_end) for array in constants],
        "out": [Guarded(poison(shape, dtype), at_end) for shape, dtype in outputs],
    }
    values: list[ctypes.c_void_p | ctypes.c_int | ctypes.Array] = []
    for argument in kernel.arguments:
        if argument.kind == "map":
            map_ = kernel.maps[argument.value]
            values.append(emulated_map(map_, places["in"][map_.tensor].address))
        elif argument.kind == "int":
            values.append(ctypes.c_int(argument.value))
        elif argument.kind == "null":
            values.append(ctypes.c_void_p())
        else:
            values.append(ctypes.c_void_p(places[argument.kind][argument.value].address))
    packed = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
    grid, block = (ctypes.c_uint * 3)(*kernel.grid), (ctypes.c_uint * 3)(*kernel.block)
    for place in (*places["in"], *places["out"]):
        library.emulated_close(*place.pages)
    status = library.emulated_run(grid, block, packed)
    assert status == 0, f"{kernel.family}: {FAILURES.get(status, status)}"
    return tuple(place.read() for place in places["out"])


def emulated_map(map_: TensorMap, address: int) -> ctypes.Array:
    """A tensor map as ``hopper_emulated.h`` has it."""
    result = room()
    _, height, width = map_.image
    apart = map_.apart or (map_.channels, width * map_.channels, height * width * map_.channels)
    if map_.mode == "rows":
        apart = (apart[0], 0, 0)
    result.raw = packed_map(
        address, ("rows", "taps", "lines").index(map_.mode), map_.channels, *map_.image, map_.box, *map_.low, *map_.high,
        *map_.strides, map_.lines, *apart, map_.windows,
    )  # fmt: skip
    return result


def packed_map(address: int, *numbers: int) -> bytes:
    """The bytes of a map: mode, channels, n, h, w, box, w and h of low, high and steps, lines, elements apart, windows."""
    return struct.pack("Q17i", address, *numbers).ljust(BYTES, b"\0")


def in_memory(array: np.ndarray, dtype: np.dtype, channels_last: bool) -> np.ndarray:
    """A logical array rounded to a type, with its axes in the order in which they lie in memory."""
    order = physical_order(array.ndim, channels_last)
    return np.ascontiguousarray(array.astype(dtype).transpose(order))


def memory_shape(shape: Sequence[int], channels_last: bool) -> tuple[int, ...]:
    """The shape of what ``in_memory`` gives."""
    return tuple(shape[axis] for axis in physical_order(len(shape), channels_last))


def from_memory(array: np.ndarray, channels_last: bool) -> np.ndarray:
    """The logical array in float64."""
    order = physical_order(array.ndim, channels_last)
    return array.transpose(np.argsort(order)).astype(np.float64)


def assert_close(result: np.ndarray, expected: np.ndarray, dtype: DType, scale: float = 4.0) -> None:
    """Equal NaN and infinities; else within ``scale`` units of float32 rounding and half a unit of the output's.

    ``expected`` is float64 and takes the inputs as the kernel got them, rounded to their types.
    """
    limit = float(ml_dtypes.finfo(dtype.numpy).max)
    unit, tiny = float(ml_dtypes.finfo(dtype.numpy).eps), float(ml_dtypes.finfo(dtype.numpy).smallest_subnormal)
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = np.where(np.abs(expected) < limit * (1 + unit / 4), expected, np.copysign(np.inf, expected))
        rounded = np.where(np.isnan(expected), np.nan, rounded)
        np.testing.assert_array_equal(np.isnan(result), np.isnan(expected))
        infinite = np.isinf(result) | np.isinf(rounded)
        # Beside the limit of the type either answer is a correct rounding.
        near = np.abs(expected) > limit * (1 - scale * 2**-22)
        assert np.all((result == rounded) | near | ~infinite), "infinities differ"
        allowed = np.abs(expected) * (unit / 2 + scale * 2**-23) + scale * 2**-23 + tiny
        wrong = ~infinite & ~np.isnan(expected) & ~(np.abs(result - expected) <= allowed)
    if wrong.any():
        first = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise AssertionError(f"{wrong.sum()} of {wrong.size} differ; at {first}: {result[first]} not {expected[first]}")
