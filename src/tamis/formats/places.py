"""Where the kept values of a 2:4 weight lie, in two bits each: the form in which engines store them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tamis.errors import FormatError


def pack_places(indices: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Places 0..3 ``[rows, kept]`` as bytes ``[rows, kept / 4]``; the first of four lies in the lowest two bits.

    ``indices`` are those of ``CompressedNM``. ``FormatError`` when four do not divide ``kept`` or a place is above 3.
    """
    rows, kept = indices.shape
    if kept % 4:
        raise FormatError(f"{kept} places in a row; a byte holds four", remedy="pad the weight to a multiple of 8")
    if indices.max(initial=0) > 3:
        raise FormatError(f"place {indices.max()} does not exist in a group of four")
    shifts = np.arange(0, 8, 2, dtype=np.uint8)
    four = indices.astype(np.uint8).reshape(rows, kept // 4, 4)
    packed: NDArray[np.uint8] = np.bitwise_or.reduce(np.left_shift(four, shifts), axis=-1)
    return packed


def unpack_places(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The inverse of ``pack_places``: ``[rows, 4 * bytes]``."""
    shifts = np.arange(0, 8, 2, dtype=np.uint8)
    return (packed[..., None] >> shifts & np.uint8(3)).reshape(packed.shape[0], -1)
