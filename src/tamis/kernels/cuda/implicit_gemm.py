"""Constants and launch of ``implicit_gemm_hopper.cu``: convolutions and matrix products, dense or 2:4.

Geometry and epilogue are also those of ``implicit_gemm_ampere``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tamis.formats.bundles import FIRST_CHANNELS
from tamis.formats.dtype import DType
from tamis.formats.hopper import ROWS
from tamis.formats.steps import STEP_BYTES, rows_bytes
from tamis.kernels.cuda.convolution import Convolution
from tamis.kernels.cuda.pointwise import PointwiseStep, program_text
from tamis.kernels.cuda.specification import EIGHT_BITS, ELEMENTS, Argument, Kernel, TensorMap, ceil_divide

_WARPGROUP = 128
BARRIER_BYTES, _LEAST_STRIP_BYTES = 1024, 18432  # the latter of a warpgroup
_ENOUGH_STAGES = 4
_SHARED_BYTES = 232448  # that a block may have: 227 KiB
_MULTIPROCESSOR_BYTES, _RESERVED_BYTES = 233472, 1024  # for all its blocks, and what each of them costs beside
_PRODUCT_TYPES = {
    DType.FLOAT16: '"f16"',
    DType.BFLOAT16: '"bf16"',
    DType.INT8: '"s8"',
    DType.FLOAT8_E4M3: '"e4m3"',
}


@dataclass(frozen=True)
class Epilogue:
    """What becomes of the sums of a product: bias, then ``steps``, of which operand 0 is the residual.

    ``dtype`` is the output's, None for that of the product. Its pixels have ``pitch`` channels, None for as many as
    there are filters; those from ``offset`` on are written. The residual has the output's type and a channel for each
    filter. ``scaled``: sums are multiplied with the scale of their filter first, the residual and an output of 8 bits
    with factors of their own; ``channel_constants`` makes the constant that holds these numbers and the bias.
    """

    steps: tuple[PointwiseStep, ...] = ()
    bias: bool = False
    residual: bool = False
    dtype: DType | None = None
    pitch: int | None = None
    offset: int = 0
    scaled: bool = False

    def defines(self, filters: int, product: DType) -> dict[str, str | int | float]:
        """The constants of ``gemm_epilogue.h``."""
        return {
            "OUT_TYPE": {**ELEMENTS, **EIGHT_BITS}[self.dtype or product], "PROGRAM": program_text(self.steps),
            "BIAS": int(self.bias), "SCALED": int(self.scaled), "RESIDUAL": int(self.residual),
            "VECTORS": int(not any(number % 8 for number in self.places(filters))),
        }  # fmt: skip

    def places(self, filters: int) -> tuple[int, int, int]:
        """Pitch and offset of the output, pitch of the residual."""
        return (filters if self.pitch is None else self.pitch), self.offset, filters


def channel_constants(
    scale: NDArray[Any], bias: NDArray[Any] | None = None, out_scale: float = 1.0, residual_scale: float = 1.0
) -> NDArray[np.float32]:
    """The float32 constant of a ``scaled`` epilogue, as ``gemm_epilogue.h`` reads it.

    ``scale`` and ``bias`` [filters] make values of sums: ``scale * sum + bias``. What an output of 8 bits stores stands
    for ``out_scale`` times as much, so it is multiplied with the inverse; what the residual stores for
    ``residual_scale`` times as much. ``ValueError`` when there are not as many biases as scales.
    """
    if bias is not None and bias.shape != scale.shape:
        raise ValueError(f"{bias.shape} biases for {scale.shape} scales")
    head = np.array([np.float32(1) / np.float32(out_scale), residual_scale, 0, 0], np.float32)
    rest = (scale,) if bias is None else (scale, bias)
    return np.concatenate([head, *(part.astype(np.float32) for part in rest)])


@dataclass(frozen=True)
class Tile:
    """What a block computes at a time: ``64 * blocks * groups`` filters by ``pixels``, ``stages`` steps ahead.

    ``cluster`` blocks compute different filters of the same pixels, and share what is copied of these. Or ``split``
    blocks divide the steps of one tile among them. One of the two is 1. ``resident`` blocks share a multiprocessor.
    With ``lines`` a tile is so many lines of the result, and whole lines of the padded image are copied, ``line_bytes``
    at a time and ``line_stages`` of them ahead, instead of the pixels that each tap sees; ``line_spare`` bytes behind
    them are read for pixels that have no place in the result. A warpgroup has ``strips`` of shared memory for results
    on their way out and residuals on their way in. ``stationary``: weights stay in registers, and stages are of pixels
    alone, or of lines (``tamis.kernels.cuda.stationary``).
    """

    blocks: int
    groups: int
    pixels: int
    cluster: int
    split: int
    stages: int
    resident: int = 1
    lines: int = 0
    line_bytes: int = 0
    line_spare: int = 0
    line_stages: int = 0
    strips: int = 2
    stationary: bool = False

    @property
    def filters(self) -> int:
        """Filters of a tile."""
        return ROWS * self.blocks * self.groups

    @property
    def together(self) -> int:
        """Blocks that run at the same time and reach into each other's shared memory."""
        return max(self.cluster, self.split)

    @property
    def strip_pixels(self) -> int:
        """Pixels of a strip."""
        return 64 // self.blocks

    @property
    def threads(self) -> int:
        """Threads of a block: one warp copies, or a warpgroup where it has registers to give away."""
        return block_threads(self.groups, gives=self.gives)

    @property
    def gives(self) -> bool:
        """Whether those that copy give registers to those that compute."""
        return gives_registers(self.groups, self.resident, stationary=self.stationary)

    def count(self, shape: Convolution) -> int:
        """How many tiles cover a convolution; those of a cluster count as one."""
        part = shape.part(self.filters)
        if self.lines:
            across_pixels = shape.batch * ceil_divide(shape.output[0], self.lines)
        else:
            across_pixels = ceil_divide(shape.pixels, self.pixels)
        across_filters = ceil_divide(part.filters, self.filters * self.cluster)
        return shape.bundles(self.filters).count * across_filters * across_pixels

    def shared_bytes(self, *, sparse: bool, itemsize: int = 2) -> int:
        """Shared memory of a block: barriers, strips of results of each group, stages of steps and of lines.

        ``itemsize`` is that of the product's type, in bytes.
        """
        stage = 0 if self.stationary else rows_bytes(self.filters, sparse=sparse, itemsize=itemsize)
        if not self.lines:
            stage += self.pixels * STEP_BYTES
        elif self.stationary:
            stage = self.line_bytes
        lines = self.line_stages * whole(self.line_bytes) + self.line_spare
        strips = max(self.strips * self.strip_pixels * (self.blocks * ROWS * 2 + 16), _LEAST_STRIP_BYTES)
        if self.split > 1:  # sums on their way out, and those of other blocks
            strips = 2 * max(self.pixels * (self.blocks * ROWS + 4) * 4, _LEAST_STRIP_BYTES)
        return whole(BARRIER_BYTES + self.groups * strips) + self.stages * whole(stage) + lines


