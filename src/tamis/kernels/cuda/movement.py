"""Constants and launches of what only moves and converts: formats of tensors, and images padded to more channels."""

from __future__ import annotations

from math import prod

from tamis.formats.dtype import DType
from tamis.kernels.cuda.pointwise import Operand, physical_order, pointwise
from tamis.kernels.cuda.specification import ELEMENTS, Argument, Kernel, ceil_divide, vector_width

MOST_PADDED_CHANNELS = 16
_TILE = 64
_THREADS = 256


def convert(shape: tuple[int, ...], source: tuple[DType, bool], target: tuple[DType, bool]) -> Kernel:
    """Input 0 in another format as output 0.

    ``source`` and ``target`` are the element type, and whether the channels come last in memory.
    """
    (from_dtype, from_last), (to_dtype, to_last) = source, target
    if _same_order(shape, from_last, to_last):
        operand = Operand(shape, from_dtype, to_last, Argument("in", 0))
        return pointwise([], [operand], shape, to_dtype, to_last)
    channels, pixels = shape[1], prod(shape[2:])
    if to_last and channels <= MOST_PADDED_CHANNELS // 2:
        return pad_channels(shape, source, channels, to_dtype)
    rows, columns = (channels, pixels) if to_last else (pixels, channels)
    defines: dict[str, str | int | float] = {
        "IN_TYPE": ELEMENTS[from_dtype],
        "OUT_TYPE": ELEMENTS[to_dtype],
        "WIDTH_IN": vector_width(columns, from_dtype),
        "WIDTH_OUT": vector_width(rows, to_dtype),
    }
    blocks = shape[0] * ceil_divide(rows, _TILE) * ceil_divide(columns, _TILE)
    arguments = (Argument("out", 0), Argument("in", 0), Argument("int", rows), Argument("int", columns))
    return Kernel("transpose", defines, (max(blocks, 1), 1, 1), (_THREADS, 1, 1), arguments)


def _same_order(shape: tuple[int, ...], first_last: bool, second_last: bool) -> bool:
    """Whether two layouts put the elements in one order, also where axes of extent 1 hide the difference."""
    orders = [
        [axis for axis in physical_order(len(shape), last) if shape[axis] > 1] for last in (first_last, second_last)
    ]
    return orders[0] == orders[1]


def pad_channels(shape: tuple[int, ...], source: tuple[DType, bool], channels: int, dtype: DType) -> Kernel:
    """Input 0, an image of ``shape`` [N,C,...], as output 0: channels-last [N,channels,...] with zeros behind C.

    ``source`` is the input's element type, and whether its channels come last. ``ValueError`` where C is larger than
    ``channels`` or ``channels`` than 16.
    """
    if len(shape) < 3 or not shape[1] <= channels <= MOST_PADDED_CHANNELS:
        raise ValueError(
            f"cannot pad an image of shape {shape} to {channels} of at most {MOST_PADDED_CHANNELS} channels"
        )
    pixels = prod(shape[2:])
    defines: dict[str, str | int | float] = {
        "IN_TYPE": ELEMENTS[source[0]],
        "OUT_TYPE": ELEMENTS[dtype],
        "CHANNELS_IN": shape[1],
        "CHANNELS_OUT": channels,
        "IN_CHANNELS_LAST": int(source[1]),
        "WIDTH": vector_width(channels, dtype),
    }
    everything = shape[0] * pixels
    arguments = (Argument("out", 0), Argument("in", 0), Argument("int", pixels), Argument("int", everything))
    grid = (max(ceil_divide(everything, _THREADS), 1), 1, 1)
    return Kernel("pad_channels", defines, grid, (_THREADS, 1, 1), arguments)
