"""Constants and launches of what only moves and converts: formats, images with more channels, joints and cuts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from math import gcd, prod

from tamis.formats.dtype import DType
from tamis.kernels.cuda.pointwise import Operand, physical_order, pointwise
from tamis.kernels.cuda.specification import ELEMENTS, VECTOR_BYTES, Argument, Kernel, ceil_divide, vector_width

MOST_PADDED_CHANNELS = 16
MOST_PIECES = 8
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

    ``source`` is the input's element type, and whether its channels come last. ``ValueError`` as ``space_to_depth``.
    """
    line = (1, prod(shape[2:]))
    return space_to_depth((*shape[:2], *line), source, 1, line, channels, dtype)


def space_to_depth(
    shape: tuple[int, ...],
    source: tuple[DType, bool],
    block: int,
    size: tuple[int, int],
    channels: int,
    dtype: DType,
    before: tuple[int, int] = (0, 0),
) -> Kernel:
    """Input 0, an image of ``shape`` [N,C,H,W], as output 0: channels-last [N,channels,*size].

    A pixel of the output holds a block of ``block`` x ``block`` pixels, channel by channel and row by row, then zeros.
    The image's corner is the block behind ``before`` others (vertical, horizontal), and pixels outside of the image are
    zeros. ``source`` is the input's element type, and whether its channels come last. ``ValueError`` where a block does
    not fit into ``channels``, or for more than 16 channels that are no multiple of 16 bytes.
    """
    width = vector_width(channels, dtype)
    run = 1 if source[1] else gcd(block, shape[3], width)
    # Threads write 16 bytes each, or where these do not divide the pixels, whole pixels.
    part = width if width * dtype.size_bytes == VECTOR_BYTES else channels
    if not shape[1] * block * block <= channels or part > MOST_PADDED_CHANNELS:
        raise ValueError(
            f"cannot pad blocks of {block} x {block} pixels of an image of shape {shape} to {channels} channels"
        )
    defines: dict[str, str | int | float] = {
        "IN_TYPE": ELEMENTS[source[0]], "OUT_TYPE": ELEMENTS[dtype], "CHANNELS_IN": shape[1], "CHANNELS_OUT": channels,
        "IN_HEIGHT": shape[2], "IN_WIDTH": shape[3], "OUT_HEIGHT": size[0], "OUT_WIDTH": size[1], "BLOCK": block,
        "BLOCKS_ABOVE": before[0], "BLOCKS_LEFT": before[1], "IN_CHANNELS_LAST": int(source[1]), "PART": part,
        "RUN": run, "WIDTH": width,
    }  # fmt: skip
    parts = shape[0] * size[0] * size[1] * (channels // part)
    arguments = (Argument("out", 0), Argument("in", 0), Argument("int", parts))
    grid = (max(ceil_divide(parts, _THREADS), 1), 1, 1)
    return Kernel("space_to_depth", defines, grid, (_THREADS, 1, 1), arguments)


def concat(
    shapes: Sequence[tuple[int, ...]],
    axis: int,
    dtype: DType,
    channels_last: bool,
    whole: Argument,
    pieces: Sequence[Argument],
) -> Kernel:
    """Tensors of ``shapes`` joined along ``axis`` to ``whole``, or ``whole`` cut into them where that is an input.

    ``ValueError`` unless there are 2 to 8 pieces.
    """
    if not 2 <= len(shapes) <= MOST_PIECES:
        raise ValueError(f"{len(shapes)} pieces; the kernel takes 2 to {MOST_PIECES}")
    order = physical_order(len(shapes[0]), channels_last)
    place = order.index(axis)
    rows = prod(shapes[0][other] for other in order[:place])
    runs = [prod(shape) // rows * dtype.size_bytes for shape in shapes]
    unit = gcd(VECTOR_BYTES, *runs)
    ends = [end // unit for end in accumulate(runs)]
    missing = MOST_PIECES - len(shapes)
    units = rows * ends[-1]
    defines: dict[str, str | int | float] = {"BYTES": unit, "PIECES": len(shapes), "SPLIT": int(whole.kind == "in")}
    arguments = (
        whole, Argument("int", units), Argument("int", ends[-1]), *pieces, *[Argument("null")] * missing,
        *(Argument("int", end) for end in ends), *[Argument("int", ends[-1])] * missing,
    )  # fmt: skip
    return Kernel("concat", defines, (max(ceil_divide(units, _THREADS), 1), 1, 1), (_THREADS, 1, 1), arguments)
