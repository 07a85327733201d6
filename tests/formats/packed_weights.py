"""What holds for weights packed for any tensor cores: shapes to try, and checks that take the functions that pack."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tamis.errors import FormatError
from tamis.formats import TWO_FOUR, magnitude_mask
from tamis.formats.steps import places_bytes

SHAPES = [(64, 1, 64), (128, 9, 64), (130, 9, 68), (1, 1, 4), (200, 4, 256), (256, 1, 1000), (63, 25, 12)]


def weight(shape: tuple[int, int, int], dtype: type, *, sparse: bool, seed: int = 0) -> np.ndarray:
    """Random weights, in 2:4 or dense."""
    dense = np.random.default_rng(seed).standard_normal(shape).astype(dtype)
    return np.where(magnitude_mask(dense.astype(np.float32), TWO_FOUR), dense, dtype(0)) if sparse else dense


def assert_places_ascend(pack: Callable[..., Any], unpack: Callable[..., np.ndarray], rows: int) -> None:
    """Also in groups that are not full: equal places are not allowed, hardware's answer to them is undefined."""
    matrix = np.zeros((64, 1, 64), np.float16)
    matrix[:, :, ::4] = np.random.default_rng(0).choice([0.0, 1.0], (64, 1, 16))
    matrix[0, 0, 3] = -0.0
    packed = pack(matrix, 64 // rows, sparse=True)
    places = packed.data[..., -places_bytes(64) :]
    for nibble in (places & 15, places >> 4):
        assert ((nibble & 3) < (nibble >> 2)).all()
    np.testing.assert_array_equal(unpack(packed), matrix)


def assert_refused(pack: Callable[..., Any]) -> None:
    """What no tensor cores multiply."""
    with pytest.raises(FormatError, match="16 bits"):
        pack(np.zeros((64, 1, 64), np.float32), 1, sparse=False)
    with pytest.raises(FormatError, match="taps"):
        pack(np.zeros((64, 64), np.float16), 1, sparse=False)
    with pytest.raises(FormatError, match="non-zeros"):
        pack(np.ones((64, 1, 64), np.float16), 1, sparse=True)
