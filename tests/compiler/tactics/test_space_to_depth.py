"""Space to depth: the rearranged convolution is the plain one, in float64 and for every shape."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import numpy as np
import pytest

from conv_layers import RELU, conv, conv_layer
from tamis.compiler.ir.evaluate import evaluate
from tamis.compiler.ir.graph import TensorType
from tamis.compiler.ir.ops import Conv
from tamis.compiler.tactics.space_to_depth import Rearranged, in_blocks, rearranged_weight, rearrangements
from tamis.formats.dtype import DType
from tamis.kernels.cuda.specification import MOST_ELEMENTS


def blocks_of(image: np.ndarray, made: Rearranged) -> np.ndarray:
    """What the kernel makes of an image [N,C,H,W]: [N,channels,*size]."""
    batch, channels, height, width = image.shape
    block = made.block
    result = np.zeros((batch, made.channels, *made.size))
    for c, down, across in np.ndindex(channels, block, block):
        for i, j in np.ndindex(*made.size):
            y, x = block * i + down, block * j + across
            if y < height and x < width:
                result[:, (c * block + down) * block + across, i, j] = image[:, c, y, x]
    return result


def compare(op: Conv, image: tuple[int, ...], weight: tuple[int, ...], multiple: int = 8) -> Rearranged:
    """The plain convolution in float64 beside the rearranged one, whose geometry is returned."""
    generator = np.random.default_rng(prod((*image, *weight, *op.pads, 1 + op.strides[0])) % 2**31)
    x, w = generator.standard_normal(image), generator.standard_normal(weight)
    made = in_blocks(op, image, weight, multiple)
    assert min(made.pads) >= 0 and min(made.size) > 0 and made.channels % multiple == 0
    packed = rearranged_weight(w, op.pads, made).transpose(0, 3, 1, 2)
    (wanted,) = evaluate(op, [x, w])
    (result,) = evaluate(Conv(made.strides, made.pads, (1, 1)), [blocks_of(x, made), packed])
    np.testing.assert_allclose(result, wanted, rtol=0, atol=1e-12)
    return made


KNOWN = {
    "resnet stem": (conv(stride=2, pads=3, bias=False), (2, 3, 24, 20), (5, 3, 7, 7), (4, 4), 16, (2, 2, 1, 1), (12, 10)),
    "yolo stem": (conv(stride=2, pads=2, bias=False), (1, 3, 16, 16), (5, 3, 6, 6), (3, 3), 16, (1, 1, 1, 1), (8, 8)),
    "3x3 stem": (conv(stride=2, pads=1, bias=False), (1, 3, 16, 16), (5, 3, 3, 3), (2, 2), 16, (1, 1, 0, 0), (8, 8)),
    "patches": (conv(stride=16, pads=0, bias=False), (1, 3, 32, 48), (5, 3, 16, 16), (1, 1), 768, (0,) * 4, (2, 3)),
    "alexnet": (conv(stride=4, pads=2, bias=False), (1, 3, 31, 31), (5, 3, 11, 11), (4, 4), 48, (1, 1, 1, 1), (8, 8)),
    "unread rows": (conv(stride=2, pads=0, bias=False), (1, 3, 9, 7), (5, 3, 2, 2), (1, 1), 16, (0,) * 4, (4, 3)),
    "uneven": (conv(stride=2, pads=(0, 1, 1, 0), bias=False), (1, 2, 9, 8), (5, 2, 3, 3), (2, 2), 8, (0, 1, 0, 0), (5, 4)),
}  # fmt: skip


@pytest.mark.parametrize(("op", "image", "weight", "taps", "channels", "pads", "size"), KNOWN.values(), ids=KNOWN)
def test_known_layers(op, image, weight, taps, channels, pads, size):
    made = compare(op, image, weight)
    assert (made.block, made.channels, made.strides) == (op.strides[0], channels, (1, 1))
    assert (made.pads, made.size) == (pads, size)
    assert rearranged_weight(np.zeros(weight), op.pads, made).shape == (5, *taps, channels)


def test_random_layers():
    """Kernels, strides, pads and sizes of all kinds, pads and sides that differ, strides that divide no size."""
    generator = np.random.default_rng(11)
    seen = set()
    for _ in range(400):
        stride, channels = int(generator.integers(2, 6)), int(generator.integers(1, 5))
        taps = generator.integers(stride, stride + 7, 2)
        before, after = generator.integers(0, taps), generator.integers(0, taps)
        size = np.maximum(generator.integers(1, 20, 2), taps - before - after)
        op = Conv((stride, stride), tuple(map(int, (*before, *after))), (1, 1))
        made = compare(op, (1, channels, *map(int, size)), (2, channels, *map(int, taps)), 4)
        seen.add((made.pads[:2] == made.pads[2:], any(extent % stride for extent in size)))
    assert len(seen) == 4


def test_padding_leaves_the_taps_where_they_are():
    weight = np.random.default_rng(2).standard_normal((4, 3, 5, 7))
    made = Rearranged(1, 8, (9, 9), (2, 2), (2, 3, 1, 0))
    packed = rearranged_weight(weight, made.pads, made)
    np.testing.assert_array_equal(packed[..., :3], weight.transpose(0, 2, 3, 1))
    assert packed.shape == (4, 5, 7, 8) and not packed[..., 3:].any()


@pytest.mark.parametrize(
    ("op", "channels", "taps", "block"),
    [
        (conv(RELU, stride=2, pads=3), 3, (7, 7), 2),
        (conv(RELU, stride=2), 4, (3, 3), 2),
        (conv(stride=16, pads=0), 3, (16, 16), 16),
        (conv(RELU), 3, (3, 3), None),  # no stride
        (conv(stride=2), 5, (3, 3), None),  # tensor cores take it as it is
        (conv(stride=2, groups=3), 3, (3, 3), None),
        (conv(stride=2, dilation=2), 3, (3, 3), None),
        (conv(stride=4), 3, (3, 3), None),  # most of a block would be read for nothing
        (conv(stride=2, pads=(0, 3, 0, 0)), 3, (3, 3), None),  # results that read padding alone
        (conv(stride=40, pads=0), 3, (40, 40), None),  # 4800 channels
        (Conv((2, 1), (1,) * 4, (1, 1)), 3, (3, 3), None),
    ],
)
def test_where_it_is_offered(op, channels, taps, block):
    layer, _ = conv_layer(op, (1, channels, 48, 48), (6, channels // op.groups, *taps))
    offered = [way["space_to_depth"] for way in rearrangements(layer, DType.FLOAT16) if "space_to_depth" in way]
    assert offered == ([] if block is None else [block])


def test_images_that_the_kernel_cannot_count_stay_as_they_are():
    layer, _ = conv_layer(conv(stride=2, pads=3), (1, 3, 16, 16), (6, 3, 7, 7))

    def ways(channels: int) -> tuple[dict[str, int], ...]:
        """At a batch for which the rearranged image may just have so many channels of the old size."""
        image = TensorType((MOST_ELEMENTS // (channels * 256), 3, 16, 16))
        return rearrangements(replace(layer, types={**layer.types, "x": image}), DType.FLOAT16)

    blocks, four, eight = {"space_to_depth": 2}, {"pad_channels": 4}, {"pad_channels": 8}
    assert ways(8) == (blocks, four, eight)
    assert ways(7) == (blocks, four)  # 16 channels of a quarter of the size
    assert ways(3) == ()
