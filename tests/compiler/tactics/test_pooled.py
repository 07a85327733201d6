"""Pairs of a convolution and a max pooling: which become regions, what is offered, and how a build tells of them."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from conv_layers import RELU, RESIDUAL, conv, conv_layer
from matrix_layers import H200
from paper_gpu import PaperGpu, make_up_measurements
from small_models import two_of_four
from stem_layers import max_pool, pooled_graph
from tamis.compiler import build
from tamis.compiler.config import BuildConfig
from tamis.compiler.ir.graph import Graph, TensorType
from tamis.compiler.ir.ops import Pool
from tamis.compiler.tactics import implicit_gemm, tactics_of
from tamis.compiler.tactics.base import Choice
from tamis.compiler.tactics.pooled import HopperPooled
from tamis.compiler.tactics.region import Region
from tamis.engine.check import check_plan
from tamis.formats.dtype import DType
from tamis.kernels.cuda.specification import MOST_ELEMENTS

CONFIG = BuildConfig(device="cuda", precisions=(DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16))
HALF = replace(CONFIG, precisions=(DType.FLOAT16,))
TACTIC = HopperPooled()
POOL = max_pool(3, 1)


@pytest.fixture(autouse=True)
def without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(implicit_gemm, "compiles_for", lambda device: True)
    monkeypatch.setattr("tamis.compiler.tactics.cuda_steps.compile_source", lambda *a: str(a).encode())


def resnet(batch: int = 128) -> Graph:
    """The first two layers of a ResNet, with values of one image."""
    layer, _ = conv_layer(conv(RELU, stride=2, pads=3), (1, 3, 224, 224), (64, 3, 7, 7))
    graph = pooled_graph(layer, POOL)
    types = {
        name: TensorType((batch, *type_.shape[1:])) if len(type_.shape) == 4 and name != "w" else type_
        for name, type_ in graph.types.items()
    }
    return replace(graph, types=types)


def vgg(sparse: bool = True) -> Graph:
    layer, arrays = conv_layer(conv(RELU), (1, 64, 28, 28), (64, 64, 3, 3))
    weight = two_of_four(arrays["w"], 1) if sparse else arrays["w"]
    return pooled_graph(replace(layer, constants={**layer.constants, "w": weight}), max_pool(2))


def regions(graph: Graph) -> tuple[Region, ...]:
    able = frozenset(n.name for n in graph.nodes if TACTIC.refuses(graph, n, H200, CONFIG) is None)
    return TACTIC.regions(graph, able)


def choices(graph: Graph, config: BuildConfig = HALF) -> tuple[Choice, ...]:
    (region,) = regions(graph)
    return TACTIC.choices(graph, region, H200, config)


def test_the_stem_of_a_resnet() -> None:
    """Two lines a tile, two runs of them a multiprocessor, all weights in shared memory: two blocks fit exactly."""
    graph = resnet()
    found = choices(graph)
    assert {str(choice.inputs[0]) for choice in found} == {"float32", "float16", "float16 channels_last"}
    told = [[c.parameters[name] for name in ("pixels", "lines", "line", "groups", "resident")] for c in found[:2]]
    assert told == [[112, 2, 112, 2, 1], [112, 2, 112, 1, 2]], "warpgroups by turns, and two blocks"
    assert [c.parameters["by_turns"] for c in found[:3]] == [True, False, False]
    assert [c.parameters["sliding"] for c in found[:4]] == [True, True, True, False]
    assert all(c.parameters["weights_stay"] for c in found)
    (region,) = regions(graph)
    blocks, by_turns = TACTIC.lower(graph, region, found[0]).steps
    assert by_turns.attributes["grid"] == [132, 1, 1] and by_turns.attributes["shared_bytes"] <= 232448
    blocks, product = TACTIC.lower(graph, region, found[1]).steps
    assert (blocks.kernel, product.kernel) == ("cuda.space_to_depth", "cuda.implicit_gemm_hopper")
    assert (product.name, product.layers) == ("layer .. pool", ("layer", "pool"))
    assert (product.inputs, product.outputs) == (blocks.outputs, ("z",))
    # Once the image, the weights and what is left: nothing of what lies between.
    image, result = 128 * 3 * 224 * 224 * 4, 128 * 56 * 56 * 64 * 2
    assert product.moved_bytes == image + result + 2 * (64 * 3 * 49 + 64)
    assert product.flops == 2 * 128 * 112 * 112 * 64 * 147 + 128 * 56 * 56 * 64
    assert product.attributes["function"] == "tamis_dense_implicit_gemm_pooled"
    assert product.attributes["grid"] == [264, 1, 1]
    assert product.attributes["shared_bytes"] <= 115712


def test_two_of_four_of_a_vgg() -> None:
    graph = vgg()
    found = choices(graph)
    assert {choice.sparsity for choice in found} == {"dense", "2:4"}
    sparse = next(choice for choice in found if choice.sparsity == "2:4")
    assert sparse.parameters["sparsity_by_layer"] == {"layer": "2:4"}, "the pooling has no weight"
    (region,) = regions(graph)
    (step,) = TACTIC.lower(graph, region, sparse).steps
    assert (step.sparsity, step.attributes["function"]) == ("2:4", "tamis_sparse_implicit_gemm_pooled")
    assert {choice.sparsity for choice in choices(vgg(sparse=False))} == {"dense"}
    assert {choice.sparsity for choice in choices(graph, replace(HALF, sparsity="off"))} == {"dense"}


def test_more_tiles_race_at_higher_levels() -> None:
    counts = [len(choices(vgg(), replace(HALF, optimization_level=level))) for level in range(6)]
    assert counts == sorted(counts) and counts[0] == 2 < counts[5]
    keys = [choice.key() for choice in choices(vgg(), replace(CONFIG, optimization_level=5))]
    assert len(set(keys)) == len(keys)


REFUSED = (
    (replace(max_pool(3, 1), kind="average"), "average pooling"),
    (max_pool(3, 1, stride=1), "of stride 2"),
    (max_pool(4, 1), "of stride 2"),
    (Pool("max", (3, 2), (2, 2), (0,) * 4, (1, 1)), "of stride 2"),
    (Pool("max", (3, 3), (2, 2), (0,) * 4, (2, 2)), "of stride 2"),
    (max_pool(3, (3, 0, 0, 0)), "as wide as a window"),
)


@pytest.mark.parametrize(("pool", "reason"), REFUSED)
def test_poolings_that_are_refused(pool: Pool, reason: str) -> None:
    layer, _ = conv_layer(conv(RELU, stride=2, pads=3), (1, 3, 33, 29), (16, 3, 7, 7))
    graph = pooled_graph(layer, pool)
    said = TACTIC.refuses(graph, graph.nodes[1], H200, CONFIG)
    assert said is not None and re.search(reason, said)
    assert regions(graph) == ()


def test_convolutions_that_are_refused() -> None:
    def said(*arguments: object, pool: Pool = POOL, **changes: object) -> str:
        graph = pooled_graph(conv_layer(*arguments)[0], pool)  # type: ignore[arg-type]
        reasons = (TACTIC.refuses(graph, node, replace(H200, **changes), CONFIG) for node in graph.nodes)
        return " ".join(reason for reason in reasons if reason)

    stem = ((1, 3, 33, 29), (16, 3, 7, 7))
    assert said(conv(RELU, stride=2, pads=3), *stem) == ""
    assert "Hopper" in said(conv(RELU, stride=2, pads=3), *stem, architecture="sm_80")
    assert "CUDA devices only" in said(conv(RELU, stride=2, pads=3), *stem, kind="cpu")
    assert "reads other values" in said(conv(RESIDUAL, RELU, stride=2, pads=3), *stem)
    many = resnet(batch=90000)
    assert f"up to {MOST_ELEMENTS}" in str(TACTIC.refuses(many, many.nodes[1], H200, CONFIG))


def test_pairs_without_a_tile() -> None:
    """Lines of which two do not fit, strides, odd filters, groups: no region, and no error."""
    for op, image, weight in (
        (conv(RELU), (1, 64, 8, 160), (64, 64, 3, 3)),
        (conv(RELU, stride=2), (1, 64, 32, 32), (64, 64, 3, 3)),
        (conv(RELU, stride=2), (1, 3, 32, 32), (20, 3, 3, 3)),
        (conv(RELU, groups=2), (1, 64, 16, 16), (64, 32, 3, 3)),
        (conv(RELU, pads=0), (1, 64, 16, 16), (64, 64, 1, 1)),
    ):
        assert regions(pooled_graph(conv_layer(op, image, weight)[0], POOL)) == ()


def test_a_result_that_others_read() -> None:
    graph = vgg()
    assert regions(replace(graph, outputs=("z", "y"))) == ()
    second = replace(graph.nodes[1], name="again", outputs=("again",))
    twice = replace(graph, nodes=(*graph.nodes, second), types={**graph.types, "again": graph.types["z"]})
    assert regions(twice) == ()


def test_a_build_runs_and_tells_the_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    """The region wins where traffic decides; each layer's record says who runs it, and why."""
    random = np.random.default_rng(0)
    weight = (random.standard_normal((64, 3, 7, 7)) / 12).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "stem", strides=[2, 2], pads=[3] * 4),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("MaxPool", ["r"], ["p"], "pool", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4),
        helper.make_node("Conv", ["p", "v"], ["y"], "last"),
    ]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", (4, 3, 96, 96)), ("y", (4, 8, 24, 24)))
    ]
    last = random.standard_normal((8, 64, 1, 1)).astype(np.float32) / 8
    weights = [numpy_helper.from_array(array, name) for array, name in ((weight, "w"), (last, "v"))]
    graph = helper.make_graph(nodes, "stem", values[:1], values[1:], weights)
    make_up_measurements(monkeypatch)
    monkeypatch.setattr("tamis.compiler.open_device", lambda kind: PaperGpu(H200))
    plan = build(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), HALF).plan
    check_plan(plan)
    pair = plan.layers[:2]
    assert [record.chosen_tactic for record in pair] == ["tamis.hopper.pool"] * 2
    assert all(record.why.startswith("runs within a region of 2 layers") for record in pair)
    chosen = [region for region in plan.regions if region.chosen]
    assert [region.layers for region in chosen] == [("stem", "pool")]
    assert any(step.layers == ("stem", "pool") for step in plan.steps)


def test_the_region_is_no_layers_tactic() -> None:
    """Its name is its own, so that a build can leave it out, and its family's."""
    assert TACTIC.name not in {tactic.name for tactic in tactics_of("cuda")}
    assert replace(CONFIG, exclude_tactics=("tamis.hopper",)).excludes(TACTIC.name)
