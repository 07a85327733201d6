"""Finding NVIDIA's shared libraries: loaded already, in a wheel, in PyTorch, or on the system.

CUDA builds of PyTorch bring them as wheels, which put them into ``nvidia/<name>/lib`` of ``site-packages``. A newer
wheel may lie in another folder of the Python path; a caller that cares compares versions.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from tamis.errors import MissingLibrary

# Name of a function, its result type and the types of its arguments.
Signature: TypeAlias = tuple[str, Any, tuple[Any, ...]]


def candidates(names: Sequence[str]) -> list[str]:
    """Paths of files with one of these names, best first; the bare names, for the system to find, come last."""
    found: dict[Path, None] = {}
    for path in (*_loaded(names), *_installed(names)):
        found.setdefault(path.resolve())
    return [*map(str, found), *names]


def _loaded(names: Sequence[str]) -> Iterable[Path]:
    """Libraries that this process has mapped already."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return []
    paths = dict.fromkeys(line.split(maxsplit=5)[5] for line in lines if line.endswith(tuple(names)))
    return [path for path in map(Path, paths) if path.name in names]


def _installed(names: Sequence[str]) -> Iterable[Path]:
    """Libraries in the wheels and in PyTorch, in the order of the Python path."""
    for folder in map(Path, sys.path):
        for name in names:
            yield from sorted((folder / "nvidia").glob(f"*/lib/{name}"))
            yield from (path for path in (folder / "torch" / "lib" / name,) if path.exists())


def open_library(path: str, signatures: Sequence[Signature]) -> Any:
    """The library at ``path`` with typed functions; ``OSError`` when it cannot be loaded or lacks one of them.

    Its own symbols come first (``RTLD_DEEPBIND``), so that a second version beside the one that PyTorch loaded
    calls itself.
    """
    library = ctypes.CDLL(path, mode=ctypes.RTLD_LOCAL | getattr(os, "RTLD_DEEPBIND", 0))
    for name, result, arguments in signatures:
        try:
            function = getattr(library, name)
        except AttributeError as error:
            raise OSError(f"{path} has no function {name}") from error
        function.restype, function.argtypes = result, arguments
    return library


def load_first(title: str, names: Sequence[str], signatures: Sequence[Signature], remedy: str) -> Any:
    """The first library that can be loaded. Raises ``MissingLibrary``, with the reason of the last attempt."""
    reason = ""
    for path in candidates(names):
        try:
            return open_library(path, signatures)
        except OSError as error:
            reason = str(error)
    raise MissingLibrary(f"{title} was not found ({reason})", remedy=remedy)
