"""Compile the kernels into one shared library; used by setup.py and by the tests' special builds.

Standard library only, and loadable without the package: setup.py runs before Tamis is installed.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

LIBRARY_NAME = "libtamis_cpu.so"

_COMMON_FLAGS = (
    "-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-exceptions", "-fno-rtti",
    "-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wextra", "-Wno-psabi",
    "-Wno-uninitialized", "-Wno-maybe-uninitialized",  # GCC 12 warns about its own AVX-512 headers
)  # fmt: skip
_AVX512 = (
    "-mavx2",
    "-mfma",
    "-mavx512f",
    "-mavx512bw",
    "-mavx512dq",
    "-mavx512vl",
    "-mprefer-vector-width=512",
)
# Sources for every machine, and those for one instruction set, with its flags.
_SOURCES = ("cpu.cpp", "linear.cpp", "linear_portable.cpp", "plan.cpp", "threads.cpp")
_X86_SOURCES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("linear_avx2.cpp", ("-mavx2", "-mfma")),
    ("linear_avx512.cpp", _AVX512),
    ("linear_avx512_bf16.cpp", (*_AVX512, "-mavx512bf16")),
    ("linear_amx.cpp", (*_AVX512, "-mavx512bf16", "-mamx-tile", "-mamx-bf16")),
)


class CompilerError(RuntimeError):
    """There is no C++ compiler, or it failed on a file that every build needs."""


@dataclass(frozen=True)
class _Unit:
    source: str
    flags: tuple[str, ...]
    optional: bool


def compiler() -> list[str]:
    """The C++ compiler's command: ``$CXX``, else g++, clang++ or c++. ``CompilerError`` if there is none."""
    command = shlex.split(os.environ.get("CXX", ""))
    if command:
        if shutil.which(command[0]):
            return command
        raise CompilerError(f"CXX names '{command[0]}', which is not there")
    for name in ("g++", "clang++", "c++"):
        if shutil.which(name):
            return [name]
    raise CompilerError("Tamis needs a C++17 compiler to build its CPU kernels: install g++ or clang++, or set CXX")


def sources() -> tuple[tuple[str, tuple[str, ...]], ...]:
    """The source files for this machine, each with its instruction set's flags (none: needed everywhere)."""
    common = tuple((source, ()) for source in _SOURCES)
    return common + (_X86_SOURCES if platform.machine() in ("x86_64", "AMD64") else ())


def compile_library(output: Path, *, extra_flags: Sequence[str] = ()) -> tuple[str, ...]:
    """Build the shared library at ``output``; returns the instruction-set files the compiler could not build.

    ``extra_flags`` go to every compilation and to the link. ``CompilerError`` says what failed.
    """
    command = compiler()
    units = [_Unit(source, flags, optional=bool(flags)) for source, flags in sources()]
    left_out: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            built = list(pool.map(lambda unit: _compile(command, unit, Path(folder), extra_flags), units))
        for unit, compiled in zip(units, built, strict=True):
            if compiled is None:
                left_out.append(unit.source)
        objects = [str(compiled) for compiled in built if compiled is not None]
        output.parent.mkdir(parents=True, exist_ok=True)
        finished = Path(folder) / LIBRARY_NAME
        link = ["-shared", "-Wl,--as-needed", "-o", str(finished)]
        _run([*command, *_optimisation(extra_flags), *objects, *link, "-pthread"])
        shutil.copy(finished, output.with_suffix(".partial"))
        output.with_suffix(".partial").replace(output)  # never half a library, also for a process that has it open
    return tuple(left_out)


def _optimisation(extra_flags: Sequence[str]) -> list[str]:
    return [flag for flag in extra_flags if not flag.startswith(("-I", "-D"))]


def _compile(command: list[str], unit: _Unit, folder: Path, extra_flags: Sequence[str]) -> Path | None:
    here = Path(__file__).parent
    compiled = folder / f"{unit.source}.o"
    if unit.optional and not _accepts(command, unit.flags, folder):
        print(
            f"the C++ compiler does not know {' '.join(unit.flags)}: leaving out {unit.source}",
            file=sys.stderr,
        )
        return None
    _run(
        [
            *command,
            *_COMMON_FLAGS,
            *unit.flags,
            *extra_flags,
            "-c",
            str(here / unit.source),
            "-o",
            str(compiled),
        ]
    )
    return compiled


def _accepts(command: list[str], flags: tuple[str, ...], folder: Path) -> bool:
    probe = folder / f"probe{abs(hash(flags))}.cpp"
    probe.write_text("#include <immintrin.h>\nint main() { return 0; }\n", encoding="utf-8")
    result = subprocess.run([*command, *flags, "-c", str(probe), "-o", f"{probe}.o"], capture_output=True, check=False)
    return result.returncode == 0


def _run(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise CompilerError(f"the C++ compiler failed: {shlex.join(command)}\n{result.stderr}")
    if result.stderr:
        print(result.stderr, file=sys.stderr)
