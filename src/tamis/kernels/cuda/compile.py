"""From a kernel's source to a cubin: NVRTC where there is one, else nvcc.

The translation unit is the constants as ``#define`` lines and one ``#include``, the same for both compilers and for
the tests' emulation. Neither a GPU nor a toolkit header is needed.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tamis.errors import BuildError, MissingLibrary
from tamis.kernels.cuda.nvrtc import compile_with_nvrtc, load_nvrtc
from tamis.kernels.cuda.unit import FOLDER, translation_unit, whole_text
from tamis.kernels.store import kernel_store

NO_COMPILER = "no CUDA compiler (NVRTC or nvcc) is installed"
REMEDY = "install a CUDA build of PyTorch, the package nvidia-cuda-nvrtc or the CUDA toolkit"
_OPTIONS = ("--std=c++17",)


def compiler_name() -> str | None:
    """Which compiler makes the cubins, as ``nvrtc 13.0`` or ``nvcc 13.0``; None when there is none."""
    nvrtc = load_nvrtc()
    if nvrtc is not None:
        return f"nvrtc {nvrtc.version[0]}.{nvrtc.version[1]}"
    return _nvcc_name()


def compile_source(source: str, defines: Mapping[str, str | int | float], architecture: str) -> bytes:
    """The cubin of a source with these constants for an architecture such as ``sm_90``.

    The kernels have C names, so no name needs to be looked up. Equal arguments are compiled once in a process, and
    once by all processes that use one store (``tamis.kernels.store``).
    Raises ``MissingLibrary`` without a compiler and ``BuildError`` when it refuses the source.
    """
    if not re.fullmatch(r"sm_\d+[af]?", architecture):
        raise BuildError(f"'{architecture}' is not a GPU architecture", remedy="name one as sm_90")
    return _compile(source, translation_unit(source, defines), architecture)


@functools.lru_cache(maxsize=1024)
def _compile(source: str, text: str, architecture: str) -> bytes:
    compiler = _compiler()
    if compiler is None:
        raise MissingLibrary(NO_COMPILER, remedy=REMEDY)
    store = kernel_store()
    if store is None:
        return compiler.compile(text, source, architecture)
    key = f"{compiler.identity}, {architecture}, {hashlib.sha256(whole_text(text).encode()).hexdigest()}"
    cubin = store.read(key, "cubin")
    if cubin is None:
        cubin = compiler.compile(text, source, architecture)
        store.write(key, "cubin", cubin)
    return cubin


@dataclass(frozen=True)
class _Compiler:
    """``compile`` makes a cubin of a unit, its name and the architecture; ``identity`` tells this compiler from others.

    The identity has the options, too.
    """

    identity: str
    compile: Callable[[str, str, str], bytes]


def _compiler() -> _Compiler | None:
    nvrtc = load_nvrtc()
    if nvrtc is not None:

        def by_nvrtc(text: str, name: str, architecture: str) -> bytes:
            options = (*_OPTIONS, f"--gpu-architecture={architecture}", f"--include-path={FOLDER}")
            return compile_with_nvrtc(nvrtc, text, name, options)

        return _Compiler(f"{nvrtc.identity} {_OPTIONS}", by_nvrtc)
    nvcc = _find_nvcc()
    if nvcc is None:
        return None
    added = [f"{name}={os.environ.get(name, '')}" for name in ("NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS")]
    return _Compiler(f"{_nvcc_words(nvcc)} {_OPTIONS} {added}", functools.partial(compile_with_nvcc, nvcc))


def compile_with_nvcc(nvcc: str, text: str, name: str, architecture: str) -> bytes:
    """The cubin of a translation unit by the toolkit's compiler."""
    with tempfile.TemporaryDirectory() as folder:
        unit, cubin = Path(folder) / "unit.cu", Path(folder) / "unit.cubin"
        unit.write_text(text, encoding="utf-8")
        command = [nvcc, "-cubin", *_OPTIONS, f"-arch={architecture}", f"-I{FOLDER}", str(unit), "-o", str(cubin)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            raise BuildError(f"nvcc cannot compile {name}: {result.stderr.strip()[:2000]}")
        return cubin.read_bytes()


def _find_nvcc() -> str | None:
    roots = (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda")
    places = [shutil.which("nvcc"), *(shutil.which("nvcc", path=str(Path(root) / "bin")) for root in roots if root)]
    return next((place for place in places if place), None)


def _nvcc_name() -> str | None:
    nvcc = _find_nvcc()
    release = re.search(r"release (\d+\.\d+)", _nvcc_words(nvcc)) if nvcc is not None else None
    return f"nvcc {release[1]}" if release else None


@functools.cache
def _nvcc_words(nvcc: str) -> str:
    """What it says of itself: its version with the build."""
    return subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
