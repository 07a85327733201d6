"""Convolutions of images with few channels, such as a network's first layer, on Hopper's tensor cores.

Tensor cores want 64 channels; such an image has three. A step in front makes channels-last pixels of blocks of s x s
pixels, where s is the stride (``space_to_depth``), P channels each with zeros behind, 16 bytes or a multiple, and puts
the padding around the image. A convolution of R x S taps and stride 1 without padding is left. In memory the S pixels
that a row of taps sees follow each other: S * P values, the channels of one *window*, and the next window begins one
pixel further. The copy engine takes them as an image of S * P channels whose pixels lie only P elements apart, so that
they overlap, and R x 1 taps are left. The 7x7 stem of stride 2 of a ResNet is 4x4 taps over 12 + 4 channels, that is
4x1 over 64: four steps of the kernel.

The price: the copy engine brings each pixel S times, and zeros behind the channels are multiplied.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product

import numpy as np

from tamis.compiler.config import BuildConfig
from tamis.compiler.ir.ops import Conv
from tamis.compiler.tactics.ahead import Unit, unit_of
from tamis.compiler.tactics.base import Choice, Layer, Lowered, uniform_format
from tamis.compiler.tactics.generations import HOPPER
from tamis.compiler.tactics.implicit_gemm import (
    PRECISIONS,
    adds_residual,
    kernel_of,
    lower_kernel,
    missing_tiles,
    refuses_kernel,
)
from tamis.compiler.tactics.precision import runs_in, to_precision
from tamis.compiler.tactics.product import refuses_weights
from tamis.compiler.tactics.space_to_depth import (
    MOST_CHANNELS,
    Rearranged,
    in_blocks,
    rearranged_weight,
    rearranging_kernel,
    rearranging_step,
)
from tamis.engine.plan import DeviceInfo, Format
from tamis.formats.dtype import DType
from tamis.formats.hopper import ROWS
from tamis.kernels.cuda.convolution import Convolution
from tamis.kernels.cuda.implicit_gemm import Tile
from tamis.kernels.cuda.specification import MOST_ELEMENTS, ceil_divide

# Images of at most this many channels; with more the kernel takes a layer as it is.
FEW_CHANNELS = 8
_MULTIPLE = 8  # elements in 16 bytes
_MOST_TAPS = 128  # below each other: the corners of the copy engine's im2col mode have 8 bits


class HopperStem:
    """Windows of pixels as the pixels of our implicit product; dense."""

    name = "tamis.hopper.stem"
    sparse = False

    def refuses(self, layer: Layer, device: DeviceInfo, config: BuildConfig) -> str | None:
        """Anything but plain 2-D convolutions of few channels, and other devices than Hopper."""
        if device.kind != "cuda":
            return "runs on CUDA devices only"
        reason = refuses_windows(layer)
        reason = reason or HOPPER.refuses(windows_of(layer)[1], device, config)
        return refuses_kernel(layer, device, config) if reason is None else reason

    def choices(self, layer: Layer, device: DeviceInfo, config: BuildConfig) -> Iterator[Choice]:
        """Each allowed 16-bit precision, the image as the network's inputs come or as other layers leave it, tiles."""
        tiles = _tiles(layer, device, config.optimization_level)
        for precision in config.precisions:
            if precision not in PRECISIONS or not runs_in(precision, device):
                continue
            image, *others = (uniform_format(layer.types[v], precision, True) for v in layer.values)
            outputs = tuple(uniform_format(layer.types[v], precision, True) for v in layer.node.outputs)
            sources = dict.fromkeys((Format(DType.FLOAT32), Format(image.dtype), image))
            for source, tile in product(sources, tiles):
                parameters = {**HOPPER.parameters(device), **dataclasses.asdict(tile)}
                yield Choice(self.name, precision, (source, *others), outputs, parameters=parameters)

    def left_out(self, layer: Layer, device: DeviceInfo, config: BuildConfig) -> str | None:
        """How many tiles do not race at this level because others should be faster."""
        return missing_tiles(lambda level: _tiles(layer, device, level), config)

    def units(self, layer: Layer, choice: Choice) -> tuple[Unit, ...]:
        """The product, and the step in front."""
        made, windows = windows_of(layer)
        kernels = (kernel_of(HOPPER, layer, choice, windows), rearranging_kernel(layer, choice, made))
        return tuple(unit_of(kernel, choice) for kernel in kernels)

    def lower(self, layer: Layer, choice: Choice) -> Lowered:
        """The step that makes blocks of the image and pads it, the product over its windows, and what that leaves."""
        tile = HOPPER.tile(choice.parameters)
        image, front, packed = lower_windows(layer, choice, tile.filters, stationary=tile.stationary)
        behind = lower_kernel(layer, choice, kernel_of(HOPPER, layer, choice, windows_of(layer)[1]), image, packed)
        return front.before(behind)


