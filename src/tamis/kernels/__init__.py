"""Tamis's own kernels: source that can be read alone. ``cpu`` and ``cuda`` are separate packages.

``store.py`` keeps what was compiled at run time on disk.
"""

from __future__ import annotations

from tamis.kernels.store import VARIABLE, KernelStore, kernel_store

__all__ = [
    "KernelStore",
    "VARIABLE",
    "kernel_store",
]
