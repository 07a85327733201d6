"""Convolutions of images with few channels on the GPU's tensor cores: every tile that is offered, from every source."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from conv_layers import RELU, RESIDUAL, SILU, conv, conv_layer
from cuda_layers import bound_steps
from stem_layers import SMALL, StemCase
from tamis.compiler.config import BuildConfig
from tamis.compiler.tactics.implicit_gemm import PRECISIONS
from tamis.compiler.tactics.stem import HopperStem
from tamis.compiler.tuner.accuracy import compare, objection
from tamis.devices.cuda.info import cuda_info

CONFIG = BuildConfig(device="cuda", precisions=PRECISIONS)
LARGE = (
    StemCase("resnet", lambda: conv_layer(conv(RELU, stride=2, pads=3), (2, 3, 224, 224), (64, 3, 7, 7))),
    StemCase("mobilenet", lambda: conv_layer(conv(SILU, stride=2), (2, 3, 224, 224), (32, 3, 3, 3))),
    StemCase("detector", lambda: conv_layer(conv(SILU, stride=2, pads=2), (1, 3, 640, 640), (48, 3, 6, 6))),
    StemCase("odd sizes", lambda: conv_layer(conv(RELU, stride=2, pads=3), (3, 3, 191, 213), (64, 3, 7, 7))),
    StemCase("odd sizes of 3x3", lambda: conv_layer(conv(RELU, stride=2), (3, 3, 225, 117), (40, 3, 3, 3))),
    StemCase("vgg", lambda: conv_layer(conv(RELU), (2, 3, 224, 224), (64, 3, 3, 3))),
    StemCase("7x7 of stride 1", lambda: conv_layer(conv(RELU, pads=3), (2, 3, 96, 100), (128, 3, 7, 7))),
    StemCase("grey", lambda: conv_layer(conv(RELU, pads=2), (4, 1, 28, 28), (32, 1, 5, 5))),
    StemCase("residual", lambda: conv_layer(conv(RESIDUAL, RELU, stride=2), (2, 4, 64, 64), (64, 4, 3, 3))),
    StemCase("vision transformer", lambda: conv_layer(conv(stride=16, pads=0), (2, 3, 224, 224), (768, 3, 16, 16))),
)  # fmt: skip


def reference(layer, arrays) -> torch.Tensor:
    """In float32 by PyTorch, without TF32."""
    op = layer.op
    names = layer.node.inputs
    top, left, bottom, right = op.pads
    values = {name: torch.from_numpy(array).cuda() for name, array in arrays.items()}
    image = functional.pad(values[names[0]], (left, right, top, bottom))
    with torch.backends.cudnn.flags(allow_tf32=False):
        result = functional.conv2d(image, values[names[1]], values[names[2]] if op.bias else None, op.strides)
    for step in op.epilogue:
        if step.operand is not None:
            result = result + values[names[step.operand]]
        else:
            result = {"relu": functional.relu, "silu": functional.silu}[step.kind](result)
    return result


@pytest.mark.parametrize("case", SMALL + LARGE, ids=lambda case: case.name)
def test_first_layers(case: StemCase) -> None:
    """Every value holds NaN before, and a second run gives the same bits."""
    layer, arrays = case.make()
    tactic = HopperStem()
    reason = tactic.refuses(layer, cuda_info(), CONFIG)
    if reason is not None:
        pytest.skip(reason)
    expected = reference(layer, arrays)
    found = list(tactic.choices(layer, cuda_info(), CONFIG))
    assert {choice.precision for choice in found} == set(PRECISIONS)
    for choice in found:
        runners, slots, (output,) = bound_steps(layer, choice, tactic.lower(layer, choice), arrays, "cuda")
        results = []
        for _ in range(2):
            for made in slots[len(layer.values) :]:
                made.fill_(float("nan"))
            for run in runners:
                run(slots)
            torch.cuda.synchronize()
            results.append(output.clone())
        assert torch.equal(results[0], results[1]), choice
        assert objection(compare(results[0], expected), choice.precision, cosine=0.9999, relative=1e-5) is None, choice