def _tiles(layer: Layer, device: DeviceInfo, level: int) -> Sequence[Tile]:
    # First layers may have 32 filters. No tile has less than 64, so that those that miss speak against none. But it
    # has to be seen where they are no multiple of eight: results then take registers that weights cannot have.
    shape = windows_of(layer)[1]
    even = shape.filters % _MULTIPLE == 0
    whole = replace(shape, filters=ceil_divide(shape.filters, ROWS) * ROWS) if even else shape
    return HOPPER.tiles(whole, device, sparse=False, residual=adds_residual(layer), level=level)


def windows_of(layer: Layer) -> tuple[Rearranged, Convolution]:
    """The padded image that the first step makes of a layer's, and the convolution of its windows."""
    op, image, weight = layer.op, layer.type(0).shape, layer.type(1).shape
    made = in_blocks(op, image, weight, _MULTIPLE)
    top, left, bottom, right = made.pads
    high, wide = made.size[0] + top + bottom, made.size[1] + left + right
    made = replace(made, size=(high, wide), pads=(0, 0, 0, 0), before=(top, left))
    rows, columns = layer.types[layer.node.output].shape[2:]
    down, across = high - rows + 1, wide - columns + 1
    # Without neighbours in a window its pixels just follow each other.
    apart = (made.channels, wide * made.channels, high * wide * made.channels) if across > 1 else None
    windows = Convolution(image[0], high, columns, across * made.channels, weight[0], (down, 1), apart=apart)
    return made, windows


def lower_windows(
    layer: Layer, choice: Choice, filters: int, *, stationary: bool = False
) -> tuple[str, Lowered, np.ndarray]:
    """The padded image's name, the step that makes it, and the weight as the kernel over windows reads it.

    ``filters``: of the tile; ``stationary``: whether it keeps its filters.
    """
    made, _ = windows_of(layer)
    image = f"{layer.node.output}/windows"
    step, binary = rearranging_step(layer, choice, made, image)
    matrix = to_precision(windows_weight(layer, made), choice.precision)
    kept = (layer.type(0).shape[0], made.channels, *made.size)
    front = Lowered((step,), binary, {image: (kept, Format(choice.precision.storage, "channels_last"))})
    return image, front, HOPPER.packed(matrix, filters, sparse=False, stationary=stationary)


def windows_weight(layer: Layer, made: Rearranged) -> np.ndarray:
    """The weight [K,C,R,S] over windows: [K, rows of taps, channels of a window]."""
    blocks = rearranged_weight(layer.constants[layer.node.inputs[1]], layer.op.pads, made)
    return np.ascontiguousarray(blocks.reshape(*blocks.shape[:2], -1))


def refuses_windows(layer: Layer) -> str | None:
    """Why a layer has no windows, whatever the device."""
    op = layer.op
    if not isinstance(op, Conv):
        return f"{type(op).__name__} is not a convolution"
    reason = refuses_weights(layer)
    if reason is not None:
        return reason
    image, inputs = layer.type(0), layer.node.inputs
    if image.dtype != DType.FLOAT32 or layer.constant(0) is not None or inputs[0] in inputs[1:]:
        return "the image is a constant, not floating point, or needed a second time as it is"
    if len(op.strides) != 2 or op.groups != 1:
        return "a grouped convolution, or one that is not 2-D"
    channels, stride, taps = image.shape[1], op.strides[0], layer.type(1).shape[2:]
    if channels > FEW_CHANNELS:
        return f"{channels} channels; this is for images of up to {FEW_CHANNELS}"
    if op.strides != (stride, stride) or op.dilations != (1, 1):
        return "strides that differ, or a dilated filter"
    if min(taps) < stride or any(pad >= count for pad, count in zip(op.pads[:2], taps, strict=True)):
        return "the filter is smaller than its stride, or no larger than its padding"
    if channels * stride * stride > MOST_CHANNELS:
        return f"blocks of {channels * stride * stride} values; {MOST_CHANNELS} at most"
    made, shape = windows_of(layer)
    if shape.kernel[0] > _MOST_TAPS:
        return f"{shape.kernel[0]} taps below each other; {_MOST_TAPS} at most"
    elements = (image.elements, shape.batch * made.channels * made.size[0] * made.size[1])
    return f"more than {MOST_ELEMENTS} elements" if max(elements) > MOST_ELEMENTS else None
