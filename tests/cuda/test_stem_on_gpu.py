"""Convolutions of images with few channels on the GPU's tensor cores: every tile that is offered, from every source.

And with the max pooling behind them in the same kernel, where plain convolutions are, too.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from conv_layers import RELU, RESIDUAL, SILU, conv, conv_layer
from cuda_layers import bound_steps
from small_models import two_of_four
from stem_layers import SMALL, StemCase, max_pool, pooled_graph
from tamis.compiler.config import BuildConfig
from tamis.compiler.ir.ops import Pool
from tamis.compiler.tactics.base import Layer, layer_of
from tamis.compiler.tactics.implicit_gemm import PRECISIONS, ImplicitGemm
from tamis.compiler.tactics.pooled import HopperPooled, pooled_layer
from tamis.compiler.tactics.stem import HopperStem
from tamis.compiler.tuner.accuracy import compare, objection
from tamis.devices.base import Runner
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


def run_poisoned(runners: list[Runner], slots: list[torch.Tensor], layer: Layer) -> None:
    """Runs on results that hold NaN before."""
    for made in slots[len(layer.values) :]:
        made.fill_(float("nan"))
    for run in runners:
        run(slots)
    torch.cuda.synchronize()


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
            run_poisoned(runners, slots, layer)
            results.append(output.clone())
        assert torch.equal(results[0], results[1]), choice
        assert objection(compare(results[0], expected), choice.precision, cosine=0.9999, relative=1e-5) is None, choice


POOLS = {
    "3x3 with padding": max_pool(3, 1), "3x3 up": max_pool(3, ceil=True), "2x2": max_pool(2),
    "3x3 one-sided": max_pool(3, (1, 0, 0, 1)),
}  # fmt: skip


def check_pooled(layer: Layer, arrays: dict[str, np.ndarray], pool: Pool) -> None:
    """Every choice gives exactly what pooling gives behind our own convolution, twice, whatever lay there before."""
    tactic, device, config = HopperPooled(), cuda_info(), replace(CONFIG, optimization_level=5)
    graph = pooled_graph(layer, pool)
    reasons = [tactic.refuses(graph, node, device, config) for node in graph.nodes]
    if any(reasons):
        pytest.skip("; ".join(reason for reason in reasons if reason))
    (region,) = tactic.regions(graph, frozenset(node.name for node in graph.nodes))
    conv, pooling = (layer_of(graph, node) for node in graph.nodes)
    both = pooled_layer(conv, pooling)
    found = tactic.choices(graph, region, device, config)
    assert {choice.precision for choice in found} == set(PRECISIONS)
    assert ("2:4" in {choice.sparsity for choice in found}) == conv.eligible
    stem = HopperStem()
    with ThreadPoolExecutor() as pool_of_threads:  # each compiles a kernel
        lowered = list(pool_of_threads.map(lambda choice: tactic.lower(graph, region, choice), found))
    for choice, made_steps in zip(found, lowered, strict=True):
        alone = stem if stem.refuses(conv, device, config) is None else ImplicitGemm(sparse=choice.sparsity == "2:4")
        same = (choice.precision, choice.inputs)
        fitting = [c for c in alone.choices(conv, device, config) if (c.precision, c.inputs) == same]
        # Tiles of whole lines add up in the same order, runs of channels before taps.
        before = min(fitting, key=lambda c: c.parameters["lines"] == 0 or c.parameters["stationary"])
        runners, slots, (convolved,) = bound_steps(conv, before, alone.lower(conv, before), arrays, "cuda")
        for run in runners:
            run(slots)
        padded = functional.pad(convolved, (*pool.pads[1::2], *pool.pads[::2]), value=float("-inf"))
        expected = functional.max_pool2d(padded.float(), pool.kernel, pool.strides, ceil_mode=pool.ceil)
        runners, slots, (output,) = bound_steps(both, choice, made_steps, arrays, "cuda")
        for _ in range(2):
            run_poisoned(runners, slots, conv)
            assert torch.equal(output.float(), expected), choice


STEMS = [*SMALL[:3], SMALL[5], *LARGE[:2], LARGE[3], LARGE[4]]
PAIRS = [(case, "3x3 with padding") for case in STEMS] + [
    (LARGE[3], name) for name in POOLS if name != "3x3 with padding"
]


@pytest.mark.parametrize(("case", "name"), PAIRS, ids=lambda each: getattr(each, "name", each))
def test_pooling_behind_first_layers(case: StemCase, name: str) -> None:
    check_pooled(*case.make(), POOLS[name])


@pytest.mark.parametrize("seed", range(8))
def test_pooling_behind_first_layers_of_any_size(seed: int) -> None:
    """Many images, so that runs of tiles begin within them and blocks have many, or few, so that some have none."""
    random = np.random.default_rng(seed)
    batch, taps = int(random.choice([1, 2, 7, 61])), int(random.choice([3, 5, 7]))
    high, wide = (int(random.integers(24, 250)) for _ in range(2))
    filters = 8 * int(random.integers(1, 13))
    layer, arrays = conv_layer(conv(RELU, stride=2, pads=taps // 2), (batch, 3, high, wide), (filters, 3, taps, taps))
    check_pooled(layer, arrays, POOLS[str(random.choice(list(POOLS)))])


@pytest.mark.parametrize("name", ["3x3 with padding", "2x2"])
@pytest.mark.parametrize("image", [(3, 64, 28, 30), (2, 128, 56, 56), (2, 72, 14, 100)], ids=str)
def test_pooling_behind_plain_convolutions(image: tuple[int, ...], name: str) -> None:
    """Dense and in 2:4."""
    layer, arrays = conv_layer(conv(SILU), image, (136, image[1], 3, 3))
    arrays["w"] = two_of_four(arrays["w"], 1)
    check_pooled(replace(layer, constants={**layer.constants, "w": arrays["w"]}), arrays, POOLS[name])
