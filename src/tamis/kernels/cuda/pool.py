"""Constants and launches of pooling over windows and over whole images, channels last."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Literal

from tamis.formats.dtype import DType
from tamis.kernels.cuda.specification import ELEMENTS, Argument, Kernel, ceil_divide, vector_width

_THREADS = 256
_BLOCK = 256  # threads that reduce over pixels together


def pool(
    shape: tuple[int, ...],
    output: tuple[int, ...],
    dtype: DType,
    *,
    average: bool,
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    count_pads: bool = False,
) -> Kernel:
    """Input 0, channels-last of logical ``shape`` [N,C,H,W], pooled to output 0 of shape ``output``.

    ``pads`` are (top, left, bottom, right).
    """
    _, channels, height, width = shape
    vector = vector_width(channels, dtype)
    defines: dict[str, str | int | float] = {
        "TYPE": ELEMENTS[dtype], "WIDTH": vector, "CHANNELS": channels, "IMAGE_HEIGHT": height, "IMAGE_WIDTH": width,
        "OUT_HEIGHT": output[2], "OUT_WIDTH": output[3], "KERNEL_Y": kernel[0], "KERNEL_X": kernel[1],
        "STRIDE_Y": strides[0], "STRIDE_X": strides[1], "DILATION_Y": dilations[0], "DILATION_X": dilations[1],
        "TOP": pads[0], "LEFT": pads[1], "BOTTOM": pads[2], "RIGHT": pads[3], "AVERAGE": int(average),
        "COUNT_PADS": int(count_pads),
    }  # fmt: skip
    vectors = prod(output) // vector
    arguments = (Argument("out", 0), Argument("in", 0), Argument("int", vectors))
    return Kernel("pool", defines, (max(ceil_divide(vectors, _THREADS), 1), 1, 1), (_THREADS, 1, 1), arguments)


def reduce_pixels(shape: tuple[int, ...], dtype: DType, kind: Literal["mean", "sum", "max"]) -> Kernel:
    """Input 0, channels-last of logical ``shape`` [N,C,...], reduced over its pixels to output 0 [N,C]."""
    batch, channels, pixels = shape[0], shape[1], prod(shape[2:])
    width = vector_width(channels, dtype)
    lanes = 4
    # As few channels a block as fill a cache line or two, so that even one image occupies many multiprocessors.
    while lanes < 16 and lanes * width < channels and lanes * width * dtype.size_bytes < 256:
        lanes *= 2
    rows = _BLOCK // lanes
    while rows > 1 and rows >= 2 * pixels:
        rows //= 2
    defines: dict[str, str | int | float] = {
        "TYPE": ELEMENTS[dtype], "CHANNELS": channels, "WIDTH": width, "LANES": lanes, "ROWS": rows,
        "LARGEST": int(kind == "max"),
    }  # fmt: skip
    blocks = batch * ceil_divide(channels // width, lanes)
    divisor = pixels if kind == "mean" else 1
    arguments = (Argument("out", 0), Argument("in", 0), Argument("int", pixels), Argument("int", divisor))
    return Kernel("reduce_pixels", defines, (max(blocks, 1), 1, 1), (lanes, rows, 1), arguments)
