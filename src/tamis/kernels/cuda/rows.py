"""Constants and launches of the kernels that reduce rows: normalisation and softmax."""

from __future__ import annotations

from tamis.formats.dtype import DType
from tamis.kernels.cuda.pointwise import number_text
from tamis.kernels.cuda.specification import ELEMENTS, Argument, Kernel, ceil_divide, vector_width

_MOST_WARPS = 32
# Values of a row that a thread keeps in registers: few where few rows must fill the device, never more than 32.
MANY_ROWS, _KEPT_OF_MANY, _KEPT_OF_FEW, _MOST_KEPT = 1024, 32, 8, 32
_ROWS_A_BLOCK = 4
NOTHING = Argument("null")


def layer_norm(
    rows: int,
    columns: int,
    dtype: DType,
    epsilon: float,
    *,
    residual: Argument = NOTHING,
    scale: Argument = NOTHING,
    bias: Argument = NOTHING,
    total: Argument = NOTHING,
    rms: bool = False,
    rows_each: int = 1,
) -> Kernel:
    """Input 0 [rows, columns] of ``dtype``, normalised, as output 0.

    ``residual`` is added first, and that sum goes to ``total``; ``scale`` and ``bias`` are float32 [columns]. The
    threads of a row take ``rows_each`` rows.
    """
    defines, (blocks, _, _), block = _rows(rows, columns, dtype)
    defines |= {
        "ROWS_EACH": rows_each,
        "RMS": int(rms),
        "EPSILON": number_text(epsilon),
        "HAS_RESIDUAL": int(residual != NOTHING),
        "HAS_SCALE": int(scale != NOTHING),
        "HAS_BIAS": int(bias != NOTHING),
        "HAS_SUM": int(total != NOTHING),
    }
    arguments = (Argument("out", 0), total, Argument("in", 0), residual, scale, bias, Argument("int", rows))
    return Kernel("layer_norm", defines, (ceil_divide(blocks, rows_each), 1, 1), block, arguments)


def softmax(rows: int, columns: int, dtype: DType, log: bool = False) -> Kernel:
    """The softmax (or its logarithm) of each row of input 0 [rows, columns] of ``dtype`` as output 0."""
    defines, grid, block = _rows(rows, columns, dtype)
    defines |= {"LOG": int(log)}
    return Kernel("softmax", defines, grid, block, (Argument("out", 0), Argument("in", 0), Argument("int", rows)))


def _rows(
    rows: int, columns: int, dtype: DType
) -> tuple[dict[str, str | int | float], tuple[int, int, int], tuple[int, int, int]]:
    """The constants of ``rows.h``, the grid and the block."""
    width = vector_width(columns, dtype)
    wanted = _KEPT_OF_MANY if rows >= MANY_ROWS else _KEPT_OF_FEW
    warps = 1
    while warps < _MOST_WARPS and ceil_divide(columns, 32 * warps * width) * width > wanted:
        warps *= 2
    kept = ceil_divide(columns, 32 * warps * width) * width
    rows_a_block = _ROWS_A_BLOCK if warps == 1 and rows >= MANY_ROWS else 1
    defines: dict[str, str | int | float] = {
        "TYPE": ELEMENTS[dtype],
        "COLUMNS": columns,
        "WIDTH": width,
        "WARPS": warps,
        "CACHED": int(kept <= _MOST_KEPT),
    }
    return defines, (max(ceil_divide(rows, rows_a_block), 1), 1, 1), (32 * warps, rows_a_block, 1)
