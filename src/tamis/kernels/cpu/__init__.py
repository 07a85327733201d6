"""Linear layers with few rows on the CPU, dense and 2:4, alone and in chains.

Sources: ``linear.cpp`` (the driver), ``plan.cpp`` (its plan of a call), ``linear_*.cpp`` (one instruction set
each), ``panel.h`` and ``activation.h`` (what surrounds the products); ``tamis_cpu.h`` is their C interface.
Weights are packed by ``tamis.formats.tiles``.
"""

from __future__ import annotations

from tamis.kernels.cpu.library import Library, levels, load
from tamis.kernels.cpu.linear import Chain, Layer, LinearSpec, Piece, Step, pack

__all__ = ["Chain", "Layer", "Library", "LinearSpec", "Piece", "Step", "levels", "load", "pack"]
