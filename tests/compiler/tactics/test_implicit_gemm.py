"""What our kernels for tensor cores offer and refuse, and why."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from conv_layers import RELU, RESIDUAL, conv, conv_layer
from gemm_layers import GROUPED, SMALL, GemmCase
from matrix_layers import H200, layer_and_arrays, linear
from tamis.compiler.config import BuildConfig
from tamis.compiler.ir.ops import Pointwise
from tamis.compiler.tactics import implicit_gemm, tactics_of
from tamis.compiler.tactics.generations import AMPERE, HOPPER, Generation
from tamis.compiler.tactics.implicit_gemm import ImplicitGemm, shape_of
from tamis.formats.dtype import DType
from tamis.formats.steps import rows_bytes
from tamis.kernels.cuda.implicit_gemm import TILES, Convolution, Tile
from tamis.kernels.cuda.implicit_gemm_ampere import AMPERE_TILES

CONFIG = BuildConfig(device="cuda", precisions=(DType.FLOAT32, DType.FLOAT16))
EVERYTHING = replace(CONFIG, optimization_level=4)
DENSE, SPARSE = ImplicitGemm(sparse=False), ImplicitGemm(sparse=True)
OLDER_DENSE, OLDER_SPARSE = ImplicitGemm(AMPERE, sparse=False), ImplicitGemm(AMPERE, sparse=True)
A100 = replace(H200, name="NVIDIA A100", architecture="sm_80", cores=108)
GENERATIONS = pytest.mark.parametrize("generation", [HOPPER, AMPERE], ids=lambda generation: generation.name)


@pytest.fixture(autouse=True)
def with_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(implicit_gemm, "compiles_for", lambda device: True)


def tiles_for(shape: Convolution, cores: int, *, sparse: bool) -> list[Tile]:
    """Of those that read their weights at every step."""
    tiles = HOPPER.tiles(shape, replace(H200, cores=cores), sparse=sparse)
    return [tile for tile in tiles if not tile.stationary]


def test_all_of_them_race() -> None:
    names = [tactic.name for tactic in tactics_of("cuda") if isinstance(tactic, ImplicitGemm)]
    assert names == ["tamis.hopper", "tamis.hopper.sparse", "tamis.ampere", "tamis.ampere.sparse"]


@GENERATIONS
def test_dense_and_sparse_offer_the_same_tiles(generation: Generation) -> None:
    layer, _ = next(case for case in SMALL if case.name == "3x3").layer()
    for sparse, sparsity in ((False, "dense"), (True, "2:4")):
        tactic = ImplicitGemm(generation, sparse=sparse)
        assert tactic.name == generation.name + (".sparse" if sparse else "")
        choices = list(tactic.choices(layer, H200, CONFIG))
        assert {(choice.precision, choice.sparsity, choice.tactic) for choice in choices} == {
            (DType.FLOAT16, sparsity, tactic.name)
        }
        assert all(str(format) == "float16 channels_last" for choice in choices for format in choice.inputs)
        assert len({choice.key() for choice in choices}) == len(choices)


def test_tiles_that_are_mostly_padding_are_left_out() -> None:
    def told(tiles: list[Tile]) -> list[tuple[int, int]]:
        return [(tile.filters, tile.pixels) for tile in tiles if (tile.cluster, tile.split, tile.resident) == (1, 1, 1)]

    assert told(tiles_for(Convolution(1, 7, 7, 512, 512), 132, sparse=True)) == [(64, 64), (128, 64), (256, 64)]
    assert told(tiles_for(Convolution(1, 1, 4096, 64, 64), 132, sparse=True)) == [(64, 64), (64, 128)]
    whole = [sizes for sizes in TILES if sizes[4] == 1]
    assert len(tiles_for(Convolution(128, 14, 14, 256, 512), 132, sparse=True)) == len(whole)
    alone = tiles_for(Convolution(128, 14, 14, 256, 128), 132, sparse=True)
    assert all(tile.cluster == 1 for tile in alone), "the second block of a pair would have nothing to do"
    assert told(tiles_for(Convolution(1, 1, 1, 64, 8), 132, sparse=False)) == [(64, 64)], "the smallest is always there"


def test_levels_say_how_many_tiles_race() -> None:
    layer, _ = conv_layer(conv(RELU), (8, 128, 28, 28), (128, 128, 3, 3))
    offered = []
    for level in range(6):
        config = replace(CONFIG, optimization_level=level)
        offered.append(len(list(DENSE.choices(layer, H200, config))))
        words = DENSE.left_out(layer, H200, config) or ""
        assert ("more tiles are left out" in words) == (level < 5)
        assert "weights of 18 steps do not stay in registers; those of 10 would" in words
    assert offered == sorted(offered)
    assert offered[:4] == [1, 2, 3, 4]
    words = DENSE.left_out(layer, H200, CONFIG)
    assert words is not None and words.startswith(f"{offered[5] - 4} more tiles are left out")


def test_weights_that_stay_in_registers_race_first() -> None:
    layer, _ = conv_layer(conv(RELU), (128, 64, 56, 56), (64, 64, 3, 3))
    for tactic in (DENSE, SPARSE):
        offered = []
        for level in range(6):
            config = replace(CONFIG, optimization_level=level)
            tiles = [HOPPER.tile(choice.parameters) for choice in tactic.choices(layer, H200, config)]
            held = [tile for tile in tiles if tile.stationary]
            offered.append(len(held))
            assert [tile.stationary for tile in tiles[:2]] == [True, False][: len(tiles)]
            if level < 3:
                assert len(tiles) == level + 1
                assert "more tiles are left out" in str(tactic.left_out(layer, H200, config))
            else:
                assert len(tiles) - len(held) >= 4, "they take no other tile's place"
            assert all(tile.filters == 64 for tile in held), "half of the others would be idle"
        assert offered[:2] == [1, 1]
        assert offered[2] <= offered[3] <= 2 <= offered[4] <= 4
        assert offered[5] >= offered[4]
        assert tactic.left_out(layer, H200, replace(CONFIG, optimization_level=5)) is None
        names = {tactic._kernel(layer, choice).function for choice in tactic.choices(layer, H200, CONFIG)}
        form = "sparse" if tactic.sparse else "dense"
        assert names == {f"tamis_{form}_implicit_gemm", f"tamis_{form}_implicit_gemm_stationary"}


@pytest.mark.parametrize("rows", [1, 16, 32])
@pytest.mark.parametrize("sparse", [False, True])
def test_few_rows_are_divided_where_much_would_be_idle(rows: int, sparse: bool) -> None:
    """Tiles are half empty then, but there are no smaller ones."""
    tiles = HOPPER.tiles(Convolution(1, 1, rows, 2048, 64), H200, sparse=sparse)
    assert {(tile.filters, tile.pixels) for tile in tiles} == {(64, 64)}
    assert {tile.split for tile in tiles} == {1, 2, 4, 8}
    assert HOPPER.tiles(Convolution(1, 1, rows, 2048, 64), H200, sparse=sparse, level=0)[0].split == 8
    assert {tile.split for tile in HOPPER.tiles(Convolution(1, 1, rows, 2048, 16384), H200, sparse=sparse)} == {1}


def test_tiles_for_older_gpus() -> None:
    def told(shape: Convolution) -> list[tuple[int, int]]:
        return [(tile.filters, tile.pixels) for tile in AMPERE.tiles(shape, A100, sparse=True)]

    assert told(Convolution(1, 1, 1, 64, 8)) == [(64, 32)], "the smallest is always there"
    assert told(Convolution(1, 1, 4096, 64, 64)) == [(64, 32), (64, 64), (64, 128)]
    assert len(told(Convolution(128, 14, 14, 256, 512))) == len(AMPERE_TILES)


@pytest.mark.parametrize(
    ("architecture", "kibibytes"),
    [("sm_80", 163), ("sm_86", 99), ("sm_87", 163), ("sm_89", 99), ("sm_90", 227), ("sm_100", 227), ("sm_120", 99)],
)
def test_tiles_are_as_deep_as_shared_memory_allows(architecture: str, kibibytes: int) -> None:
    device, shape = replace(H200, architecture=architecture), Convolution(128, 14, 14, 256, 512)
    for sparse in (False, True):
        for tile in AMPERE.tiles(shape, device, sparse=sparse):
            assert tile.shared_bytes(sparse=sparse) <= kibibytes * 1024
            assert (
                tile.stages == 4 or replace(tile, stages=tile.stages + 1).shared_bytes(sparse=sparse) > kibibytes * 1024
            )


def test_steps_are_divided_where_the_gpu_would_be_idle() -> None:
    def splits(shape: Convolution) -> set[int]:
        return {tile.split for tile in tiles_for(shape, 132, sparse=True)}

    assert splits(Convolution(1, 7, 7, 512, 512, (3, 3), pads=(1, 1, 1, 1))) == {1, 2, 4, 8}
    assert splits(Convolution(1, 7, 7, 256, 512)) == {1, 2}, "four steps: two for each of two blocks"
    assert splits(Convolution(128, 7, 7, 512, 512, (3, 3), pads=(1, 1, 1, 1))) == {1}


REFUSALS = (
    (DENSE, conv(RELU, groups=64), (1, 64, 5, 5), (64, 1, 3, 3), {}, "a depthwise convolution"),
    (OLDER_DENSE, conv(groups=64), (1, 64, 5, 5), (128, 1, 3, 3), {"architecture": "sm_80"}, "a depthwise convolution"),
    (DENSE, conv(groups=9), (1, 36, 5, 5), (36, 4, 3, 3), {}, "36 channels are not a multiple of 8"),
    (DENSE, conv(groups=2, dilation=20), (1, 64, 50, 50), (64, 32, 3, 3), {}, "larger than the copy engine"),
    (DENSE, conv(dilation=100, pads=0), (1, 64, 300, 300), (64, 64, 3, 3), {}, "larger than the copy engine"),
    (SPARSE, conv(groups=2), (1, 64, 5, 5), (64, 32, 3, 3), {}, "not 2:4"),
    (DENSE, conv(), (1, 3, 8, 8), (64, 3, 7, 7), {}, "3 channels are not a multiple of 8"),
    (DENSE, conv(dilation=200), (1, 64, 500, 500), (64, 64, 3, 3), {}, "larger than the copy engine"),
    (SPARSE, conv(), (1, 64, 5, 5), (64, 64, 3, 3), {}, "not 2:4"),
    (DENSE, conv(), (1, 64, 5, 5), (64, 64, 3, 3), {"architecture": "sm_80"}, "Hopper.*sm_80"),
    (DENSE, conv(), (1, 64, 5, 5), (64, 64, 3, 3), {"kind": "cpu"}, "CUDA"),
    (OLDER_DENSE, conv(), (1, 64, 5, 5), (64, 64, 3, 3), {"architecture": "sm_75"}, "Ampere or newer.*sm_75"),
    (OLDER_SPARSE, conv(), (1, 64, 5, 5), (64, 64, 3, 3), {"architecture": "sm_80"}, "not 2:4"),
    (OLDER_DENSE, conv(), (1, 64, 5, 5), (64, 64, 3, 3), {}, "for Hopper are raced instead; level 4 races these too"),
    (OLDER_DENSE, conv(), (1, 8, 32766, 3), (8, 8, 3, 3), {"architecture": "sm_80"}, "32767 pixels a side"),
)


@pytest.mark.parametrize(("tactic", "op", "image", "weight", "changes", "reason"), REFUSALS)
def test_refusals(tactic, op, image, weight, changes, reason) -> None:
    layer, _ = conv_layer(op, image, weight)
    said = tactic.refuses(layer, replace(H200, **changes), CONFIG)
    assert said is not None
    assert re.search(reason, said), said


@pytest.mark.parametrize("architecture", ["sm_80", "sm_86", "sm_87", "sm_89", "sm_100", "sm_103", "sm_120"])
def test_kernels_are_compiled_for_the_gpu_at_hand(architecture: str) -> None:
    layer, device = SMALL[0].layer()[0], replace(H200, architecture=architecture)
    for tactic in (OLDER_DENSE, OLDER_SPARSE):
        assert tactic.refuses(layer, device, CONFIG) is None
        assert {choice.parameters["architecture"] for choice in tactic.choices(layer, device, CONFIG)} == {architecture}
    assert DENSE.refuses(layer, device, CONFIG) is not None


def test_what_races_on_hopper() -> None:
    """Its own kernels; the others at high levels, and for what the copy engine cannot do."""
    layer, _ = SMALL[0].layer()
    assert OLDER_SPARSE.refuses(layer, H200, CONFIG) is not None
    assert OLDER_SPARSE.refuses(layer, H200, EVERYTHING) is None
    assert SPARSE.refuses(layer, H200, EVERYTHING) is None
    wide, _ = conv_layer(conv(dilation=200), (1, 64, 500, 500), (64, 64, 3, 3))
    assert DENSE.refuses(wide, H200, CONFIG) is not None
    assert OLDER_DENSE.refuses(wide, H200, CONFIG) is None


@GENERATIONS
@pytest.mark.parametrize("case", GROUPED, ids=lambda case: case.name)
def test_groups_are_taken_dense_and_sparse(generation: Generation, case: GemmCase, monkeypatch) -> None:
    """Each tile with the weights of its own bundles, in whole tiles."""
    monkeypatch.setattr("tamis.compiler.tactics.cuda_steps.compile_source", lambda *a: b"cubin")
    layer, _ = case.layer()
    shape = shape_of(layer)
    for sparse in (False, True):
        tactic = ImplicitGemm(generation, sparse=sparse)
        assert tactic.refuses(layer, H200, EVERYTHING) is None
        for choice in tactic.choices(layer, H200, EVERYTHING):
            tile = generation.tile(choice.parameters)
            assert getattr(tile, "cluster", 1) == 1, "the tiles of a pair share their pixels' channels"
            (step, packed) = tactic.lower(layer, choice).steps[0], tactic.lower(layer, choice).constants
            tiles, steps, size = packed[f"{layer.name}.weight"].shape
            part, count = shape.part(tile.filters), shape.bundles(tile.filters).count
            assert (tiles, steps) == (count * -(-part.filters // tile.filters), part.steps)
            assert size == rows_bytes(tile.filters, sparse=sparse)
            assert step.flops == 2 * shape.pixels * layer.type(1).elements, "zeros between groups are no work"


def test_small_groups_race_in_small_tiles() -> None:
    """Larger ones would multiply more zeros between groups, or have rows for no filter."""

    def filters(groups: int, level: int) -> set[int]:
        shape = Convolution(32, 28, 28, 512, 512, (3, 3), pads=(1, 1, 1, 1), groups=groups)
        return {tile.filters for tile in HOPPER.tiles(shape, H200, sparse=False, level=level)}

    assert filters(64, 5) == filters(8, 5) == {64}
    assert filters(4, 5) == {64, 128}
    assert filters(2, 5) == {64, 128, 256}
    assert filters(2, 0) == {256}, "by the model"


def test_refusals_of_configurations() -> None:
    layer, _ = SMALL[0].layer()
    assert "16-bit" in (DENSE.refuses(layer, H200, BuildConfig(device="cuda", precisions=(DType.TF32,))) or "")
    assert SPARSE.refuses(layer, H200, replace(CONFIG, sparsity="off")) == "sparsity is off"
    assert DENSE.refuses(layer, H200, replace(CONFIG, sparsity="off")) is None


@GENERATIONS
def test_what_a_kernel_cannot_fuse_follows(generation: Generation, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second residual and what comes behind it."""
    monkeypatch.setattr("tamis.compiler.tactics.cuda_steps.compile_source", lambda *a: b"cubin")
    layer, _ = conv_layer(conv(RESIDUAL, RELU, RESIDUAL, RELU), (1, 64, 5, 5), (64, 64, 3, 3))
    tactic = ImplicitGemm(generation, sparse=False)
    (choice, *_) = tactic.choices(layer, H200, CONFIG)
    first, second = tactic.lower(layer, choice).steps
    assert len(first.inputs) == 2 and first.outputs == (f"{layer.node.output}/before_epilogue",)
    assert second.kernel == "cuda.pointwise" and second.outputs == (layer.node.output,)


def test_a_scale_by_a_number_is_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    sources = []
    monkeypatch.setattr("tamis.compiler.tactics.cuda_steps.compile_source", lambda *a: sources.append(a) or b"cubin")
    layer, _ = layer_and_arrays(linear(Pointwise("mul", operand=3), Pointwise("relu")), (64, 64), (64, 64))
    number = np.full((1,), 0.5, np.float32)
    name = layer.node.inputs[3]
    layer = replace(layer, constants={**layer.constants, name: number})
    (choice, *_) = DENSE.choices(layer, H200, CONFIG)
    (step,) = DENSE.lower(layer, choice).steps
    assert step.inputs == ("x",)
    assert sources[0][1]["PROGRAM"] == "STEP(mul, value, 0x1.0000000000000p-1f) STEP(relu, value)"
