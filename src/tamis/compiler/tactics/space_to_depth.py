"""Images of few channels, rearranged by a step in front of their convolution, as tensor cores like them.

*Padding* puts zero channels behind those that are there; the convolution stays what it was.

*Space to depth* makes pixels of blocks of s x s pixels, where s is the stride, and leaves a convolution of stride 1
over s * s times the channels. For tap r write ``r - pad = s * a + b`` with ``0 <= b < s``: then ``x[s * i + r - pad]``
is ``X_b[i + a]``, X_b being every s-th pixel from b on. The new taps a run from ``floor(-pad / s)`` to
``floor((taps - 1 - pad) / s)``; c, b_y and b_x make channel ``(c * s + b_y) * s + b_x``, and zeros follow up to 16
bytes. So 7x7 of stride 2 over 3 channels is 4x4 over 12, and a vision transformer's patches, 16x16 of stride 16, are
1x1 over 768.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from tamis.compiler.ir.ops import Conv
from tamis.compiler.tactics.base import Choice, Layer
from tamis.compiler.tactics.cuda_steps import kernel_step
from tamis.engine.plan import Step
from tamis.formats.dtype import DType
from tamis.kernels.cuda.movement import space_to_depth
from tamis.kernels.cuda.specification import MOST_ELEMENTS, VECTOR_BYTES, Kernel, ceil_divide

# Images of at most this many channels are rearranged, into at most so many.
FEW_CHANNELS, MOST_CHANNELS = 4, 4096


@dataclass(frozen=True)
class Rearranged:
    """An image of ``channels`` channels and ``size`` (height, width), and how the convolution goes over it.

    A pixel holds ``block`` x ``block`` pixels of the layer's image. ``pads`` is (top, left, bottom, right). ``before``
    are lines above and pixels left of the image that are part of ``size`` and zeros.
    """

    block: int
    channels: int
    size: tuple[int, int]
    strides: tuple[int, int]
    pads: tuple[int, int, int, int]
    before: tuple[int, int] = (0, 0)


def rearrangements(layer: Layer, precision: DType) -> tuple[dict[str, int], ...]:
    """Parameters of the choices that rearrange the image: ``space_to_depth`` (s) or ``pad_channels`` (how many)."""
    op, image = layer.op, layer.type(0)
    if op.groups != 1 or image.shape[1] > FEW_CHANNELS or image.elements > MOST_ELEMENTS:
        return ()
    paddings = (4, 8) if precision.size_bytes == 2 else (4,)
    ways = [{"space_to_depth": op.strides[0]}] if _has_blocks(layer) else []
    ways += [{"pad_channels": c} for c in paddings if c > image.shape[1]]
    return tuple(way for way in ways if _fits(layer, precision, way))


def rearranged(layer: Layer, precision: DType, parameters: Mapping[str, Any]) -> Rearranged | None:
    """What the parameters of a choice make of the layer's image; None where they leave it as it is."""
    op, image = layer.op, layer.type(0).shape
    if "space_to_depth" in parameters:
        return in_blocks(op, image, layer.type(1).shape, VECTOR_BYTES // precision.size_bytes)
    if "pad_channels" in parameters:
        return Rearranged(1, parameters["pad_channels"], (image[2], image[3]), op.strides, op.pads)
    return None


def in_blocks(op: Conv, image: tuple[int, ...], weight: tuple[int, ...], multiple: int) -> Rearranged:
    """Space to depth of an image [N,C,H,W] for a weight [K,C,R,S]; the channels are padded to a multiple.

    The strides must be equal, dilations and groups 1, and the padding smaller than the kernel.
    """
    stride = op.strides[0]
    sizes, before, after = [], [], []
    for size, taps, low, high in zip(image[2:], weight[2:], op.pads[:2], op.pads[2:], strict=True):
        last = (taps - 1 - low) // stride
        results = (size + low + high - taps) // stride + 1
        # No more pixels than the last result reads: padding cannot be negative.
        sizes.append(min(ceil_divide(size, stride), results + last))
        before.append(ceil_divide(low, stride))
        after.append(results + last - sizes[-1])
    channels = ceil_divide(image[1] * stride * stride, multiple) * multiple
    pads = (before[0], before[1], after[0], after[1])
    return Rearranged(stride, channels, (sizes[0], sizes[1]), (1, 1), pads)


def rearranged_weight(weight: np.ndarray, pads: tuple[int, ...], made: Rearranged) -> np.ndarray:
    """A weight [K,C,R,S], of a layer with these pads, for the rearranged image: [K,R',S',channels]."""
    outputs, channels, *taps = weight.shape
    block = made.block
    # Zeros around the taps, so that they begin and end with a block.
    low = [-pad % block for pad in pads[:2]]
    high = [-(before + count) % block for before, count in zip(low, taps, strict=True)]
    around = np.pad(weight, ((0, 0), (0, 0), *zip(low, high, strict=True)))
    rows, columns = (extent // block for extent in around.shape[2:])
    cut = around.reshape(outputs, channels, rows, block, columns, block).transpose(0, 2, 4, 1, 3, 5)
    flat = cut.reshape(outputs, rows, columns, channels * block * block)
    return np.pad(flat, ((0, 0), (0, 0), (0, 0), (0, made.channels - flat.shape[3])))


def rearranging_kernel(layer: Layer, choice: Choice, made: Rearranged) -> Kernel:
    """The kernel that rearranges the image, from its format in the choice."""
    source = choice.inputs[0]
    lies = (source.dtype, source.layout == "channels_last")
    return space_to_depth(
        layer.type(0).shape, lies, made.block, made.size, made.channels, choice.precision.storage, made.before
    )


def rearranging_step(layer: Layer, choice: Choice, made: Rearranged, output: str) -> tuple[Step, dict[str, np.ndarray]]:
    """The step that rearranges the image in the format of the convolution, with its kernel."""
    image = layer.type(0)
    written = image.shape[0] * made.channels * prod(made.size) * choice.precision.size_bytes
    return kernel_step(
        rearranging_kernel(layer, choice, made), choice,
        name=f"{layer.name}/image", layers=(layer.name,), inputs=(layer.node.inputs[0],), outputs=(output,),
        constants={}, moved_bytes=image.elements * choice.inputs[0].dtype.size_bytes + written,
    )  # fmt: skip


def _has_blocks(layer: Layer) -> bool:
    """Whether blocks of the stride are square, reach every pixel and stay small."""
    op, taps = layer.op, layer.type(1).shape[2:]
    stride = op.strides[0]
    square = op.strides == (stride, stride) and stride > 1 and op.dilations == (1, 1)
    every_pixel = min(taps) >= stride and all(pad < count for pad, count in zip(op.pads[:2], taps, strict=True))
    return square and every_pixel and layer.type(0).shape[1] * stride * stride <= MOST_CHANNELS


def _fits(layer: Layer, precision: DType, way: Mapping[str, int]) -> bool:
    made = rearranged(layer, precision, way)
    return made is not None and layer.type(0).shape[0] * made.channels * prod(made.size) <= MOST_ELEMENTS