def gives_registers(groups: int, resident: int, *, stationary: bool = False) -> bool:
    """Whether those that copy give registers to so many warpgroups that compute."""
    return groups == 2 if resident == 1 else stationary and (groups, resident) == (1, 2)


def block_threads(groups: int, *, gives: bool) -> int:
    """Threads of a block: beside those that compute one warp copies, or a warpgroup where it ``gives`` registers."""
    return _WARPGROUP * groups + (_WARPGROUP if gives else 32)


def shared_limit(resident: int) -> int:
    """Shared memory that a block may have where so many share a multiprocessor, in bytes."""
    return _SHARED_BYTES if resident == 1 else _MULTIPROCESSOR_BYTES // resident - _RESERVED_BYTES


def whole(size: int) -> int:
    """Rounded up to what a swizzled tile's address is a multiple of."""
    return ceil_divide(size, 1024) * 1024


def deepest(
    blocks: int, groups: int, pixels: int, cluster: int = 1, split: int = 1, resident: int = 1, *, sparse: bool,
    most: int = 8, itemsize: int = 2, lines: tuple[int, int, int, int] = (0, 0, 0, 0), residual: bool = False,
    stationary: bool = False,
) -> Tile:  # fmt: skip
    """The tile with as many stages as fit, for a type of ``itemsize`` bytes. ``ValueError`` when two do not.

    ``lines`` are the tile's numbers of lines. Where a ``residual`` is added, there are strips for as much of it as
    leaves four stages, a tile's and one more at most.
    """

    def tile(stages: int, strips: int) -> Tile:
        return Tile(blocks, groups, pixels, cluster, split, stages, resident, *lines, strips, stationary)

    def stages_with(strips: int) -> int:
        return most_stages(lambda n: tile(n, strips).shared_bytes(sparse=sparse, itemsize=itemsize), limit, most)

    limit = shared_limit(resident)
    best = tile(stages_with(2), 2)
    for strips in range(3, ceil_divide(pixels, best.strip_pixels) + 2) if residual and split == 1 else ():
        try:
            stages = stages_with(strips)
        except ValueError:
            break
        if stages >= min(_ENOUGH_STAGES, best.stages):
            best = tile(stages, strips)
    return best


