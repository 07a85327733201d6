"""Two-bit places of 2:4 weights: packed and back."""

from __future__ import annotations

import numpy as np
import pytest

from tamis.errors import FormatError
from tamis.formats.places import pack_places, unpack_places


def test_packing_is_undone_by_unpacking() -> None:
    indices = np.random.default_rng(0).integers(0, 4, (7, 24)).astype(np.uint8)
    packed = pack_places(indices)
    assert packed.shape == (7, 6)
    assert packed.dtype == np.uint8
    np.testing.assert_array_equal(unpack_places(packed), indices)


def test_the_first_place_lies_lowest() -> None:
    assert pack_places(np.array([[1, 2, 3, 0]], np.uint8)).tolist() == [[0b00_11_10_01]]


def test_what_cannot_be_packed_is_an_error() -> None:
    with pytest.raises(FormatError, match="6 places in a row"):
        pack_places(np.zeros((2, 6), np.uint8))
    with pytest.raises(FormatError, match="place 4"):
        pack_places(np.full((1, 4), 4, np.uint8))
