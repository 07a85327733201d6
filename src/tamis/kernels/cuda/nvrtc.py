"""NVRTC, NVIDIA's run-time compiler, through ctypes.

It needs neither a GPU nor a driver nor header files: the one shared library comes with every CUDA build of PyTorch
(package ``nvidia-cuda-nvrtc``) and with the CUDA toolkit. The kernels include no header of the toolkit.
"""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import functools
import hashlib
import importlib.util
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tamis.errors import BuildError

# The linker's digest of a library lies near one of its ends.
_END_BYTES = 1 << 16


@dataclass(frozen=True)
class Nvrtc:
    """The loaded library: its file, its version (major, minor), and what tells its build from others."""

    path: str
    version: tuple[int, int]
    handle: Any
    identity: str


@functools.cache
def load_nvrtc() -> Nvrtc | None:
    """The newest NVRTC that PyTorch's packages bring, else the toolkit's, else the system's; None if there is none."""
    for path in _candidates():
        try:
            _load_builtins(Path(path))
            handle = ctypes.CDLL(path)
            major, minor = ctypes.c_int(), ctypes.c_int()
            if handle.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)) == 0:
                version = (major.value, minor.value)
                return Nvrtc(path, version, handle, f"nvrtc {version} {_fingerprint(Path(path))}")
        except (OSError, AttributeError):
            continue  # not loadable here, or not NVRTC: try the next
    return None


def _candidates() -> list[str]:
    """Where NVRTC may lie, best first: whole folders, since its ``libnvrtc-builtins`` must lie beside it."""
    folders: list[Path] = []
    spec = importlib.util.find_spec("nvidia")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        folders += [*sorted(Path(place).glob("cu*/lib"), reverse=True), Path(place) / "cuda_nvrtc" / "lib"]
    for root in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"):
        if root:
            folders += [Path(root) / "lib64", *Path(root).glob("targets/*/lib")]
    found: list[Path] = []
    for folder in folders:
        files = [file for file in folder.glob("libnvrtc.so*") if re.fullmatch(r"libnvrtc\.so[.\d]*", file.name)]
        found += sorted(files, key=_release, reverse=True)
    # Without its builtins it loads, and then compiles nothing.
    found.sort(key=lambda file: not any(file.parent.glob("libnvrtc-builtins.so*")))
    system = ctypes.util.find_library("nvrtc")
    return [*map(str, found), *([system] if system else [])]


def _load_builtins(nvrtc: Path) -> None:
    """Load the ``libnvrtc-builtins`` that lies beside NVRTC.

    NVRTC opens it by its bare name when it first compiles. Not all releases look into their own folder (13.0 does not);
    all find what the process has loaded.
    """
    for file in sorted(nvrtc.parent.glob("libnvrtc-builtins.so*")) if nvrtc.is_absolute() else ():
        with contextlib.suppress(OSError):
            ctypes.CDLL(str(file))


def _fingerprint(file: Path) -> str:
    """What differs between two builds of one version: its size, and both of its ends.

    Empty for a library that is known by its name only.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            ends = stream.read(_END_BYTES)
            stream.seek(max(size - _END_BYTES, 0))
            ends += stream.read(_END_BYTES)
        return f"{size} {hashlib.sha256(ends).hexdigest()[:16]}"
    except OSError:
        return ""


def _release(file: Path) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", file.name))


def compile_with_nvrtc(nvrtc: Nvrtc, text: str, name: str, options: Sequence[str]) -> bytes:
    """The cubin of a translation unit. ``BuildError`` carries the beginning of the compiler's log."""
    api = nvrtc.handle
    program = ctypes.c_void_p()
    _check(nvrtc, api.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"unit.cu", 0, None, None))
    try:
        encoded = [option.encode() for option in options]
        status = api.nvrtcCompileProgram(program, len(encoded), (ctypes.c_char_p * len(encoded))(*encoded))
        if status:
            log = _fetch(nvrtc, program, api.nvrtcGetProgramLogSize, api.nvrtcGetProgramLog)
            raise BuildError(f"NVRTC cannot compile {name}: {log.decode(errors='replace').strip()[:2000]}")
        return _fetch(nvrtc, program, api.nvrtcGetCUBINSize, api.nvrtcGetCUBIN)
    finally:
        api.nvrtcDestroyProgram(ctypes.byref(program))


def _fetch(nvrtc: Nvrtc, program: ctypes.c_void_p, size_of: Callable[..., int], get: Callable[..., int]) -> bytes:
    size = ctypes.c_size_t()
    _check(nvrtc, size_of(program, ctypes.byref(size)))
    buffer = ctypes.create_string_buffer(max(size.value, 1))
    _check(nvrtc, get(program, buffer))
    return buffer.raw[: size.value]


def _check(nvrtc: Nvrtc, status: int) -> None:
    if status:
        nvrtc.handle.nvrtcGetErrorString.restype = ctypes.c_char_p
        raise BuildError(f"NVRTC failed: {nvrtc.handle.nvrtcGetErrorString(status).decode()}")
