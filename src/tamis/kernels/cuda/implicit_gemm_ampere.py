"""Constants and launch of ``implicit_gemm_ampere.cu``: convolutions and matrix products for all GPUs since Ampere."""

from __future__ import annotations

from dataclasses import dataclass

from tamis.formats.ampere import ROWS
from tamis.formats.dtype import DType
from tamis.formats.steps import STEP_BYTES, rows_bytes
from tamis.kernels.cuda.convolution import Convolution
from tamis.kernels.cuda.implicit_gemm import (
    TENSORS,
    Epilogue,
    bundle_numbers,
    common_arguments,
    common_defines,
    most_stages,
)
from tamis.kernels.cuda.specification import Argument, Kernel, ceil_divide

_WARP = 32
_COLUMN_PIXELS = 8  # of one instruction
_STRIP_PIXELS = 16
_TABLE_BYTES = 8  # of what the kernel keeps of a pixel
_SHARED_BYTES = 101376  # that a block may have on any of these GPUs: 99 KiB
# By compute capability, where it is more: 163 and 227 KiB.
_MORE_SHARED_BYTES = ((166912, (80, 87)), (232448, (90, 100, 101, 103, 110)))
_MOST_THAT_SKIP = 16  # products of a warp and part: with more there are no registers to tell which are of zeros
MOST_SIDE = 32767  # rows and columns are held in 16 bits


@dataclass(frozen=True)
class AmpereTile:
    """What a block computes: its ``down * across`` warps have ``16 * matrices`` filters by ``8 * columns`` pixels each.

    ``columns`` is even. Copies run ``stages`` steps ahead.
    """

    matrices: int
    columns: int
    down: int
    across: int
    stages: int

    @property
    def filters(self) -> int:
        """Filters of a tile."""
        return ROWS * self.matrices * self.down

    @property
    def pixels(self) -> int:
        """Pixels of a tile."""
        return _COLUMN_PIXELS * self.columns * self.across

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return _WARP * self.down * self.across

    def shared_bytes(self, *, sparse: bool) -> int:
        """Shared memory of a block: the stages, and a table of pixels; or at the end a strip of results a warp."""
        stage = self.pixels * STEP_BYTES + rows_bytes(self.filters, sparse=sparse)
        strip = _STRIP_PIXELS * (self.matrices * ROWS + 4) * 4
        return max(self.stages * stage + self.pixels * _TABLE_BYTES, self.down * self.across * strip)


def shared_bytes_on(capability: int) -> int:
    """The shared memory that a block may have on GPUs of a compute capability, such as 80."""
    return next((size for size, known in _MORE_SHARED_BYTES if capability in known), _SHARED_BYTES)


def deepest_ampere(
    matrices: int, columns: int, down: int, across: int, *, sparse: bool, most: int = 4, limit: int = _SHARED_BYTES
) -> AmpereTile:
    """The tile with as many stages as fit into ``limit`` bytes. ``ValueError`` when two do not."""

    def shared_bytes(stages: int) -> int:
        return AmpereTile(matrices, columns, down, across, stages).shared_bytes(sparse=sparse)

    return AmpereTile(matrices, columns, down, across, most_stages(shared_bytes, limit, most))


# matrices, columns, down, across: 128 float32 sums a thread at most.
AMPERE_TILES: tuple[tuple[int, int, int, int], ...] = (
    (2, 2, 2, 2), (2, 4, 2, 2), (4, 4, 1, 4), (4, 4, 2, 2), (4, 4, 2, 4), (4, 8, 2, 2), (4, 8, 2, 4), (4, 8, 4, 2),
)  # fmt: skip


def implicit_gemm_ampere(
    shape: Convolution,
    tile: AmpereTile,
    dtype: DType,
    epilogue: Epilogue,
    *,
    sparse: bool,
) -> Kernel:
    """The kernel for one shape.

    Inputs, constants and output are those of ``implicit_gemm_hopper``, save that ``formats.ampere`` packs the weights,
    for tiles of ``tile.filters``. ``ValueError`` for what the kernel cannot do.
    """
    if dtype.size_bytes != 2:
        raise ValueError(f"{dtype} products; these kernels have those of 16 bits")
    if shape.apart:
        raise ValueError("pixels that do not follow each other; these kernels have no map of an image")
    top, left, bottom, right = shape.pads
    if not shape.is_product and max(shape.height + top + bottom, shape.width + left + right) > MOST_SIDE:
        raise ValueError(f"padded images of more than {MOST_SIDE} pixels a side")
    part, bundles = shape.part(tile.filters), shape.bundles(tile.filters)
    defines = common_defines(shape, tile.filters, dtype, epilogue, sparse=sparse)
    defines |= {
        # Profilers show this name: it proves that the sparse form runs.
        "KERNEL": f"tamis_{'sparse' if sparse else 'dense'}_implicit_gemm_ampere",
        "MATRICES": tile.matrices, "COLUMNS": tile.columns, "DOWN": tile.down, "ACROSS": tile.across,
        "STAGES": tile.stages, "SKIPS": int(bundles.merged > 1 and tile.matrices * tile.columns <= _MOST_THAT_SKIP),
    }  # fmt: skip
    high, wide = shape.output
    (stride_h, stride_w), (dilation_h, dilation_w) = shape.strides, shape.dilations
    numbers = (
        shape.filters, shape.pixels, part.steps, shape.channels, shape.height, shape.width, shape.kernel[1], wide,
        high, stride_w, stride_h, left, top, dilation_w, dilation_h,
    )  # fmt: skip
    bundled = (*bundle_numbers(shape, tile.filters), bundles.filters, bundles.channels)
    behind = (*epilogue.places(shape.filters), *bundled)
    across = bundles.count * ceil_divide(part.filters, tile.filters)
    return Kernel(
        "implicit_gemm_ampere", defines, (across * ceil_divide(shape.pixels, tile.pixels), 1, 1), (tile.threads, 1, 1),
        common_arguments(Argument("in", 0), (*numbers, *behind), epilogue), tile.shared_bytes(sparse=sparse),
        place=TENSORS + len(numbers),
    )  # fmt: skip
