"""Tamis's CUDA kernels for everything around the matrix products, one family a ``.cu`` file.

``unit.py`` makes a translation unit of a source and its constants, and ``compile.py`` a cubin of that, or finds it on
disk; ``specification.py`` says what a launch is; a module for each family (``pointwise.py``, ``movement.py``,
``rows.py``, ``pool.py``) chooses constants, grid and block for a shape. Nothing here needs a GPU: cubins are kept in
the engine, and the device only loads and launches them.
"""

from __future__ import annotations

from tamis.kernels.cuda.compile import compile_source, compiler_name
from tamis.kernels.cuda.specification import Argument, Kernel

__all__ = ["Argument", "Kernel", "compile_source", "compiler_name"]
