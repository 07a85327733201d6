"""Chains that take a Concat in: which regions are found, what they lower to, and whether they compute the same."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from small_models import two_of_four
from tamis.compiler import BuildConfig, build
from tamis.compiler.importer import import_onnx
from tamis.compiler.ir.graph import Graph
from tamis.compiler.ir.ops import Concat
from tamis.compiler.passes import run_passes
from tamis.compiler.planner.contest import Contest
from tamis.compiler.tactics.base import Choice
from tamis.compiler.tactics.chain import TamisChain
from tamis.compiler.tactics.region import Region
from tamis.compiler.tuner.trial import bind_trial
from tamis.engine.file import read, save
from tamis.engine.inspect import summarize
from tamis.engine.plan import Timing
from tamis.formats import TWO_FOUR, fits
from tamis.formats.dtype import DType
from tamis.formats.tiles import unpack
from tamis.runtime.session import Session, open_device

PRECISIONS = (DType.FLOAT32, DType.BFLOAT16)
CPU = open_device("cpu").info()


class Model:
    """Collects ONNX nodes over matrices of ``rows`` rows. Values are named after the nodes."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.random = np.random.default_rng(rows)
        self.columns: dict[str, int] = {}
        self.inputs: list[str] = []
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}

    def input(self, name: str, columns: int) -> str:
        self.inputs.append(name)
        self.columns[name] = columns
        return name

    def constant(self, name: str, columns: int) -> str:
        self.constants[name] = self.random.standard_normal((self.rows, columns)).astype(np.float32)
        self.columns[name] = columns
        return name

    def linear(self, name: str, x: str, outputs: int, *, sparse: bool = True) -> str:
        columns = self.columns[x]
        weight = (self.random.standard_normal((outputs, columns)) / np.sqrt(columns)).astype(np.float32)
        self.constants[f"{name}.w"] = two_of_four(weight, 1) if sparse and fits(weight.shape, 1, 4) else weight
        self.constants[f"{name}.b"] = self.random.standard_normal(outputs).astype(np.float32)
        gemm = helper.make_node("Gemm", [x, f"{name}.w", f"{name}.b"], [f"{name}.gemm"], name, transB=1)
        self.nodes += [gemm, helper.make_node("Relu", [f"{name}.gemm"], [name], f"{name}.relu")]
        self.columns[name] = outputs
        return name

    def concat(self, name: str, *values: str, axis: int = 1) -> str:
        self.nodes.append(helper.make_node("Concat", values, [name], name, axis=axis))
        self.columns[name] = sum(self.columns[value] for value in values)
        return name

    def proto(self, *outputs: str) -> onnx.ModelProto:
        def info(name: str) -> onnx.ValueInfoProto:
            return helper.make_tensor_value_info(name, TensorProto.FLOAT, [self.rows, self.columns[name]])

        graph = helper.make_graph(
            self.nodes, "chain", [info(v) for v in self.inputs], [info(v) for v in outputs],
            [numpy_helper.from_array(array, name) for name, array in self.constants.items()],
        )  # fmt: skip
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        onnx.checker.check_model(model)
        return model

    def feeds(self) -> dict[str, np.ndarray]:
        return {v: self.random.standard_normal((self.rows, self.columns[v])).astype(np.float32) for v in self.inputs}


def dlrm(rows: int, *, products: int = 351, swapped: bool = False) -> Model:
    """The perceptrons of DLRM; with ``swapped`` the products come before the bottom's result."""
    model = Model(rows)
    h = model.input("dense", 13)
    model.input("products", products)
    for index, width in enumerate((512, 256, 128)):
        h = model.linear(f"bottom{index}", h, width)
    h = model.concat("join", *(("products", h) if swapped else (h, "products")))
    for index, width in enumerate((1024, 1024, 512, 256, 1)):
        h = model.linear(f"top{index}", h, width)
    return model


def graph_of(proto: onnx.ModelProto) -> Graph:
    return run_passes(import_onnx(proto))


