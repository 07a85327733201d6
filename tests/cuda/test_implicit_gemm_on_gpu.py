"""Our convolutions and matrix products on the GPU's tensor cores: the layers of the emulation, and random shapes."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from conv_layers import RELU, RESIDUAL, conv, conv_layer, expected
from cuda_layers import bound_layer, bound_steps
from gemm_layers import GROUPED, SMALL, GemmCase, linear_layer
from tamis.compiler.config import BuildConfig
from tamis.compiler.tactics.cuda_steps import generation_of
from tamis.compiler.tactics.generations import AMPERE, HOPPER, Generation
from tamis.compiler.tactics.implicit_gemm import PRECISIONS, ImplicitGemm, shape_of
from tamis.compiler.tuner.accuracy import compare, objection
from tamis.devices.cuda.info import cuda_info
from tamis.kernels.cuda.convolution import Convolution
from tamis.kernels.cuda.implicit_gemm import FILLING_TILES, TILES, Tile, deepest
from tamis.kernels.cuda.implicit_gemm_ampere import AMPERE_TILES, AmpereTile, deepest_ampere, shared_bytes_on
from tamis.kernels.cuda.line_tiles import line_tiles
from tamis.kernels.cuda.stationary import most_steps, stationary_tiles

# At this level the kernels for all GPUs run on Hopper too.
CONFIG = BuildConfig(device="cuda", precisions=PRECISIONS, optimization_level=4)
GENERATIONS = pytest.mark.parametrize("generation", [HOPPER, AMPERE], ids=lambda generation: generation.name)
LARGE = (
    GemmCase("64@56", lambda: conv_layer(conv(RELU), (2, 64, 56, 56), (64, 64, 3, 3))),
    GemmCase("rows of 479", lambda: linear_layer(300, 479, 200, RELU)),
    GemmCase("512@7", lambda: conv_layer(conv(RESIDUAL, RELU), (8, 512, 7, 7), (512, 512, 3, 3))),
    GemmCase("1x1", lambda: conv_layer(conv(RESIDUAL, RELU, pads=0), (4, 256, 14, 14), (1024, 256, 1, 1))),
)
# ResNeXt-50's and a RegNet's, with fewer images.
GROUPS = (
    GemmCase("32 of 4@56", lambda: conv_layer(conv(RELU, groups=32), (2, 128, 56, 56), (128, 4, 3, 3))),
    GemmCase("32 of 8@56/2", lambda: conv_layer(conv(RELU, groups=32, stride=2), (2, 256, 56, 56), (256, 8, 3, 3))),
    GemmCase("32 of 32@7", lambda: conv_layer(conv(RESIDUAL, RELU, groups=32), (8, 1024, 7, 7), (1024, 32, 3, 3))),
    GemmCase("17 of 24@14", lambda: conv_layer(conv(RELU, groups=17), (4, 408, 14, 14), (408, 24, 3, 3))),
    GemmCase("2 of 256@14", lambda: conv_layer(conv(RELU, groups=2), (8, 512, 14, 14), (512, 256, 3, 3))),
    GemmCase("1x1", lambda: conv_layer(conv(RELU, pads=0, groups=4), (4, 256, 14, 14), (512, 64, 1, 1))),
)
RANDOM, RANDOM_GROUPS = 200, 100


def all_tiles(
    generation: Generation, shape: Convolution, *, sparse: bool, residual: bool
) -> Sequence[Tile | AmpereTile]:
    """Also those that would be mostly padding; for all GPUs as deep as this one allows, then as any allows."""
    if generation is HOPPER:
        options = {"sparse": sparse, "residual": residual}
        tiles = [deepest(*sizes, **options) for sizes in TILES + FILLING_TILES]
        tiles = [tile for tile in tiles if shape.groups == 1 or tile.cluster == 1]
        tiles = [tile for tile in tiles if tile.split <= shape.part(tile.filters).steps]
        return tiles + line_tiles(shape, **options) + stationary_tiles(shape, **options)
    limits = [shared_bytes_on(number) for number in (generation_of(cuda_info()), 0)]
    return list(dict.fromkeys(deepest_ampere(*s, sparse=sparse, limit=limit) for limit in limits for s in AMPERE_TILES))


def check(generation: Generation, case: GemmCase, *, sparse: bool, only: int | None = None) -> None:
    """Every tile that fits, or one of them, in every precision.

    Outputs hold NaN before, and a second run gives the same bits.
    """
    layer, arrays = case.layer()
    tactic = ImplicitGemm(generation, sparse=sparse)
    reason = tactic.refuses(layer, cuda_info(), CONFIG)
    if reason is not None:
        pytest.skip(reason)
    expected = torch.from_numpy(case.expected(layer, arrays)).cuda()
    (first, *_) = tactic.choices(layer, cuda_info(), CONFIG)
    residual = any(step.operand is not None for step in layer.op.epilogue)
    tiles = all_tiles(generation, shape_of(layer), sparse=sparse, residual=residual)
    for tile in tiles if only is None else [tiles[only % len(tiles)]]:
        for precision in PRECISIONS:
            numbers = dataclasses.asdict(tile)
            formats = {"inputs": tuple(replace(f, dtype=precision) for f in first.inputs),
                       "outputs": tuple(replace(f, dtype=precision) for f in first.outputs)}  # fmt: skip
            choice = replace(first, precision=precision, parameters={**first.parameters, **numbers}, **formats)
            runners, slots, (output,) = bound_steps(layer, choice, tactic.lower(layer, choice), arrays, "cuda")
            results = []
            for _ in range(2):
                output.fill_(float("nan"))
                for run in runners:
                    run(slots)
                torch.cuda.synchronize()
                results.append(output.clone())
            assert torch.equal(results[0], results[1]), choice
            assert objection(compare(results[0], expected), precision, cosine=0.9999, relative=1e-5) is None, choice


@GENERATIONS
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "2:4"])
@pytest.mark.parametrize("case", SMALL + GROUPED + LARGE + GROUPS, ids=lambda case: case.name)
def test_layers(case: GemmCase, sparse: bool, generation: Generation) -> None:
    check(generation, case, sparse=sparse)


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "2:4"])
@pytest.mark.parametrize("size", [7, 56])
@pytest.mark.parametrize("steps", range(1, 19))
def test_weights_that_stay_in_registers(steps: int, size: int, sparse: bool) -> None:
    """Every number of steps that a tile may hold, and all tiles that do."""
    taps = 3 if steps % 9 == 0 else 1
    channels = 64 * steps // taps**2
    op = conv(RESIDUAL, RELU, pads=taps // 2)
    case = GemmCase("held", lambda: conv_layer(op, (3, channels, size, size), (200, channels, taps, taps)))
    layer, _ = case.layer()
    held = stationary_tiles(shape_of(layer), sparse=sparse, residual=True)
    assert all(steps <= most_steps(tile, sparse=sparse) for tile in held)
    tiles = all_tiles(HOPPER, shape_of(layer), sparse=sparse, residual=True)
    for place, tile in enumerate(tiles):
        if tile in held:
            check(HOPPER, case, sparse=sparse, only=place)


def random_case(seed: int) -> GemmCase:
    """A convolution of odd extents."""
    draw = random.Random(seed)
    kernel = draw.choice(((1, 1), (3, 3), (3, 3), (5, 5), (1, 3), (2, 2)))
    dilation, stride = draw.choice((1, 1, 2)), draw.choice((1, 1, 2, 3))
    reach = [(size - 1) * dilation + 1 for size in kernel]
    size = [draw.randint(span, span + draw.choice((0, 5, 40))) for span in reach]
    pads = tuple(draw.randint(0, 2) for _ in range(4))
    image = (draw.randint(1, 5), 8 * draw.choice((1, 2, 3, 5, 8, 9, 16, 33)), *size)
    weight = (draw.choice((1, 7, 8, 40, 64, 100, 128, 200, 257, 512)), image[1], *kernel)
    epilogue = draw.choice(((), (RELU,), (RESIDUAL, RELU), (RELU, RESIDUAL)))
    op = conv(*epilogue, stride=stride, pads=pads, dilation=dilation, bias=draw.random() < 0.7)
    return GemmCase(f"random {seed}", lambda: conv_layer(op, image, weight))


@GENERATIONS
@pytest.mark.parametrize("seed", range(RANDOM))
def test_random_shapes(seed: int, generation: Generation) -> None:
    check(generation, random_case(seed), sparse=seed % 4 > 0, only=seed)


def random_groups(seed: int) -> GemmCase:
    """A grouped convolution of odd extents, whose groups may be larger and smaller than tiles and steps."""
    draw = random.Random(seed)
    kernel = draw.choice(((1, 1), (3, 3), (3, 3), (1, 3), (2, 2), (7, 7)))
    dilation, stride = draw.choice((1, 1, 2)), draw.choice((1, 1, 2))
    groups, depth = draw.choice(((2, 4), (32, 4), (4, 8), (3, 16), (17, 24), (2, 40), (8, 64), (9, 8), (2, 136)))
    filters = groups * draw.choice((1, 4, 8, 12, depth, depth, 2 * depth, 72))
    size = [(side - 1) * dilation + 1 + draw.choice((0, 5, 30)) for side in kernel]
    pads = tuple(draw.randint(0, 3) for _ in range(4))
    epilogue = draw.choice(((), (RELU,), (RESIDUAL, RELU)))
    op = conv(*epilogue, stride=stride, pads=pads, dilation=dilation, groups=groups, bias=draw.random() < 0.7)
    image = (draw.randint(1, 5), groups * depth, *size)
    return GemmCase(f"random groups {seed}", lambda: conv_layer(op, image, (filters, depth, *kernel)))


@GENERATIONS
@pytest.mark.parametrize("seed", range(RANDOM_GROUPS))
def test_random_groups(seed: int, generation: Generation) -> None:
    check(generation, random_groups(seed), sparse=seed % 2 > 0, only=seed)


@GENERATIONS
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("groups", [(2, 72, 136), (17, 24, 24), (32, 4, 4)], ids=str)
def test_no_channel_outside_of_a_bundle_is_seen(
    groups: tuple[int, int, int], kernel: int, generation: Generation
) -> None:
    """The last half of the groups have infinite channels: bundles without any of these give what they would."""
    count, channels, filters = groups
    op, weight = conv(groups=count, pads=kernel // 2), (count * filters, channels, kernel, kernel)
    layer, arrays = conv_layer(op, (2, count * channels, 14, 14), weight)
    first = count // 2
    arrays["x"][:, first * channels :] = 0.0
    wanted = torch.from_numpy(expected(layer, arrays)).cuda()
    arrays["x"][:, first * channels :] = np.inf
    tactic = ImplicitGemm(generation, sparse=False)
    reason = tactic.refuses(layer, cuda_info(), CONFIG)
    if reason is not None:
        pytest.skip(reason)
    for choice in tactic.choices(layer, cuda_info(), replace(CONFIG, optimization_level=5)):
        bundles = shape_of(layer).bundles(generation.tile(choice.parameters).filters)
        seen = [b for b in range(bundles.count) if bundles.first_group(b) + bundles.merged <= first]
        clean = min(len(seen) * bundles.merged, first) * filters
        given = [arrays[name] for name in layer.node.inputs]
        run, slots, (output,) = bound_layer(layer, choice, tactic.lower(layer, choice), given, "cuda")
        run(slots)
        found = compare(output[:, :clean].contiguous(), wanted[:, :clean].contiguous())
        assert clean and objection(found, choice.precision, cosine=0.9999, relative=1e-5) is None, choice
        assert not torch.isfinite(output[:, first * filters :]).any(), choice


@pytest.mark.parametrize("seed", range(RANDOM))
def test_random_shapes_with_weights_in_registers(seed: int) -> None:
    case, sparse = random_case(seed), seed % 4 > 0
    layer, _ = case.layer()
    residual = any(step.operand is not None for step in layer.op.epilogue)
    tiles = all_tiles(HOPPER, shape_of(layer), sparse=sparse, residual=residual)
    held = [place for place, tile in enumerate(tiles) if isinstance(tile, Tile) and tile.stationary]
    if not held:
        pytest.skip("the sum is too long")
    check(HOPPER, case, sparse=sparse, only=held[seed % len(held)])


@GENERATIONS
def test_the_profiler_sees_a_sparse_kernel(generation: Generation) -> None:
    layer, arrays = LARGE[-1].layer()
    tactic = ImplicitGemm(generation, sparse=True)
    reason = tactic.refuses(layer, cuda_info(), CONFIG)
    if reason is not None:
        pytest.skip(reason)
    (choice, *_) = tactic.choices(layer, cuda_info(), CONFIG)
    given = [arrays[name] for name in layer.node.inputs]
    run, slots, _ = bound_layer(layer, choice, tactic.lower(layer, choice), given, "cuda")
    run(slots)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
        run(slots)
        torch.cuda.synchronize()
    assert any("sparse" in event.name for event in seen.events())
    assert np.isfinite(slots[-1].float().cpu().numpy()).all()
