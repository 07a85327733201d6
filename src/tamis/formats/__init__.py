"""What a sparsity pattern is, how it is found in a weight, and how it is encoded. NumPy only."""

from __future__ import annotations

from tamis.formats.detect import SparsityStatistics, detect, statistics, tightest
from tamis.formats.dtype import DType
from tamis.formats.nm import (
    CompressedNM,
    Violations,
    compress,
    decompress,
    is_nm,
    magnitude_mask,
    violations,
)
from tamis.formats.pattern import DENSE, NM, TWO_FOUR, Dense, Pattern, divides, fits, parse_pattern

__all__ = [
    "CompressedNM",
    "DENSE",
    "DType",
    "Dense",
    "NM",
    "Pattern",
    "SparsityStatistics",
    "TWO_FOUR",
    "Violations",
    "compress",
    "decompress",
    "detect",
    "divides",
    "fits",
    "is_nm",
    "magnitude_mask",
    "parse_pattern",
    "statistics",
    "tightest",
    "violations",
]
