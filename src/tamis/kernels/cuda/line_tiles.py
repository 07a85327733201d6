"""Tiles of whole lines of ``implicit_gemm_hopper.cu``: lines of the padded image are copied once, for all taps."""

from __future__ import annotations

from collections.abc import Sequence

from tamis.formats.hopper import ROWS
from tamis.formats.steps import STEP_BYTES
from tamis.kernels.cuda.convolution import Convolution
from tamis.kernels.cuda.implicit_gemm import Tile, deepest
from tamis.kernels.cuda.specification import ceil_divide

_LONGEST_LINE = 256
# Blocks of 64 filters, groups, most pixels, resident blocks and line stages of the tiles.
LINE_TILES = (
    (1, 1, 128, 1, 2), (1, 1, 256, 1, 2), (1, 1, 128, 2, 2), (1, 1, 256, 2, 1), (2, 1, 128, 2, 1), (1, 2, 128, 1, 2),
    (1, 2, 256, 1, 2), (2, 2, 128, 1, 2), (2, 2, 192, 1, 2),
)  # fmt: skip
WIDTHS = (64, 128, 192, 208, 224, 232, 256)  # pixels for which the kernel has its instruction


def line_tiles(shape: Convolution, *, sparse: bool, itemsize: int = 2, residual: bool = False) -> list[Tile]:
    """The tiles of whole lines of a convolution that fit; none where a tap's pixels do not lie side by side."""
    found = []
    for blocks, groups, most, resident, line_stages in LINE_TILES:
        lines, taps = lines_of(shape, most, WIDTHS), shape.kernel[0] * shape.kernel[1]
        # A single stage is given back behind the last step of a tile only.
        steps = shape.part(ROWS * blocks * groups).steps_in(itemsize)
        if lines is None or (line_stages == 1 and steps > taps):
            continue
        pixels, numbers = lines
        try:
            tile = deepest(blocks, groups, pixels, 1, 1, resident, sparse=sparse, itemsize=itemsize,
                           lines=(*numbers, line_stages), residual=residual)  # fmt: skip
        except ValueError:
            continue
        if tile not in found:
            found.append(tile)
    return found


def lines_of(shape: Convolution, most: int, widths: Sequence[int]) -> tuple[int, tuple[int, int, int]] | None:
    """How many pixels a tile of up to ``most`` computes, with its lines, their bytes and those to spare behind them.

    The lines are as many as fit, but equal ones as far as may be; ``widths`` are the pixels that an instruction may
    have, the last of them ``most`` or more. None where a tap's pixels do not lie side by side, or no line fits.
    """
    high, wide = shape.output
    reach = [(size - 1) * dilation for size, dilation in zip(shape.kernel, shape.dilations, strict=True)]
    line = wide + reach[1]
    if shape.strides != (1, 1) or shape.kernel == (1, 1) or line > _LONGEST_LINE:
        return None
    lines = min((most - wide) // line + 1, high, _LONGEST_LINE - reach[0])
    if wide > most or lines < 1:
        return None
    lines = ceil_divide(high, ceil_divide(high, lines))  # as many tiles, of equal lines
    used = (lines - 1) * line + wide
    pixels = min(width for width in widths if width >= used)
    return pixels, (lines, (lines + reach[0]) * line * STEP_BYTES, (pixels - used) * STEP_BYTES)