def most_stages(shared_bytes: Callable[[int], int], limit: int, most: int) -> int:
    """Up to how many stages, ``most`` at most, a block's shared memory keeps to ``limit`` bytes.

    ``ValueError`` when two do not.
    """
    for stages in range(most, 1, -1):
        if shared_bytes(stages) <= limit:
            return stages
    raise ValueError(f"two stages of the tile take {shared_bytes(2)} bytes, and do not fit into shared memory")


# Blocks of 64 filters, groups, pixels, cluster, split and resident blocks of the tiles that race. A thread has 200 sums
# or fewer.
TILES: tuple[tuple[int, int, int, int, int, int], ...] = (
    (1, 1, 64, 1, 1, 1), (1, 1, 128, 1, 1, 1), (1, 2, 64, 1, 1, 1), (1, 2, 128, 1, 1, 1), (1, 2, 256, 1, 1, 1),
    (2, 2, 64, 1, 1, 1), (2, 2, 128, 1, 1, 1), (1, 2, 192, 1, 1, 1), (2, 2, 192, 1, 1, 1),
    (1, 2, 256, 2, 1, 1), (2, 2, 128, 2, 1, 1),
    (1, 1, 64, 1, 1, 3), (1, 1, 128, 1, 1, 2), (1, 1, 128, 1, 1, 3), (2, 1, 128, 1, 1, 2), (1, 2, 128, 1, 1, 2),
    (1, 2, 64, 1, 1, 2),
    (1, 1, 64, 1, 2, 1), (1, 1, 64, 1, 4, 1), (1, 1, 64, 1, 8, 1), (1, 2, 64, 1, 2, 1), (1, 2, 64, 1, 4, 1),
    (1, 2, 64, 1, 8, 1), (1, 1, 72, 1, 4, 1), (1, 1, 72, 1, 8, 1),
    (1, 1, 128, 1, 2, 1), (1, 1, 128, 1, 4, 1), (1, 2, 128, 1, 2, 1),
)  # fmt: skip
# Of these one races at most: where it leaves fewer multiprocessors idle in the last turn than those above.
FILLING_TILES = tuple((2, 2, pixels, 1, 1, 1) for pixels in (144, 160, 176, 184, 200))


def has_instruction(pixels: int, dtype: DType) -> bool:
    """Whether there is a product of so many pixels, which are a multiple of 8: in int8 not all of these."""
    return dtype != DType.INT8 or pixels % 16 == 0


def _band(shape: Convolution, tile: Tile, dtype: DType, clusters: int, *, sparse: bool) -> int:
    """How many tiles of filters follow each other before the next pixels.

    ``clusters`` of tiles run at a time. With ``band`` tiles of filters and ``clusters / band`` of pixels they read the
    fewest bytes where both take as many. Of no meaning for groups, which share no channels.
    """
    size = dtype.size_bytes
    weights = shape.steps_in(size) * rows_bytes(tile.filters * tile.cluster, sparse=sparse, itemsize=size)
    pixels = tile.pixels * shape.channels * size
    across = ceil_divide(shape.filters, tile.filters * tile.cluster)
    return int(max(min(across, round(math.sqrt(clusters * pixels / weights))), 1))


