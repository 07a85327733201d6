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

from tamis.formats.dtype import DType
from tamis.formats.hopper import ROWS
from tamis.formats.steps import STEP_BYTES, rows_bytes
from tamis.kernels.cuda.pointwise import PointwiseStep, program_text
from tamis.kernels.cuda.specification import EIGHT_BITS, ELEMENTS, Argument, Kernel, TensorMap, ceil_divide

_WARPGROUP = 128
_BARRIER_BYTES, _LEAST_STRIP_BYTES = 1024, 18432  # the latter of a warpgroup
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
class Convolution:
    """The geometry of a convolution of NHWC images; a matrix product is one of 1 x 1 images.

    ``kernel``, ``strides`` and ``dilations`` are (vertical, horizontal); ``pads`` (top, left, bottom, right). ``apart``
    has the elements from pixel to pixel, line to line and image to image, None where these follow each other: with
    fewer elements than channels, pixels overlap (Hopper only).
    """

    batch: int
    height: int
    width: int
    channels: int
    filters: int
    kernel: tuple[int, int] = (1, 1)
    strides: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilations: tuple[int, int] = (1, 1)
    apart: tuple[int, int, int] | None = None

    @property
    def output(self) -> tuple[int, int]:
        """Height and width of the result."""
        top, left, bottom, right = self.pads
        spans = [(size - 1) * dilation for size, dilation in zip(self.kernel, self.dilations, strict=True)]
        high = (self.height + top + bottom - spans[0] - 1) // self.strides[0] + 1
        wide = (self.width + left + right - spans[1] - 1) // self.strides[1] + 1
        return high, wide

    @property
    def pixels(self) -> int:
        """Pixels of the result, of all images."""
        return self.batch * self.output[0] * self.output[1]

    @property
    def steps(self) -> int:
        """Taps, times runs of 64 channels: the steps of a product in 16 bits."""
        return self.steps_in(2)

    def steps_in(self, itemsize: int) -> int:
        """Taps, times runs of 128 bytes of channels."""
        return self.kernel[0] * self.kernel[1] * ceil_divide(self.channels * itemsize, STEP_BYTES)

    @property
    def is_product(self) -> bool:
        """Whether every pixel of the result sees just the one at its place."""
        alone = self.kernel == (1, 1) and self.strides == (1, 1) and self.pads == (0, 0, 0, 0)
        return alone and self.apart is None


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
        return _WARPGROUP * self.groups + (_WARPGROUP if self.gives else 32)

    @property
    def gives(self) -> bool:
        """Whether those that copy give registers to those that compute."""
        return self.groups == 2 if self.resident == 1 else self.stationary and (self.groups, self.resident) == (1, 2)

    def count(self, shape: Convolution) -> int:
        """How many tiles cover a convolution; those of a cluster count as one."""
        if self.lines:
            across_pixels = shape.batch * ceil_divide(shape.output[0], self.lines)
        else:
            across_pixels = ceil_divide(shape.pixels, self.pixels)
        return ceil_divide(shape.filters, self.filters * self.cluster) * across_pixels

    def shared_bytes(self, *, sparse: bool, itemsize: int = 2) -> int:
        """Shared memory of a block: barriers, strips of results of each group, stages of steps and of lines.

        ``itemsize`` is that of the product's type, in bytes.
        """
        stage = 0 if self.stationary else rows_bytes(self.filters, sparse=sparse, itemsize=itemsize)
        if not self.lines:
            stage += self.pixels * STEP_BYTES
        elif self.stationary:
            stage = self.line_bytes
        lines = self.line_stages * _whole(self.line_bytes) + self.line_spare
        strips = max(self.strips * self.strip_pixels * (self.blocks * ROWS * 2 + 16), _LEAST_STRIP_BYTES)
        return _whole(_BARRIER_BYTES + self.groups * strips) + self.stages * _whole(stage) + lines


def _whole(size: int) -> int:
    """Rounded up to what a swizzled tile's address is a multiple of."""
    return ceil_divide(size, 1024) * 1024


def deepest(
    blocks: int, groups: int, pixels: int, cluster: int = 1, split: int = 1, resident: int = 1, *, sparse: bool,
    most: int = 8, itemsize: int = 2, lines: tuple[int, int, int, int] = (0, 0, 0, 0), residual: bool = False,
    stationary: bool = False,
) -> Tile:  # fmt: skip
    """The tile with as many stages as fit, for a type of ``itemsize`` bytes. ``ValueError`` when two do not.

    ``lines`` are the tile's numbers of lines. Where a ``residual`` is added, there are strips for as much of it as
    leaves four stages.
    """

    def tile(stages: int, strips: int) -> Tile:
        return Tile(blocks, groups, pixels, cluster, split, stages, resident, *lines, strips, stationary)

    def stages_with(strips: int) -> int:
        return most_stages(lambda n: tile(n, strips).shared_bytes(sparse=sparse, itemsize=itemsize), limit, most)

    limit = _SHARED_BYTES if resident == 1 else _MULTIPROCESSOR_BYTES // resident - _RESERVED_BYTES
    best = tile(stages_with(2), 2)
    for strips in range(3, ceil_divide(pixels, best.strip_pixels) + 1) if residual and split == 1 else ():
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


