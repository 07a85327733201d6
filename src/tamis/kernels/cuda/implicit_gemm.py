"""Constants and launch of ``implicit_gemm_hopper.cu``: convolutions and matrix products, dense or 2:4.

Geometry and epilogue are also those of ``implicit_gemm_ampere``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tamis.formats.dtype import DType
from tamis.formats.hopper import ROWS
from tamis.formats.steps import CHANNELS, rows_bytes
from tamis.kernels.cuda.pointwise import PointwiseStep, program_text
from tamis.kernels.cuda.specification import ELEMENTS, Argument, Kernel, TensorMap, ceil_divide

_WARPGROUP = 128
_STRIP_PIXELS = 32
_SHARED_BYTES = 232448  # that a block may have: 227 KiB
_PRODUCT_TYPES = {DType.FLOAT16: '"f16"', DType.BFLOAT16: '"bf16"'}


@dataclass(frozen=True)
class Convolution:
    """The geometry of a convolution of NHWC images; a matrix product is one of 1 x 1 images.

    ``kernel``, ``strides`` and ``dilations`` are (vertical, horizontal); ``pads`` (top, left, bottom, right).
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
        """Taps, times runs of 64 channels."""
        return self.kernel[0] * self.kernel[1] * ceil_divide(self.channels, CHANNELS)

    @property
    def is_product(self) -> bool:
        """Whether every pixel of the result sees just the one at its place."""
        return self.kernel == (1, 1) and self.strides == (1, 1) and self.pads == (0, 0, 0, 0)


@dataclass(frozen=True)
class Epilogue:
    """What becomes of the sums of a product: bias, then ``steps``, of which operand 0 is the residual.

    ``dtype`` is the output's, None for that of the product. Its pixels have ``pitch`` channels, None for as many as
    there are filters; those from ``offset`` on are written. The residual has the output's type and a channel for each
    filter.
    """

    steps: tuple[PointwiseStep, ...] = ()
    bias: bool = False
    residual: bool = False
    dtype: DType | None = None
    pitch: int | None = None
    offset: int = 0

    def defines(self, filters: int, product: DType) -> dict[str, str | int | float]:
        """The constants of ``gemm_epilogue.h``."""
        return {
            "OUT_TYPE": ELEMENTS[self.dtype or product], "PROGRAM": program_text(self.steps), "BIAS": int(self.bias),
            "RESIDUAL": int(self.residual),
            "VECTORS": int(not any(number % 8 for number in self.places(filters))),
        }  # fmt: skip

    def places(self, filters: int) -> tuple[int, int, int]:
        """Pitch and offset of the output, pitch of the residual."""
        return (filters if self.pitch is None else self.pitch), self.offset, filters


@dataclass(frozen=True)
class Tile:
    """What a block computes at a time: ``64 * blocks * groups`` filters by ``pixels``, ``stages`` steps ahead.

    ``cluster`` blocks compute different filters of the same pixels, and share what is copied of these. Or ``split``
    blocks divide the steps of one tile among them. One of the two is 1.
    """

    blocks: int
    groups: int
    pixels: int
    cluster: int
    split: int
    stages: int

    @property
    def filters(self) -> int:
        """Filters of a tile."""
        return ROWS * self.blocks * self.groups

    @property
    def together(self) -> int:
        """Blocks that run at the same time and reach into each other's shared memory."""
        return max(self.cluster, self.split)

    def count(self, shape: Convolution) -> int:
        """How many tiles cover a convolution; those of a cluster count as one."""
        return ceil_divide(shape.filters, self.filters * self.cluster) * ceil_divide(shape.pixels, self.pixels)

    def shared_bytes(self, *, sparse: bool) -> int:
        """Shared memory of a block: the stages, a strip of results for each group, two barriers for each stage."""
        weights = rows_bytes(self.filters, sparse=sparse)
        stage = ceil_divide(self.pixels * CHANNELS * 2 + weights, 1024) * 1024
        strip = _STRIP_PIXELS * (self.blocks * ROWS + 4) * 4
        return self.stages * stage + self.groups * strip + self.stages * 16


def deepest(
    blocks: int, groups: int, pixels: int, cluster: int = 1, split: int = 1, *, sparse: bool, most: int = 8
) -> Tile:
    """The tile with as many stages as fit. ``ValueError`` when two do not."""

    def shared_bytes(stages: int) -> int:
        return Tile(blocks, groups, pixels, cluster, split, stages).shared_bytes(sparse=sparse)

    return Tile(blocks, groups, pixels, cluster, split, most_stages(shared_bytes, _SHARED_BYTES, most))