def implicit_gemm_hopper(
    shape: Convolution,
    tile: Tile,
    dtype: DType,
    multiprocessors: int,
    epilogue: Epilogue,
    *,
    sparse: bool,
) -> Kernel:
    """The kernel for one shape.

    Inputs of the step are the image and the residual, constants the packed weights of ``formats.hopper`` and the
    float32 bias, or what ``channel_constants`` makes. ``ValueError`` for what the kernel cannot do.
    """
    (high, wide), part = shape.output, shape.part(tile.filters)
    chunks, steps = ceil_divide(part.channels * dtype.size_bytes, STEP_BYTES), part.steps_in(dtype.size_bytes)
    down, across = shape.kernel
    (stride_h, stride_w), (dilation_h, dilation_w) = shape.strides, shape.dilations
    top, left, bottom, right = shape.pads
    image, channels, apart, windows = (shape.batch, shape.height, shape.width), shape.channels, shape.apart, 0
    if shape.groups > 1:
        if tile.cluster > 1 or dtype.size_bytes != 2 or epilogue.scaled:
            raise ValueError("groups in pairs of blocks, which share their pixels, or in 8 bits")
        if part.channels * dtype.size_bytes % STEP_BYTES:
            channels, windows = part.channels, (shape.channels - part.channels) // FIRST_CHANNELS + 1
            apart = (shape.channels, shape.width * shape.channels, shape.height * shape.width * shape.channels)
    line = wide + (across - 1) * dilation_w
    if tile.lines:
        lines = tile.lines + (down - 1) * dilation_h
        if tile.line_bytes != lines * line * STEP_BYTES or shape.strides != (1, 1) or tile.together > 1:
            raise ValueError("a tile of other lines")
        map_ = TensorMap("lines", 0, dtype, channels, image, line, lines=lines, apart=apart,
                         windows=windows)  # fmt: skip
    elif shape.is_product:
        map_ = TensorMap("rows", 0, dtype, channels, (shape.pixels, 1, 1), tile.pixels // tile.cluster,
                         apart=apart, windows=windows)  # fmt: skip
    else:
        high_corner = (right - (across - 1) * dilation_w, bottom - (down - 1) * dilation_h)
        map_ = TensorMap("taps", 0, dtype, channels, image, tile.pixels // tile.cluster, (-left, -top),
                         high_corner, (stride_w, stride_h), apart=apart, windows=windows)  # fmt: skip
    defines = common_defines(shape, tile.filters, dtype, epilogue, sparse=sparse)
    defines |= {
        # Profilers show this name: it proves that the sparse form runs.
        "KERNEL": f"tamis_{'sparse' if sparse else 'dense'}_implicit_gemm",
        "BLOCKS": tile.blocks, "GROUPS": tile.groups, "PIXELS": tile.pixels, "STAGES": tile.stages,
        "CLUSTER": tile.together, "SPLIT": int(tile.split > 1), "HALO": int(tile.lines > 0), "RESIDENT": tile.resident,
        "LINE_STAGES": tile.line_stages, "STRIP_COUNT": tile.strips, "WINDOWS": int(windows > 0),
        "STATIONARY": int(tile.stationary), "POOL": 0,
    }  # fmt: skip
    if not has_instruction(tile.pixels, dtype):
        raise ValueError(f"tiles of {tile.pixels} pixels; products of int8 have a multiple of 16")
    if tile.split > steps:
        raise ValueError(f"{steps} steps cannot be split among {tile.split} blocks")
    clusters = min(tile.count(shape), max(multiprocessors * tile.resident // tile.together, 1))
    numbers = (
        shape.filters, shape.pixels, steps, chunks, across, wide, high, stride_w, stride_h, left, top,
        dilation_w, dilation_h, tile.lines, line, tile.line_bytes,
        _band(shape, tile, dtype, clusters, sparse=sparse),
    )  # fmt: skip
    behind = (*epilogue.places(shape.filters), *bundle_numbers(shape, tile.filters))
    return Kernel(
        "implicit_gemm_hopper", defines, (clusters * tile.together, 1, 1), (tile.threads, 1, 1),
        common_arguments(Argument("map", 0), (*numbers, *behind), epilogue),
        tile.shared_bytes(sparse=sparse, itemsize=dtype.size_bytes), (map_,), TENSORS + len(numbers),
    )  # fmt: skip


def common_defines(
    shape: Convolution, tile: int, dtype: DType, epilogue: Epilogue, *, sparse: bool
) -> dict[str, str | int | float]:
    """The constants that implicit GEMM has on all tensor cores, in tiles of so many filters.

    ``ValueError`` for pixels that are no multiple of 16 bytes, or no such multiple apart.
    """
    multiple = 16 // dtype.size_bytes
    if shape.channels % multiple:
        raise ValueError(f"{shape.channels} channels are not a multiple of {multiple}")
    if shape.apart and any(elements % multiple for elements in shape.apart):
        raise ValueError(f"pixels, lines and images {shape.apart} elements apart, not a multiple of {multiple}")
    fused = epilogue.defines(shape.filters, dtype)
    return {
        "SPARSE": int(sparse),
        "IM2COL": int(not shape.is_product),
        "PRODUCT_TYPE": _PRODUCT_TYPES[dtype],
        "EIGHT_BITS": int(dtype.size_bytes == 1),
        "INTEGERS": int(dtype == DType.INT8),
        "GROUPED": int(shape.groups > 1),
        **fused,
        "VECTORS": int(fused["VECTORS"] and shape.part(tile).filters % 8 == 0),
    }


def bundle_numbers(shape: Convolution, tile: int) -> tuple[int, ...]:
    """The kernels' last arguments: tiles of a bundle, its filters, channels of it before the next one and in the last.

    Channels count in runs of ``FIRST_CHANNELS``.
    """
    part = shape.part(tile)
    apart = part.channels // FIRST_CHANNELS
    return ceil_divide(part.filters, tile), part.filters, apart, shape.channels // FIRST_CHANNELS - apart


TENSORS = 5  # arguments in front of the numbers


def common_arguments(image: Argument, numbers: Sequence[int], epilogue: Epilogue) -> tuple[Argument, ...]:
    """Image, weights, bias, residual and output, then the numbers."""
    return (
        image,
        Argument("const", 0),
        Argument("const", 1) if epilogue.bias or epilogue.scaled else Argument("null"),
        Argument("in", 1) if epilogue.residual else Argument("null"),
        Argument("out", 0),
        *(Argument("int", number) for number in numbers),
    )
