"""Tiles and launch of the pooled form of ``implicit_gemm_hopper.cu``: max pooling of stride 2 before results leave.

A tile is whole lines of the convolution, an even number, and its columns lie where windows of stride 2 have them
(``hopper_pooled.h``). Blocks walk down the images, so a window of three finds its first line in the tile before.
"""

from __future__ import annotations

from dataclasses import dataclass

from tamis.formats.dtype import DType
from tamis.formats.hopper import ROWS
from tamis.formats.steps import STEP_BYTES, rows_bytes
from tamis.kernels.cuda.convolution import Convolution
from tamis.kernels.cuda.implicit_gemm import (
    BARRIER_BYTES,
    TENSORS,
    Epilogue,
    block_threads,
    common_arguments,
    common_defines,
    gives_registers,
    most_stages,
    shared_limit,
    whole,
)
from tamis.kernels.cuda.specification import MOST_ELEMENTS, Argument, Kernel, TensorMap, ceil_divide

STRIDE = 2
WINDOWS = (2, 3)
# Pixels for which the kernel has its instruction.
WIDTHS = (64, 120, 128, 176, 192, 208, 224, 232, 256)
# Blocks of 64 filters, groups, most pixels, resident blocks and line stages of the tiles.
POOLED_TILES = (
    (1, 1, 232, 2, 1), (1, 1, 128, 2, 2), (1, 1, 128, 2, 1), (1, 1, 256, 1, 2), (1, 2, 256, 1, 2), (1, 2, 128, 1, 2),
    (2, 2, 128, 1, 2),
)  # fmt: skip
# Blocks of 64 filters, groups, resident blocks of tiles whose lines slide, whether groups take turns, and columns for
# which there is an instruction.
SLIDING_TILES = ((1, 1, 2, False), (1, 2, 1, False), (1, 1, 1, False), (1, 2, 1, True))
LINE_WIDTHS = (64, 96, 112, 120, 128)
# Pixels whose sums fit into registers where two blocks share a multiprocessor, beside a line: more spill (nvcc 13.0).
_MOST_SUMMED = 240
_MOST_STAGES = 8
_MOST_STAYING = 32  # steps whose weights may stay in shared memory: their barriers need room
_LONGEST_BOX = 256


@dataclass(frozen=True)
class Pooling:
    """Max pooling of stride 2 over windows of ``size`` x ``size``, two or three, behind a convolution.

    ``top`` and ``left`` are lines and columns of padding, fewer than ``size``; ``output`` is (height, width) of the
    result.
    """

    size: int
    top: int
    left: int
    output: tuple[int, int]

    def first(self, before: int) -> int:
        """Which place of the result tiles begin with, along an axis with so much padding before it: 0, or -1.

        With less padding than windows overlap, tiles that begin with the convolution's first line or column would cut
        windows.
        """
        return 0 if before >= self.size - STRIDE else -1

    def start(self, before: int) -> int:
        """The convolution's line or column where tiles begin: behind what the first window has of the tile before."""
        return STRIDE * self.first(before) - before + self.size - STRIDE

    @property
    def columns(self) -> int:
        """Columns of the convolution that a tile computes, with those in front of the first window."""
        return STRIDE * (self.output[1] - self.first(self.left))

    @property
    def lines(self) -> int:
        """The same of an image's lines, but for those that fill its last tile."""
        return STRIDE * (self.output[0] - self.first(self.top))


@dataclass(frozen=True)
class PooledTile:
    """What a block computes at a time: ``64 * blocks * groups`` filters of ``lines`` lines, ``line`` pixels apart.

    If ``by_turns`` the groups have the same ``64 * blocks`` filters instead, and each a run of tiles and a ring of
    lines of its own: one multiplies while the other one's results leave.

    An instruction computes ``pixels``, of all lines or, if ``sliding``, of one of them: then ``line_stages`` single
    lines are a ring, in which those that the next tile sees stay. Else these are stages of all lines that a tile sees.
    There are ``stages`` of weights; if ``weights_stay`` each step has one of its own, and weights come once.
    ``line_bytes`` are those of a stage; ``line_spare`` lie behind the last. ``resident`` blocks share a multiprocessor.
    """

    blocks: int
    groups: int
    pixels: int
    resident: int
    stages: int
    lines: int
    line: int
    line_bytes: int
    line_spare: int
    line_stages: int
    weights_stay: bool
    sliding: bool = False
    by_turns: bool = False

    @property
    def filters(self) -> int:
        """Filters of a tile."""
        return ROWS * self.blocks * (1 if self.by_turns else self.groups)

    @property
    def runs(self) -> int:
        """Runs of tiles that a block has at a time."""
        return self.groups if self.by_turns else 1

    @property
    def computed(self) -> int:
        """Pixels that are computed, those that have no place in the result among them."""
        return self.pixels * (self.lines if self.sliding else 1)

    @property
    def copied_bytes(self) -> int:
        """Bytes of pixels that are copied for a tile that follows another one."""
        return self.line_bytes * (self.lines if self.sliding else 1)

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return block_threads(self.groups, gives=gives_registers(self.groups, self.resident))

    def shared_bytes(self, pooling: Pooling, *, sparse: bool) -> int:
        """Shared memory of a block: barriers, a pooled line of each group, weights, lines of pixels."""
        return _shared_bytes(self, pooling, self.stages, sparse=sparse)


