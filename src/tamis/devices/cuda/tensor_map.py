"""Tensor maps: where the copy engine of Hopper and newer GPUs finds its boxes, in the driver's encoding.

Source: CUDA driver API, "Tensor Map Object Management". A map holds an address, so it is made anew for another tensor.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from ctypes import c_int, c_uint32, c_uint64
from typing import Any

from tamis.devices.cuda.module import check, load_driver

BYTES, ALIGNMENT = 128, 64
_BOX_BYTES = 128  # of a pixel's channels: the widest swizzle
_WINDOW_BYTES = 16  # from window to window, see ``TensorMap``
_TYPES = {"int8": 0, "float8_e4m3": 0, "float16": 6, "bfloat16": 9}  # bytes are bytes
_SIZES = {"int8": 1, "float8_e4m3": 1, "float16": 2, "bfloat16": 2}
_NO_INTERLEAVE, _SWIZZLE_128, _PROMOTION_256, _ZEROS_OUTSIDE = 0, 3, 3, 0


def room() -> ctypes.Array[ctypes.c_char]:
    """Zeros for one map, at an address that the driver accepts."""
    block = (ctypes.c_char * (BYTES + ALIGNMENT))()
    return (ctypes.c_char * BYTES).from_buffer(block, -ctypes.addressof(block) % ALIGNMENT)


def encode(target: ctypes.Array[ctypes.c_char], described: Mapping[str, Any], address: int, layer: str) -> None:
    """Write the map of a tensor at ``address`` into ``target``.

    ``described`` has the fields of ``tamis.kernels.cuda.specification.TensorMap``. Raises ``DeviceError`` in the
    driver's words.
    """
    driver, channels, size = load_driver(), described["channels"], _SIZES[described["dtype"]]
    width_of_box = _BOX_BYTES // size
    common = (_NO_INTERLEAVE, _SWIZZLE_128, _PROMOTION_256, _ZEROS_OUTSIDE)
    batch, height, width = described["image"]
    mode = described["mode"]
    extents = [channels, batch] if mode == "rows" else [channels, width, height, batch]
    strides = [size * channels]
    for extent in extents[1:-1]:
        strides.append(strides[-1] * extent)
    if described.get("apart"):  # pixels may overlap: the driver only asks for multiples of 16 bytes
        strides = [size * elements for elements in described["apart"][: len(strides)]]
    windows = described.get("windows", 0)
    # One axis more, whose neighbours lie within a pixel: the second one, but im2col mode walks along all but the last.
    place = 0 if not windows else len(extents) if mode == "taps" else 1
    if place:
        extents.insert(place, windows)
        strides.insert(place - 1, _WINDOW_BYTES)
    head = (target, _TYPES[described["dtype"]], len(extents), address, _array(c_uint64, extents),
            _array(c_uint64, strides))  # fmt: skip
    if mode == "taps":
        rest = (0,) if windows else ()  # images: taps do not see others
        corners = ((*described["low"], *rest), (*described["high"], *rest))
        steps = (1, *described["strides"], *[1] * (len(extents) - 3))
        status = driver.cuTensorMapEncodeIm2col(
            *head, *(_array(c_int, corner) for corner in corners), width_of_box, described["box"],
            _array(c_uint32, steps), *common,
        )  # fmt: skip
    else:
        box = [width_of_box, described["box"], *(() if mode == "rows" else (described["lines"], 1))]
        if place:
            box.insert(place, 1)
        status = driver.cuTensorMapEncodeTiled(*head, _array(c_uint32, box), _array(c_uint32, [1] * len(box)), *common)
    check(driver, status, "encoding a tensor map", layer)


def _array(kind: Any, numbers: Sequence[int]) -> ctypes.Array[Any]:
    array: ctypes.Array[Any] = (kind * len(numbers))(*numbers)
    return array