def most_stages(shared_bytes: Callable[[int], int], limit: int, most: int) -> int:
    """Up to how many stages, ``most`` at most, a block's shared memory keeps to ``limit`` bytes.

    ``ValueError`` when two do not.
    """
    for stages in range(most, 1, -1):
        if shared_bytes(stages) <= limit:
            return stages
    raise ValueError(f"two stages of the tile take {shared_bytes(2)} bytes, and do not fit into shared memory")


# Blocks of 64 filters, groups, pixels, cluster and split of the tiles that race. 128 float32 sums a thread at most.
TILES: tuple[tuple[int, int, int, int, int], ...] = (
    (1, 1, 64, 1, 1), (1, 1, 128, 1, 1), (1, 2, 64, 1, 1), (1, 2, 128, 1, 1), (1, 2, 256, 1, 1), (2, 2, 64, 1, 1),
    (2, 2, 128, 1, 1),
    (1, 2, 192, 1, 1), (2, 2, 192, 1, 1),
    (1, 2, 128, 2, 1), (1, 2, 256, 2, 1), (2, 2, 128, 2, 1), (2, 2, 192, 2, 1),
    (1, 1, 64, 1, 2), (1, 1, 64, 1, 4), (1, 1, 64, 1, 8), (1, 2, 64, 1, 2), (1, 2, 64, 1, 4), (1, 2, 64, 1, 8),
)  # fmt: skip


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
    float32 bias. ``ValueError`` for what the kernel cannot do.
    """
    high, wide = shape.output
    chunks = ceil_divide(shape.channels, CHANNELS)
    down, across = shape.kernel
    (stride_h, stride_w), (dilation_h, dilation_w) = shape.strides, shape.dilations
    top, left, bottom, right = shape.pads
    sliding = not shape.is_product
    if sliding:
        high_corner = (right - (across - 1) * dilation_w, bottom - (down - 1) * dilation_h)
        image = (shape.batch, shape.height, shape.width)
        map_ = TensorMap(0, dtype, shape.channels, image, tile.pixels // tile.cluster, True, (-left, -top), high_corner,
                         (stride_w, stride_h))  # fmt: skip
    else:
        map_ = TensorMap(0, dtype, shape.channels, (shape.pixels, 1, 1), tile.pixels // tile.cluster)
    defines = common_defines(shape, dtype, epilogue, sparse=sparse)
    defines |= {
        # Profilers show this name: it proves that the sparse form runs.
        "KERNEL": f"tamis_{'sparse' if sparse else 'dense'}_implicit_gemm",
        "BLOCKS": tile.blocks, "GROUPS": tile.groups, "PIXELS": tile.pixels, "STAGES": tile.stages,
        "CLUSTER": tile.together, "SPLIT": int(tile.split > 1),
    }  # fmt: skip
    if tile.split > shape.steps:
        raise ValueError(f"{shape.steps} steps cannot be split among {tile.split} blocks")
    clusters = min(tile.count(shape), max(multiprocessors // tile.together, 1))
    numbers = (
        shape.filters, shape.pixels, shape.steps, chunks, across, wide, high, stride_w, stride_h, left, top,
        dilation_w, dilation_h, *epilogue.places(shape.filters),
    )  # fmt: skip
    return Kernel(
        "implicit_gemm_hopper", defines, (clusters * tile.together, 1, 1), (_WARPGROUP * (tile.groups + 1), 1, 1),
        common_arguments(Argument("map", 0), numbers, epilogue), tile.shared_bytes(sparse=sparse),
        (map_,),
    )  # fmt: skip


def common_defines(
    shape: Convolution, dtype: DType, epilogue: Epilogue, *, sparse: bool
) -> dict[str, str | int | float]:
    """The constants that implicit GEMM has on all tensor cores.

    ``ValueError`` for pixels that are no multiple of 16 bytes.
    """
    if shape.channels % 8:
        raise ValueError(f"{shape.channels} channels are not a multiple of 8")
    return {
        "SPARSE": int(sparse),
        "IM2COL": int(not shape.is_product),
        "PRODUCT_TYPE": _PRODUCT_TYPES[dtype],
        **epilogue.defines(shape.filters, dtype),
    }


def common_arguments(image: Argument, numbers: Sequence[int], epilogue: Epilogue) -> tuple[Argument, ...]:
    """Image, weights, bias, residual and output, then the numbers."""
    return (
        image,
        Argument("const", 0),
        Argument("const", 1) if epilogue.bias else Argument("null"),
        Argument("in", 1) if epilogue.residual else Argument("null"),
        Argument("out", 0),
        *(Argument("int", number) for number in numbers),
    )