def _columns(pooling: Pooling) -> int:
    """A tile's columns, rounded up to what a thread's pairs of all lines make."""
    return ceil_divide(pooling.columns, 8) * 8


def _shared_bytes(tile: PooledTile, pooling: Pooling, stages: int, *, sparse: bool) -> int:
    strip = ceil_divide(_columns(pooling) // STRIDE, 16) * 16 * (tile.blocks * ROWS * 2 + 16)
    lines = tile.runs * tile.line_stages * whole(tile.line_bytes) + tile.line_spare
    weights = stages * whole(rows_bytes(tile.filters, sparse=sparse))
    return whole(BARRIER_BYTES + tile.groups * strip) + weights + lines


def pooled_tiles(shape: Convolution, pooling: Pooling, *, sparse: bool) -> list[PooledTile]:
    """The tiles that fit; none where ``refuses_pooled`` has a reason, or two lines are too long."""
    if refuses_pooled(shape, pooling) is not None:
        return []
    tiles = [_sliding(shape, pooling, sizes, sparse=sparse) for sizes in SLIDING_TILES]
    tiles += [_fitting(shape, pooling, sizes, sparse=sparse) for sizes in POOLED_TILES]
    return list(dict.fromkeys(tile for tile in tiles if tile is not None))


def _sliding(
    shape: Convolution, pooling: Pooling, sizes: tuple[int, int, int, bool], *, sparse: bool
) -> PooledTile | None:
    """The tile of two lines whose pixels come once, as many lines ahead as fit, beside all weights."""
    blocks, groups, resident, by_turns = sizes
    columns, (down, across) = _columns(pooling), shape.kernel
    reach = (across - 1) * shape.dilations[1]
    line = ceil_divide(pooling.columns + reach, 8) * 8
    fits = min(columns, line) >= LINE_WIDTHS[0] // 2 and columns <= LINE_WIDTHS[-1] and line <= _LONGEST_BOX
    if shape.channels * 2 > STEP_BYTES or shape.dilations[0] > 1 or shape.steps > _MOST_STAYING or not fits:
        return None
    pixels = min(width for width in LINE_WIDTHS if width >= columns)
    if resident > 1 and blocks * STRIDE * pixels > _MOST_SUMMED:
        return None
    spare = max(pixels + reach - line, 0) * STEP_BYTES

    def tile(slots: int) -> PooledTile:
        return PooledTile(blocks, groups, pixels, resident, shape.steps, STRIDE, line, line * STEP_BYTES, spare, slots,
                          weights_stay=True, sliding=True, by_turns=by_turns)  # fmt: skip

    least = STRIDE + down - 1
    for slots in range(least + 2 * STRIDE, least - 1, -1):
        if tile(slots).shared_bytes(pooling, sparse=sparse) <= shared_limit(resident):
            return tile(slots)
    return None


def _fitting(shape: Convolution, pooling: Pooling, sizes: tuple[int, ...], *, sparse: bool) -> PooledTile | None:
    """The tile with equal lines as far as may be, and its weights in shared memory for good where there is room."""
    blocks, groups, most, resident, line_stages = sizes
    if line_stages == 1 and shape.steps > shape.kernel[0] * shape.kernel[1]:
        return None  # a single stage is given back behind a tile's last step only
    reach = [(size - 1) * dilation for size, dilation in zip(shape.kernel, shape.dilations, strict=True)]
    columns = _columns(pooling)
    line = ceil_divide(pooling.columns + reach[1], 8) * 8
    all_pairs = pooling.lines // STRIDE
    pairs = min(((most - columns) // line + 1) // STRIDE, all_pairs, (_LONGEST_BOX - reach[0]) // STRIDE)
    if columns > most or line > _LONGEST_BOX or pairs < 1:
        return None
    lines = STRIDE * ceil_divide(all_pairs, ceil_divide(all_pairs, pairs))
    pixels = min(width for width in WIDTHS if width >= (lines - 1) * line + columns)
    spare = max(pixels + reach[1] - lines * line, 0) * STEP_BYTES
    bytes_ = (lines + reach[0]) * line * STEP_BYTES

    def tile(stages: int) -> PooledTile:
        return PooledTile(blocks, groups, pixels, resident, stages, lines, line, bytes_, spare, line_stages,
                          stages == shape.steps)  # fmt: skip

    def size(stages: int) -> int:
        return _shared_bytes(tile(stages), pooling, stages, sparse=sparse)

    limit = shared_limit(resident)
    if shape.steps <= _MOST_STAYING and size(shape.steps) <= limit:
        return tile(shape.steps)
    try:
        return tile(most_stages(size, limit, min(_MOST_STAGES, max(shape.steps - 1, 2))))
    except ValueError:
        return None


def refuses_pooled(shape: Convolution, pooling: Pooling) -> str | None:
    """Why the kernel cannot pool behind a convolution; None when it can, if its lines are short enough."""
    if pooling.size not in WINDOWS or not 0 <= max(pooling.top, pooling.left) < pooling.size:
        return (
            f"windows of {pooling.size} with {pooling.top} and {pooling.left} of padding; 2 or 3, with less, are pooled"
        )
    if shape.groups > 1:
        return "a grouped convolution is not pooled at once"
    if shape.strides != (1, 1) or shape.is_product:
        return "pixels of taps do not lie side by side, or there is one tap"
    if shape.filters % 8:
        return f"{shape.filters} filters are not a multiple of 8"
    elements = shape.batch * pooling.output[0] * pooling.output[1]
    return f"more than {MOST_ELEMENTS} pixels" if elements > MOST_ELEMENTS else None


def tops(tile: PooledTile, pooling: Pooling) -> int:
    """Tiles below each other in an image."""
    return ceil_divide(pooling.lines, tile.lines)


def runs_of_tiles(shape: Convolution, pooling: Pooling, tile: PooledTile, multiprocessors: int) -> int:
    """Into how many runs the tiles of pixels are divided: ``tile.runs`` for each block of a tile of filters.

    None is empty but the very last, where a block has two and tiles are fewer.
    """
    rows, most = ceil_divide(shape.filters, tile.filters), ceil_divide(shape.batch * tops(tile, pooling), tile.runs)
    return tile.runs * max(min(most, multiprocessors * tile.resident // rows), 1)


def implicit_gemm_pooled(
    shape: Convolution,
    pooling: Pooling,
    tile: PooledTile,
    dtype: DType,
    multiprocessors: int,
    epilogue: Epilogue,
    *,
    sparse: bool,
) -> Kernel:
    """The kernel for one shape and the pooling behind it.

    Its input is the image, constants are the packed weights of ``formats.hopper`` and the float32 bias. The epilogue
    is what happens between both. ``ValueError`` for what the kernel cannot do.
    """
    reason = refuses_pooled(shape, pooling)
    if reason is not None:
        raise ValueError(reason)
    if dtype.size_bytes != 2 or epilogue.dtype not in (None, dtype) or epilogue.scaled or epilogue.residual:
        raise ValueError("pooling of other types than 16 bits, or behind a residual")
    if any(number % 8 for number in epilogue.places(shape.filters)):
        raise ValueError("results that do not lie at multiples of eight channels")
    if tile not in pooled_tiles(shape, pooling, sparse=sparse):
        raise ValueError("a tile of another shape")
    (high, wide), (down, across) = shape.output, shape.kernel
    (top, left, _, _), begins = shape.pads, pooling.start(pooling.top)
    chunks, steps = ceil_divide(shape.channels * 2, STEP_BYTES), shape.steps
    lines = 1 if tile.sliding else tile.lines + (down - 1) * shape.dilations[0]
    map_ = TensorMap("lines", 0, dtype, shape.channels, (shape.batch, shape.height, shape.width), tile.line,
                     lines=lines, apart=shape.apart)  # fmt: skip
    defines = common_defines(shape, tile.filters, dtype, epilogue, sparse=sparse)
    defines |= {
        "KERNEL": f"tamis_{'sparse' if sparse else 'dense'}_implicit_gemm_pooled",
        "BLOCKS": tile.blocks, "GROUPS": tile.groups, "PIXELS": tile.pixels, "STAGES": tile.stages, "CLUSTER": 1,
        "SPLIT": 0, "HALO": 1, "RESIDENT": tile.resident, "LINE_STAGES": tile.line_stages, "STRIP_COUNT": 2,
        "WINDOWS": 0, "STATIONARY": 0, "POOL": pooling.size,
        "TILE_LINES": tile.lines, "LINE": tile.line,
        "COLUMNS": _columns(pooling), "WIDE": wide, "FIRST_COLUMN": pooling.start(pooling.left),
        "ALL_LINES": int(begins >= 0 and begins + tops(tile, pooling) * tile.lines <= high),
        "WEIGHTS_STAY": int(tile.weights_stay), "SLIDING": int(tile.sliding), "BY_TURNS": int(tile.by_turns),
    }  # fmt: skip
    pitch, offset, _ = epilogue.places(shape.filters)
    numbers = (
        shape.filters, shape.batch, steps, chunks, across, high, left, top, shape.dilations[1], shape.dilations[0],
        tile.line_bytes, tops(tile, pooling), begins, pooling.first(pooling.top),
        pooling.first(pooling.left), pooling.output[1], pooling.output[0],
    )  # fmt: skip
    rows = ceil_divide(shape.filters, tile.filters)
    blocks = rows * runs_of_tiles(shape, pooling, tile, multiprocessors) // tile.runs
    return Kernel(
        "implicit_gemm_hopper", defines, (blocks, 1, 1), (tile.threads, 1, 1),
        common_arguments(Argument("map", 0), (*numbers, pitch, offset), epilogue),
        tile.shared_bytes(pooling, sparse=sparse), (map_,), TENSORS + len(numbers),
    )  # fmt: skip
