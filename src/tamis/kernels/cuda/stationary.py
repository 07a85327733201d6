"""Tiles and launch of the stationary form of ``implicit_gemm_hopper.cu``: weights come from registers.

The same kernel family, with ``Tile.stationary``: a block has one tile of filters for good, whose weights its warpgroups
load into registers, and walks over pixels (``hopper_stationary.h``). Short sums have all their weights there, loaded
once: a thread has at most 240 registers, and its sums are in them too. Weights of longer ones are streamed: a few steps
are there at a time (``Tile.streamed``), and the next are on their way. That is for tiles of whole lines, whose taps
follow each other without a wait.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from tamis.formats.dtype import DType
from tamis.kernels.cuda.convolution import Convolution
from tamis.kernels.cuda.implicit_gemm import Epilogue, Tile, deepest, implicit_gemm_hopper
from tamis.kernels.cuda.line_tiles import WIDTHS as LINE_WIDTHS
from tamis.kernels.cuda.line_tiles import lines_of
from tamis.kernels.cuda.specification import Kernel, ceil_divide

# Blocks of 64 filters, groups, resident blocks and pixels of the tiles, of lines this many pixels at most. Where two
# blocks share a multiprocessor the compiler takes no product of more than 192 pixels. Where the prior sees no
# difference the first ones race.
STATIONARY_TILES = (
    (1, 1, 2, 192), (2, 2, 1, 128), (1, 1, 2, 128), (1, 2, 1, 256), (1, 2, 1, 192), (1, 2, 1, 128), (2, 1, 2, 128),
    (2, 2, 1, 64), (2, 1, 2, 64), (1, 1, 3, 128), (1, 1, 3, 64), (1, 1, 2, 64), (1, 2, 1, 64),
)  # fmt: skip
WIDTHS = (64, 120, 128, 176, 192, 232, 256)  # pixels of tiles of lines
# The same of tiles whose weights are streamed. They have the widths of other tiles of lines.
STREAMED_TILES = ((1, 2, 1, 256), (1, 2, 1, 192), (1, 2, 1, 128), (1, 1, 2, 192))
_LEAST_STREAMED = 3  # steps: one is multiplied, one is in line, one comes
# A thread that computes has so many registers, by groups and resident blocks; of those of three blocks eight are spare.
_REGISTERS = {(1, 2): 232, (2, 1): 240, (1, 3): 128}
# What it needs beside weights and up to so many sums of one block of filters, or of two, while they leave: packed to 16
# bits in registers, or in any other way. Tried out: with these nvcc 13.0 spills nothing.
_OTHERS = {1: ((32, 38, 64), (64, 46, 58), (128, 54, 60)), 2: ((64, 46, 84), (128, 62, 100))}


def held_registers(steps: int, blocks: int, *, sparse: bool, itemsize: int = 2) -> int:
    """The registers of a thread that hold the weights of ``64 * blocks`` filters, in 2:4 with their places."""
    step = 8 + (1 if itemsize == 2 else 2) if sparse else 16
    return steps * step * blocks


def most_steps(tile: Tile, *, sparse: bool, itemsize: int = 2, packed: bool = True) -> int:
    """How many steps a tile can hold beside its sums; ``packed``: results are of 16 bits, in runs of eight channels."""
    sums = tile.blocks * tile.pixels // 2
    others = next(numbers for most, *numbers in _OTHERS[tile.blocks] if sums <= most)[0 if packed else 1]
    if tile.resident > 2 and not packed:
        return 0
    left = _REGISTERS[tile.groups, tile.resident] - sums - others
    return max(left // held_registers(1, tile.blocks, sparse=sparse, itemsize=itemsize), 0)


def stationary_tiles(shape: Convolution, *, sparse: bool, itemsize: int = 2, residual: bool = False) -> list[Tile]:
    """The tiles that hold all weights of a convolution, or stream them; none for one with groups."""
    if shape.groups > 1:
        return []
    packed, found = itemsize == 2 and shape.filters % 8 == 0, []
    for tiles in (_tiles, _streamed_tiles):
        for tile in tiles(shape, sparse=sparse, itemsize=itemsize, residual=residual):
            if too_long(shape, tile, sparse=sparse, itemsize=itemsize, packed=packed) is None and tile not in found:
                found.append(tile)
    return found


def too_long(shape: Convolution, tile: Tile, *, sparse: bool, itemsize: int = 2, packed: bool = True) -> str | None:
    """Why a tile's registers do not do for a convolution's weights; None where they do."""
    steps, most = shape.steps_in(itemsize), most_steps(tile, sparse=sparse, itemsize=itemsize, packed=packed)
    if not tile.streamed:
        return f"weights of {steps} steps do not stay in registers; the tile holds {most}" if steps > most else None
    if not tile.lines or tile.streamed < _LEAST_STREAMED or shape.kernel[0] * shape.kernel[1] % tile.streamed:
        return f"weights are streamed by whole lines, and so that {tile.streamed} steps divide the taps"
    return f"{tile.streamed} steps do not fit into registers; the tile holds {most}" if tile.streamed > most else None


def no_stationary_tiles(shape: Convolution, *, sparse: bool, itemsize: int = 2) -> str | None:
    """Why there are none for a convolution; None where there are."""
    if shape.groups > 1:
        return "weights of groups do not stay in registers"
    tiles = _tiles(shape, sparse=sparse, itemsize=itemsize, residual=False)
    packed = itemsize == 2 and shape.filters % 8 == 0
    most = max(most_steps(tile, sparse=sparse, itemsize=itemsize, packed=packed) for tile in tiles)
    steps = shape.steps_in(itemsize)
    return None if steps <= most else f"weights of {steps} steps do not stay in registers; those of {most} would"


def _tiles(shape: Convolution, *, sparse: bool, itemsize: int, residual: bool) -> Iterator[Tile]:
    """Of all forms, whether or not they hold the weights: of single pixels, and of lines where there are any."""
    for blocks, groups, resident, pixels in STATIONARY_TILES:
        # Lines take registers of their own, of which a third of a multiprocessor's leaves too few.
        lines = lines_of(shape, pixels, WIDTHS) if resident < 3 else None
        for wide, numbers in (*((lines,) if lines else ()), (pixels, (0, 0, 0))):
            try:
                yield deepest(blocks, groups, wide, 1, 1, resident, sparse=sparse, itemsize=itemsize,
                              lines=(*numbers, 0), residual=residual, stationary=True)  # fmt: skip
            except ValueError:  # two stages of such long lines do not fit
                continue


def _streamed_tiles(shape: Convolution, *, sparse: bool, itemsize: int, residual: bool) -> Iterator[Tile]:
    """Of whole lines, with as few steps at a time as divide the taps."""
    taps = shape.kernel[0] * shape.kernel[1]
    steps = next((count for count in range(_LEAST_STREAMED, taps + 1) if taps % count == 0), 0)
    for blocks, groups, resident, most in STREAMED_TILES if steps else ():
        lines = lines_of(shape, most, LINE_WIDTHS if resident == 1 else WIDTHS)
        if lines is None:
            continue
        try:
            yield deepest(blocks, groups, lines[0], 1, 1, resident, sparse=sparse, itemsize=itemsize,
                          lines=(*lines[1], 0), residual=residual, stationary=True, streamed=steps)  # fmt: skip
        except ValueError:  # two stages of such long lines do not fit
            continue


def implicit_gemm_stationary(
    shape: Convolution, tile: Tile, dtype: DType, multiprocessors: int, epilogue: Epilogue, *, sparse: bool
) -> Kernel:
    """The kernel for one shape; see ``implicit_gemm_hopper``.

    The packed weights are those of ``formats.hopper.pack_stationary``. ``ValueError`` for what the kernel cannot do,
    among it weights that do not fit into registers.
    """
    size, out = dtype.size_bytes, epilogue.dtype or dtype
    packed = size == out.size_bytes == 2 and not any(number % 8 for number in epilogue.places(shape.filters))
    if shape.groups > 1:
        raise ValueError("weights of groups do not stay in registers")
    if tile.together > 1:
        raise ValueError("a tile whose weights stay in registers is that of one block")
    reason = too_long(shape, tile, sparse=sparse, itemsize=size, packed=packed)
    if reason is not None:
        raise ValueError(reason)
    kernel = implicit_gemm_hopper(shape, tile, dtype, multiprocessors, epilogue, sparse=sparse)
    defines = {
        **kernel.defines, "KERNEL": f"{kernel.function}_{'streamed' if tile.streamed else 'stationary'}",
        "HELD_STEPS": tile.streamed or shape.steps_in(size), "TAPS": shape.kernel[0] * shape.kernel[1],
    }  # fmt: skip
    return dataclasses.replace(kernel, defines=defines, grid=(blocks_of(shape, tile, multiprocessors), 1, 1))


def blocks_of(shape: Convolution, tile: Tile, multiprocessors: int) -> int:
    """The blocks of a launch: equally many for each tile of filters, no more than stay or have something to do."""
    rows = ceil_divide(shape.filters, tile.filters)
    return rows * max(min(tile.count(shape) // rows, multiprocessors * tile.resident // rows), 1)