# Blocks of 64 filters, groups, pixels, cluster, split and resident blocks of the tiles that race. A thread has 192 sums
# or fewer.
TILES: tuple[tuple[int, int, int, int, int, int], ...] = (
    (1, 1, 64, 1, 1, 1), (1, 1, 128, 1, 1, 1), (1, 2, 64, 1, 1, 1), (1, 2, 128, 1, 1, 1), (1, 2, 256, 1, 1, 1),
    (2, 2, 64, 1, 1, 1), (2, 2, 128, 1, 1, 1), (1, 2, 192, 1, 1, 1), (2, 2, 192, 1, 1, 1),
    (1, 2, 256, 2, 1, 1), (2, 2, 128, 2, 1, 1),
    (1, 1, 64, 1, 1, 3), (1, 1, 128, 1, 1, 2), (1, 1, 128, 1, 1, 3), (2, 1, 128, 1, 1, 2), (1, 2, 128, 1, 1, 2),
    (1, 2, 64, 1, 1, 2),
    (1, 1, 64, 1, 2, 1), (1, 1, 64, 1, 4, 1), (1, 1, 64, 1, 8, 1), (1, 2, 64, 1, 2, 1), (1, 2, 64, 1, 4, 1),
    (1, 2, 64, 1, 8, 1),
)  # fmt: skip


def _band(shape: Convolution, tile: Tile, dtype: DType, clusters: int, *, sparse: bool) -> int:
    """How many tiles of filters follow each other before the next pixels.

    ``clusters`` of tiles run at a time. With ``band`` tiles of filters and ``clusters / band`` of pixels they read the
    fewest bytes where both take as many.
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
    high, wide = shape.output
    chunks, steps = ceil_divide(shape.channels * dtype.size_bytes, STEP_BYTES), shape.steps_in(dtype.size_bytes)
    down, across = shape.kernel
    (stride_h, stride_w), (dilation_h, dilation_w) = shape.strides, shape.dilations
    top, left, bottom, right = shape.pads
    image = (shape.batch, shape.height, shape.width)
    line = wide + (across - 1) * dilation_w
    if tile.lines:
        lines = tile.lines + (down - 1) * dilation_h
        if tile.line_bytes != lines * line * STEP_BYTES or shape.strides != (1, 1) or tile.together > 1:
            raise ValueError("a tile of other lines")
        map_ = TensorMap("lines", 0, dtype, shape.channels, image, line, lines=lines, apart=shape.apart)
    elif shape.is_product:
        map_ = TensorMap("rows", 0, dtype, shape.channels, (shape.pixels, 1, 1), tile.pixels // tile.cluster)
    else:
        high_corner = (right - (across - 1) * dilation_w, bottom - (down - 1) * dilation_h)
        map_ = TensorMap("taps", 0, dtype, shape.channels, image, tile.pixels // tile.cluster, (-left, -top),
                         high_corner, (stride_w, stride_h), apart=shape.apart)  # fmt: skip
    defines = common_defines(shape, dtype, epilogue, sparse=sparse)
    defines |= {
        # Profilers show this name: it proves that the sparse form runs.
        "KERNEL": f"tamis_{'sparse' if sparse else 'dense'}_implicit_gemm",
        "BLOCKS": tile.blocks, "GROUPS": tile.groups, "PIXELS": tile.pixels, "STAGES": tile.stages,
        "CLUSTER": tile.together, "SPLIT": int(tile.split > 1), "HALO": int(tile.lines > 0), "RESIDENT": tile.resident,
        "LINE_STAGES": tile.line_stages, "STRIP_COUNT": tile.strips, "STATIONARY": int(tile.stationary),
    }  # fmt: skip
    if tile.split > steps:
        raise ValueError(f"{steps} steps cannot be split among {tile.split} blocks")
    clusters = min(tile.count(shape), max(multiprocessors * tile.resident // tile.together, 1))
    numbers = (
        shape.filters, shape.pixels, steps, chunks, across, wide, high, stride_w, stride_h, left, top,
        dilation_w, dilation_h, tile.lines, line, tile.line_bytes,
        _band(shape, tile, dtype, clusters, sparse=sparse), *epilogue.places(shape.filters),
    )  # fmt: skip
    return Kernel(
        "implicit_gemm_hopper", defines, (clusters * tile.together, 1, 1), (tile.threads, 1, 1),
        common_arguments(Argument("map", 0), numbers, epilogue),
        tile.shared_bytes(sparse=sparse, itemsize=dtype.size_bytes), (map_,),
    )  # fmt: skip


def common_defines(
    shape: Convolution, dtype: DType, epilogue: Epilogue, *, sparse: bool
) -> dict[str, str | int | float]:
    """The constants that implicit GEMM has on all tensor cores.

    ``ValueError`` for pixels that are no multiple of 16 bytes, or no such multiple apart.
    """
    multiple = 16 // dtype.size_bytes
    if shape.channels % multiple:
        raise ValueError(f"{shape.channels} channels are not a multiple of {multiple}")
    if shape.apart and any(elements % multiple for elements in shape.apart):
        raise ValueError(f"pixels, lines and images {shape.apart} elements apart, not a multiple of {multiple}")
    return {
        "SPARSE": int(sparse),
        "IM2COL": int(not shape.is_product),
        "PRODUCT_TYPE": _PRODUCT_TYPES[dtype],
        "EIGHT_BITS": int(dtype.size_bytes == 1),
        "INTEGERS": int(dtype == DType.INT8),
        **epilogue.defines(shape.filters, dtype),
    }


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
