"""Enumerations and prototypes read from NVIDIA's own headers, where they are installed."""

from __future__ import annotations

import re
import sys
from pathlib import Path


def find_headers(name: str) -> list[Path]:
    """Headers of this name in wheels on the Python path and in the CUDA toolkit."""
    found = [path for folder in sys.path for path in sorted((Path(folder) / "nvidia").glob(f"*/include/{name}"))]
    return found + [path for path in (Path("/usr/local/cuda/include") / name,) if path.exists()]


def without_comments(header: Path) -> str:
    return re.sub(r"/\*.*?\*/|//[^\n]*", "", header.read_text(errors="replace"), flags=re.DOTALL)


def constants_of(header: Path) -> dict[str, int]:
    """Every enumerator of a header with its value."""
    values: dict[str, int] = {}
    for body in re.findall(r"enum\b[^{;]*\{([^}]*)\}", without_comments(header)):
        following = 0
        for entry in filter(None, map(str.strip, body.split(","))):
            name, _, expression = (part.strip() for part in entry.partition("="))
            if expression:
                text = re.sub(r"\b(0x[0-9a-fA-F]+|\d+)[uUlL]+\b", r"\1", expression)
                try:
                    following = eval(text, {"__builtins__": {}}, values)
                except NameError:  # made of constants of another header
                    continue
            values[name] = following
            following += 1
    return values


def prototypes_of(header: Path) -> dict[str, list[str]]:
    """The arguments of every function whose name starts with ``cublasLt`` or ``cusparseLt``, as text."""
    found = re.findall(r"\b(cu(?:blas|sparse)Lt\w+)\s*\(([^()]*)\)\s*;", without_comments(header))
    return {
        name: [] if arguments.strip() in ("", "void") else [" ".join(a.split()) for a in arguments.split(",")]
        for name, arguments in found
    }


def kind_of(argument: str) -> str:
    """``pointer``, ``64-bit`` or ``32-bit``: how an argument is passed."""
    name = argument.split()
    if "*" in argument or argument.endswith("[]") or any(w.endswith(POINTER_TYPES) for w in name[:-1]):
        return "pointer"
    return "64-bit" if any(w in ("size_t", "uint64_t", "int64_t") for w in name) else "32-bit"


# Typedefs of pointers.
POINTER_TYPES = (
    "cublasLtHandle_t", "cublasLtMatmulDesc_t", "cublasLtMatrixLayout_t", "cublasLtMatmulPreference_t", "cudaStream_t",
)  # fmt: skip
