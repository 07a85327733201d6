"""What our kernel offers and refuses for images with few channels, and the two steps that it lowers to."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from conv_layers import RELU, RESIDUAL, conv, conv_layer
from matrix_layers import H200
from tamis.compiler.config import BuildConfig
from tamis.compiler.ir.graph import TensorType
from tamis.compiler.ir.ops import Conv
from tamis.compiler.tactics import implicit_gemm
from tamis.compiler.tactics.stem import HopperStem, windows_of, windows_weight
from tamis.formats.dtype import DType
from tamis.kernels.cuda.specification import MOST_ELEMENTS

CONFIG = BuildConfig(device="cuda", precisions=(DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16))
HALF = replace(CONFIG, precisions=(DType.FLOAT16,))
STEM = HopperStem()
RESNET = (conv(RELU, stride=2, pads=3), (128, 3, 224, 224), (64, 3, 7, 7))


@pytest.fixture(autouse=True)
def with_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(implicit_gemm, "compiles_for", lambda device: True)


def small(op: Conv, image: tuple[int, ...], weight: tuple[int, ...]):
    """A layer of this shape whose random values take no time."""
    layer, _ = conv_layer(op, (1, *image[1:]), weight)
    output = layer.types[layer.node.output].shape
    types = {"x": TensorType(image), layer.node.output: TensorType((image[0], *output[1:]))}
    return replace(layer, types={**layer.types, **types})


def test_the_stem_of_a_resnet() -> None:
    made, shape = windows_of(small(*RESNET))
    assert (made.block, made.channels, made.size, made.before) == (2, 16, (115, 115), (2, 2))
    assert (shape.height, shape.width, shape.channels, shape.kernel) == (115, 112, 64, (4, 1))
    assert shape.apart == (16, 115 * 16, 115 * 115 * 16)
    assert (shape.output, shape.steps, shape.is_product) == ((112, 112), 4, False)


@pytest.mark.parametrize(
    ("op", "image", "weight", "channels", "kernel"),
    [
        (conv(stride=2), (1, 3, 32, 32), (32, 3, 3, 3), 2 * 16, (2, 1)),
        (conv(stride=2, pads=2), (1, 3, 32, 32), (32, 3, 6, 6), 3 * 16, (3, 1)),
        (conv(pads=3), (1, 3, 32, 32), (32, 3, 7, 7), 7 * 8, (7, 1)),
        (conv(), (1, 1, 28, 28), (32, 1, 3, 3), 3 * 8, (3, 1)),
        (conv(stride=4, pads=2), (1, 3, 31, 31), (64, 3, 11, 11), 4 * 48, (4, 1)),
    ],
)
def test_windows(op, image, weight, channels, kernel) -> None:
    made, shape = windows_of(conv_layer(op, image, weight)[0])
    assert (shape.channels, shape.kernel) == (channels, kernel)
    assert shape.apart is not None and shape.apart[0] == made.channels < channels


def test_pixels_alone_do_not_overlap() -> None:
    """Patches are a matrix product, and one column of taps a plain convolution."""
    made, shape = windows_of(conv_layer(conv(stride=16, pads=0), (2, 3, 64, 64), (40, 3, 16, 16))[0])
    assert shape.is_product and shape.channels == made.channels == 768
    _, column = windows_of(conv_layer(conv(pads=(2, 0, 2, 0)), (2, 3, 9, 4), (8, 3, 5, 1))[0])
    assert column.apart is None and column.kernel == (5, 1)
    _, row = windows_of(conv_layer(conv(pads=(0, 2, 0, 2)), (2, 3, 9, 4), (8, 3, 1, 5))[0])
    assert row.kernel == (1, 1) and not row.is_product, "windows end with their line"


def test_weights_over_windows() -> None:
    layer, arrays = conv_layer(conv(pads=1), (1, 3, 8, 8), (5, 3, 3, 2))
    made, _ = windows_of(layer)
    weight = windows_weight(layer, made).reshape(5, 3, 2, 8)
    np.testing.assert_array_equal(weight[..., :3], arrays["w"].transpose(0, 2, 3, 1))
    assert not weight[..., 3:].any()


def test_choices_read_the_image_as_it_comes() -> None:
    layer = small(*RESNET)
    found = list(STEM.choices(layer, H200, CONFIG))
    assert {choice.precision for choice in found} == {DType.FLOAT16, DType.BFLOAT16}
    half = [choice for choice in found if choice.precision == DType.FLOAT16]
    assert {str(choice.inputs[0]) for choice in half} == {"float32", "float16", "float16 channels_last"}
    assert {str(choice.outputs[0]) for choice in found} == {"float16 channels_last", "bfloat16 channels_last"}
    assert len({choice.key() for choice in found}) == len(found)
    assert 224 in {choice.parameters["pixels"] for choice in half if choice.parameters["lines"] == 2}
    assert any(choice.parameters["lines"] == 0 for choice in half), "lines that are too long need plain tiles"


def test_few_filters_race_with_all_tiles_of_64() -> None:
    layer = small(conv(RELU, stride=2), (128, 3, 224, 224), (32, 3, 3, 3))
    found = list(STEM.choices(layer, H200, HALF))
    assert {64 * c.parameters["blocks"] * c.parameters["groups"] for c in found} == {64}
    assert {1, 2} <= {choice.parameters["lines"] for choice in found}


@pytest.fixture
def without_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tamis.compiler.tactics.cuda_steps.compile_source", lambda *a: str(a).encode())


def test_two_steps(without_compiling: None) -> None:
    layer = small(*RESNET)
    choice = next(c for c in STEM.choices(layer, H200, HALF) if c.parameters["lines"] == 2)
    lowered = STEM.lower(layer, choice)
    blocks, product = lowered.steps
    (image,) = blocks.outputs
    assert (blocks.kernel, product.kernel) == ("cuda.space_to_depth", "cuda.implicit_gemm_hopper")
    assert (blocks.inputs, product.inputs, product.outputs) == (("x",), (image,), ("y",))
    shape, format = lowered.temporaries[image]
    assert (shape, str(format)) == ((128, 16, 115, 115), "float16 channels_last")
    (map_,) = product.attributes["maps"]
    assert (map_["mode"], map_["channels"], map_["image"]) == ("lines", 64, [128, 115, 112])
    assert (map_["box"], map_["lines"], map_["apart"]) == (112, 5, [16, 1840, 211600])


def test_residual_and_what_is_left(without_compiling: None) -> None:
    layer, _ = conv_layer(conv(RESIDUAL, RELU, RESIDUAL), (2, 3, 8, 8), (16, 3, 3, 3))
    (choice, *_) = STEM.choices(layer, H200, CONFIG)
    lowered = STEM.lower(layer, choice)
    assert [len(step.inputs) for step in lowered.steps] == [1, 2, 2]
    assert [step.kernel for step in lowered.steps][-1] == "cuda.pointwise"
    assert set(lowered.temporaries) == {"y/windows", "y/before_epilogue"}
    assert {name for step in lowered.steps for name in step.constants} == set(lowered.constants)


REFUSALS = (
    (conv(), (1, 16, 8, 8), (8, 16, 3, 3), {}, "16 channels; this is for images of up to 8"),
    (conv(groups=2), (1, 4, 8, 8), (8, 2, 3, 3), {}, "grouped"),
    (conv(dilation=2), (1, 3, 8, 8), (8, 3, 3, 3), {}, "dilated"),
    (Conv((2, 1), (1,) * 4, (1, 1)), (1, 3, 8, 8), (8, 3, 3, 3), {}, "strides that differ"),
    (conv(stride=2, pads=0), (1, 3, 8, 8), (8, 3, 1, 1), {}, "smaller than its stride"),
    (conv(pads=3), (1, 3, 8, 8), (8, 3, 3, 3), {}, "no larger than its padding"),
    (conv(pads=0), (1, 3, 140, 8), (8, 3, 130, 3), {}, "130 taps below each other"),
    (conv(stride=24, pads=0), (1, 8, 24, 24), (8, 8, 24, 24), {}, "blocks of 4608 values"),
    (conv(), (1, 3, 8, 8), (8, 3, 3, 3), {"architecture": "sm_80"}, "Hopper.*sm_80"),
    (conv(), (1, 3, 8, 8), (8, 3, 3, 3), {"kind": "cpu"}, "CUDA"),
)


@pytest.mark.parametrize(("op", "image", "weight", "changes", "reason"), REFUSALS)
def test_refusals(op, image, weight, changes, reason) -> None:
    layer, _ = conv_layer(op, image, weight)
    said = STEM.refuses(layer, replace(H200, **changes), CONFIG)
    assert said is not None
    assert re.search(reason, said), said


def test_more_refusals() -> None:
    layer = small(*RESNET)
    assert STEM.refuses(layer, H200, CONFIG) is None
    assert "16-bit" in (STEM.refuses(layer, H200, BuildConfig(device="cuda", precisions=(DType.FLOAT32,))) or "")
    many = small(RESNET[0], (12000, 3, 224, 224), RESNET[2])
    assert STEM.refuses(many, H200, CONFIG) == f"more than {MOST_ELEMENTS} elements"
    running, _ = conv_layer(*((RESNET[0], (1, 3, 24, 24), RESNET[2])), constant=False)
    assert "run time" in (STEM.refuses(running, H200, CONFIG) or "")
    twice, _ = conv_layer(conv(RESIDUAL), (1, 8, 6, 6), (8, 8, 3, 3))
    twice = replace(twice, node=replace(twice.node, inputs=("x", "w", "b", "x")))
    assert "a second time" in (STEM.refuses(twice, H200, CONFIG) or "")
