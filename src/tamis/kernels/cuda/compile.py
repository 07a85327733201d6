"""From a kernel's source to a cubin: NVRTC where there is one, else nvcc.

The translation unit is the constants as ``#define`` lines and one ``#include``, the same for both compilers and for
the tests' emulation. Neither a GPU nor a toolkit header is needed.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tamis.errors import BuildError, MissingLibrary, TamisError
from tamis.kernels.cuda.nvrtc import compile_with_nvrtc, load_nvrtc

FOLDER = Path(__file__).parent
NO_COMPILER = "no CUDA compiler (NVRTC or nvcc) is installed"
REMEDY = "install a CUDA build of PyTorch, the package nvidia-cuda-nvrtc or the CUDA toolkit"
_OPTIONS = ("--std=c++17",)


def sources() -> tuple[str, ...]:
    """The names of all kernel sources."""
    return tuple(sorted(file.name for file in FOLDER.glob("*.cu")))


def compiler_name() -> str | None:
    """Which compiler makes the cubins, as ``nvrtc 13.0`` or ``nvcc 13.0``; None when there is none."""
    nvrtc = load_nvrtc()
    if nvrtc is not None:
        return f"nvrtc {nvrtc.version[0]}.{nvrtc.version[1]}"
    return _nvcc_name()


def translation_unit(source: str, defines: Mapping[str, str | int | float]) -> str:
    """The text that is compiled: a source of this folder behind its constants."""
    lines = [f"#define {name} {value}" for name, value in sorted(defines.items())]
    return "\n".join([*lines, f'#include "{source}"', ""])


def compile_source(source: str, defines: Mapping[str, str | int | float], architecture: str) -> bytes:
    """The cubin of a source with these constants for an architecture such as ``sm_90``.

    The kernels have C names, so no name needs to be looked up. Equal arguments are compiled once in a process.
    Raises ``MissingLibrary`` without a compiler and ``BuildError`` when it refuses the source.
    """
    if not re.fullmatch(r"sm_\d+[af]?", architecture):
        raise BuildError(f"'{architecture}' is not a GPU architecture", remedy="name one as sm_90")
    return _compile(source, translation_unit(source, defines), architecture)


def compile_ahead(
    units: Iterable[tuple[str, Mapping[str, str | int | float], str]], deadline: float = math.inf
) -> None:
    """Compile what ``compile_source`` will be asked for, all cores at a time.

    What cannot be compiled is left for ``compile_source`` to complain of, and so is what has not begun by ``deadline``,
    a time of ``time.monotonic``.
    """

    def compiled(unit: tuple[str, Mapping[str, str | int | float], str]) -> None:
        if time.monotonic() < deadline:
            with contextlib.suppress(TamisError):
                compile_source(*unit)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compiled, {translation_unit(*unit[:2]): unit for unit in units}.values()))


@functools.lru_cache(maxsize=1024)
def _compile(source: str, text: str, architecture: str) -> bytes:
    nvrtc = load_nvrtc()
    if nvrtc is not None:
        options = (*_OPTIONS, f"--gpu-architecture={architecture}", f"--include-path={FOLDER}")
        return compile_with_nvrtc(nvrtc, text, source, options)
    nvcc = _find_nvcc()
    if nvcc is None:
        raise MissingLibrary(NO_COMPILER, remedy=REMEDY)
    return compile_with_nvcc(nvcc, text, source, architecture)


def compile_with_nvcc(nvcc: str, text: str, name: str, architecture: str) -> bytes:
    """The cubin of a translation unit by the toolkit's compiler."""
    with tempfile.TemporaryDirectory() as folder:
        unit, cubin = Path(folder) / "unit.cu", Path(folder) / "unit.cubin"
        unit.write_text(text, encoding="utf-8")
        command = [nvcc, "-cubin", "-std=c++17", f"-arch={architecture}", f"-I{FOLDER}", str(unit), "-o", str(cubin)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            raise BuildError(f"nvcc cannot compile {name}: {result.stderr.strip()[:2000]}")
        return cubin.read_bytes()


def _find_nvcc() -> str | None:
    roots = (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda")
    places = [shutil.which("nvcc"), *(shutil.which("nvcc", path=str(Path(root) / "bin")) for root in roots if root)]
    return next((place for place in places if place), None)


@functools.cache
def _nvcc_name() -> str | None:
    nvcc = _find_nvcc()
    if nvcc is None:
        return None
    result = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False)
    release = re.search(r"release (\d+\.\d+)", result.stdout)
    return f"nvcc {release[1]}" if release else None