def found(graph: Graph) -> tuple[Region, ...]:
    tactic, info = TamisChain(), CPU
    able = frozenset(n.name for n in graph.nodes if tactic.refuses(graph, n, info, BuildConfig()) is None)
    return tactic.regions(graph, able)


def joins_in(region: Region) -> int:
    return sum(isinstance(node.op, Concat) for node in region.nodes)


def by_onnxruntime(proto: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, dict(feeds))[0])


def run_region(graph: Graph, region: Region, choice: Choice, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
    device = open_device("cpu")
    lowered = TamisChain().lower(graph, region, choice)
    inputs = {}
    for value, format in zip(region.inputs, choice.inputs, strict=True):
        tensor = device.empty(graph.types[value].shape, format)
        tensor.copy_(device.upload(feeds[value]))
        inputs[value] = (tensor, format)
    outputs = {v: (graph.types[v], f) for v, f in zip(region.outputs, choice.outputs, strict=True)}
    trial = bind_trial(device, lowered, inputs, outputs)
    trial.run()
    return np.asarray(device.download(trial.slots[trial.outputs[0]]), np.float32)


def check_all_choices(model: Model, output: str, config: BuildConfig | None = None) -> tuple[Graph, Region]:
    """The whole graph is one region, and every way to run it computes what ONNX Runtime does."""
    proto, feeds = model.proto(output), model.feeds()
    graph = graph_of(proto)
    region = found(graph)[0]
    assert (region.start, region.stop) == (0, len(graph.nodes))
    expected = by_onnxruntime(proto, feeds)
    scale = max(1.0, float(np.abs(expected).max()))
    choices = TamisChain().choices(graph, region, CPU, config or BuildConfig(precisions=PRECISIONS))
    for choice in choices:
        assert len(choice.inputs) == len(region.inputs)
        assert {f.dtype for f in (*choice.inputs, *choice.outputs)} <= {DType.FLOAT32, choice.precision}
        narrow = choice.precision == DType.BFLOAT16
        error = np.abs(run_region(graph, region, choice, feeds) - expected).max() / scale
        assert error < (4e-2 if narrow else 2e-5), (choice, error)
    return graph, region


@pytest.mark.parametrize("rows", [1, 64])
@pytest.mark.parametrize("swapped", [False, True])
def test_dlrm_is_one_chain(rows: int, swapped: bool) -> None:
    graph, region = check_all_choices(dlrm(rows, swapped=swapped), "top4")
    halves = found(graph)[1:]
    assert [(r.start, r.stop) for r in halves] == [(0, 3), (4, 9)]
    choice = TamisChain().choices(graph, region, CPU, BuildConfig())[1]
    (step,) = TamisChain().lower(graph, region, choice).steps
    assert step.inputs == ("dense", "products")
    assert step.layers == tuple(node.name for node in graph.nodes)
    assert step.attributes["pieces"] == [{"layer": 3, "column": 128, "columns": 351}]
    assert [entry["k"] for entry in step.attributes["layers"]] == [13, 512, 256, 479, 1024, 1024, 512, 256]
    sizes = [(13, 512), (512, 256), (256, 128), (479, 1024), (1024, 1024), (1024, 512), (512, 256), (256, 1)]
    assert step.flops == sum(2 * rows * k * n for k, n in sizes)
    dense = TamisChain().lower(graph, region, TamisChain().choices(graph, region, CPU, BuildConfig())[0]).steps[0]
    assert dense.moved_bytes == 4 * sum(rows * (k + n) + k * n + n for k, n in sizes)
    assert step.moved_bytes < dense.moved_bytes


def test_the_join_costs_no_step_when_it_stands_first() -> None:
    model = Model(3)
    for name, columns in (("a", 5), ("b", 40), ("c", 3)):
        model.input(name, columns)
    model.linear("only", model.concat("join", "b", "a", "c"), 20)
    graph, region = check_all_choices(model, "only")
    assert len(region.nodes) == 2
    (step,) = TamisChain().lower(graph, region, TamisChain().choices(graph, region, CPU, BuildConfig())[0]).steps
    assert step.inputs == ("b", "a", "c")
    assert step.attributes["x_columns"] == 40
    assert [(p["column"], p["columns"]) for p in step.attributes["pieces"]] == [(48, 5), (64, 3)]


def test_several_joins_with_the_input_again() -> None:
    """Cross layers read the input again and again; the chain's value stands in the middle of a join."""
    model = Model(17)
    x, other = model.input("x", 24), model.input("other", 1)
    h = model.linear("first", x, 33)
    h = model.linear("second", model.concat("join1", other, h, x), 50)
    h = model.linear("third", model.concat("join2", x, h), 7)
    graph, region = check_all_choices(model, h)
    assert joins_in(region) == 2
    assert region.inputs == ("x", "other")
    (step,) = TamisChain().lower(graph, region, TamisChain().choices(graph, region, CPU, BuildConfig())[0]).steps
    assert step.inputs == ("x", "other", "x", "x")


def test_values_from_before_the_region_join_it() -> None:
    """The result of one chain joins another one that starts after it."""
    model = Model(2)
    left = model.linear("left1", model.linear("left0", model.input("x", 8), 12), 20)
    right = model.linear("right1", model.linear("right0", model.input("y", 8), 16), 8)
    model.linear("top", model.concat("join", left, right), 4)
    graph = graph_of(model.proto("top"))
    regions = found(graph)
    assert [len(r.nodes) for r in regions if joins_in(r)] == [4]
    (joined,) = (r for r in regions if joins_in(r))
    assert set(joined.inputs) == {"left1", "y"} or set(joined.inputs) == {"right1", "x"}


def refused() -> dict[str, Model]:
    """Models of two layers, a join and two layers, where the join cannot be taken in."""
    models = {}

    def start(name: str) -> tuple[Model, str]:
        models[name] = model = Model(2)
        return model, model.linear("l1", model.linear("l0", model.input("x", 8), 12), 12)

    def finish(model: Model, h: str) -> None:
        model.linear("l3", model.linear("l2", h, 16), 4)

    model, h = start("a constant")
    finish(model, model.concat("join", h, model.constant("c", 4)))
    model, h = start("itself")
    finish(model, model.concat("join", h, h))
    model, h = start("another value twice")
    model.input("other", 4)
    finish(model, model.concat("join", h, "other", "other"))
    model, h = start("a value that others read")
    model.nodes.append(helper.make_node("Sigmoid", [h], ["aside"], "aside"))
    model.columns["aside"] = 12
    finish(model, model.concat("join", h, "aside"))
    model, h = start("a join that others read")
    model.input("other", 4)
    joined = model.concat("join", h, "other")
    finish(model, joined)
    model.nodes.append(helper.make_node("Sigmoid", [joined], ["aside"], "aside"))
    model.columns["aside"] = 16
    model, h = start("an output")
    model.input("other", 4)
    model.columns["aside"] = 12
    model.nodes.append(helper.make_node("Identity", [h], ["aside"], "aside"))
    finish(model, model.concat("join", h, "other"))
    return models


@pytest.mark.parametrize("name", refused())
def test_joins_that_cannot_be_taken_in(name: str) -> None:
    model = refused()[name]
    outputs = ("l3", "aside") if "aside" in model.columns else ("l3",)
    graph = graph_of(model.proto(*outputs))
    assert any(isinstance(node.op, Concat) for node in graph.nodes)
    across = [r for r in found(graph) if joins_in(r) and not isinstance(r.nodes[0].op, Concat)]
    assert across == []


def test_a_join_along_another_axis_is_not_taken_in() -> None:
    model = Model(2)
    h = model.linear("l0", model.input("x", 8), 12)
    model.input("other", 12)
    model.concat("join", h, "other", axis=0)
    model.rows, model.columns["join"] = 4, 12
    model.linear("l1", "join", 5)
    proto = model.proto("l1")
    for info in proto.graph.input:
        info.type.tensor_type.shape.dim[0].dim_value = 2
    graph = graph_of(proto)
    assert found(graph) == ()
    concat = next(node for node in graph.nodes if isinstance(node.op, Concat))
    assert "last axis" in str(TamisChain().refuses(graph, concat, CPU, BuildConfig()))


@pytest.mark.parametrize(
    ("own", "other", "swapped", "kept"),
    [
        *((*case, swapped, kept) for *case, kept in [(8, 24, True), (6, 26, False), (30, 2, False), (20, 12, True)]
          for swapped in (False, True)),
        (48, 31, False, True), (48, 31, True, False), (31, 48, True, True), (31, 48, False, False),
        (66, 3, False, False), (4, 66, False, True),
    ],
)  # fmt: skip
def test_two_of_four_stays_where_groups_stay_together(own: int, other: int, swapped: bool, kept: bool) -> None:
    """A Concat may end in a shorter group, wherever the chain puts the part that ends it."""
    model = Model(5)
    h = model.linear("first", model.input("x", 16), own)
    model.input("other", other)
    model.concat("join", *(("other", h) if swapped else (h, "other")))
    model.linear("second", "join", 40)
    graph, region = check_all_choices(model, "second")
    choices = TamisChain().choices(graph, region, CPU, BuildConfig(precisions=PRECISIONS))
    names = [node.name for node in region.nodes if not isinstance(node.op, Concat)]
    for choice in choices:
        by_layer = choice.parameters["sparsity_by_layer"]
        assert set(by_layer) == set(names)
        assert by_layer[names[1]] == "dense" or (kept and by_layer[names[0]] == "2:4")
    sparse = [c for c in choices if c.sparsity == "2:4" and c.precision == DType.FLOAT32]
    assert sparse
    lowered = TamisChain().lower(graph, region, sparse[0])
    entry = lowered.steps[0].attributes["layers"][1]
    assert entry["pattern"] == ("2:4" if kept else "dense")
    if kept:
        packed = lowered.constants[f"{names[1]}.packed"]
        weight = unpack(packed, 40, entry["k"], "float32", TWO_FOUR)
        assert np.count_nonzero(weight) == np.count_nonzero(model.constants["second.w"])


@pytest.fixture
def fewest_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The contest is won by the engine with the fewest steps, and by a sparse one of those."""

    def timings(self: Contest, drafts: Mapping[str, object]) -> dict[str, Timing]:
        return {
            name: Timing(*([100.0 * len(d.steps) + 10.0 * (d.steps[0].sparsity == "dense")] * 3), 1)
            for name, d in drafts.items()
        }

    monkeypatch.setattr(Contest, "_timings", timings)


@pytest.mark.parametrize(("rows", "products"), [(1, 351), (64, 351), (3, 350)])
def test_engine_of_one_step(fewest_steps: None, tmp_path, rows: int, products: int) -> None:
    """DLRM, and one whose join leaves 478 columns: neither keeps groups of four at the join."""
    model = dlrm(rows, products=products)
    proto, feeds = model.proto("top4"), model.feeds()
    config = BuildConfig(repetitions=3, exclude_tactics=("openvino", "onednn"), threads=2, verify=True)
    save(build(proto, config), tmp_path / "engine.tamis")
    engine = read(tmp_path / "engine.tamis")
    (step,) = engine.plan.steps
    assert step.kernel == "tamis.chain"
    assert len(step.layers) == 9
    result = Session(engine, poison=True).run(feeds)["top4"]
    np.testing.assert_allclose(result, by_onnxruntime(proto, feeds), rtol=1e-4, atol=1e-5)
    layers = {layer.name: layer for layer in engine.plan.layers}
    join = next(layer for layer in layers.values() if layer.kind == "Concat")
    assert join.step == step.name
    assert join.chosen_tactic == "tamis.chain"
    assert join.chosen_sparsity == "dense"
    assert "within a region of 9 layers by tamis.chain" in join.why
    assert all(layer.eligible for layer in layers.values() if layer.chosen_sparsity == "2:4")
    assert join.name not in summarize(engine).sparse_layers
    chosen = [record for record in engine.plan.regions if record.chosen]
    assert [len(record.layers) for record in chosen] == [9]
    assert join.name in chosen[0].layers
