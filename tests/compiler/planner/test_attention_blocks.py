"""Attention blocks as in BERT and ViT: without a copy, right in poisoned memory, and no larger than the plan says."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from tamis import __version__
from tamis.compiler import BuildConfig, build
from tamis.compiler.importer import import_onnx
from tamis.compiler.ir.graph import Graph
from tamis.compiler.passes import run_passes
from tamis.compiler.planner.lower import Draft, Lowering
from tamis.compiler.planner.options import Option
from tamis.compiler.tactics.aten import Aten
from tamis.compiler.tactics.base import layer_of
from tamis.devices.cpu import CpuDevice
from tamis.engine.file import Engine
from tamis.engine.plan import PLAN_VERSION, Plan, Port
from tamis.formats.dtype import DType
from tamis.runtime.session import Session

DEVICE = CpuDevice(threads=2)
BATCH, LENGTH, HEADS, DEPTH = 2, 9, 4, 16
WIDTH = HEADS * DEPTH


def model(kind: str) -> onnx.ModelProto:
    """Two blocks with residuals: ``bert`` with three projections and a mask, ``vit`` with a joined one cut by Gather."""
    random = np.random.default_rng(1)
    nodes: list[onnx.NodeProto] = []
    initializers: list[onnx.TensorProto] = []

    def constant(name: str, array: np.ndarray) -> str:
        initializers.append(numpy_helper.from_array(array, name))
        return name

    def node(op: str, inputs: list[str], name: str, **attributes: object) -> str:
        nodes.append(helper.make_node(op, inputs, [name], **attributes))
        return name

    def linear(x: str, name: str, width: int) -> str:
        weight = random.standard_normal((WIDTH, width)).astype(np.float32) / np.sqrt(WIDTH)
        bias = random.standard_normal(width).astype(np.float32)
        product = node("MatMul", [x, constant(f"{name}.w", weight.astype(np.float32))], f"{name}.m")
        return node("Add", [product, constant(f"{name}.b", bias)], name)

    def heads(x: str, name: str, perm: list[int]) -> str:
        cut = node("Reshape", [x, "by_token"], f"{name}.cut")
        return node("Transpose", [cut], name, perm=perm)

    constant("by_token", np.array([BATCH, LENGTH, HEADS, DEPTH]))
    constant("joined", np.array([BATCH, LENGTH, WIDTH]))
    constant("five", np.array([BATCH, LENGTH, 3, HEADS, DEPTH]))
    constant("scale", np.array(DEPTH**-0.5, np.float32))
    x = "x"
    for block in ("0", "1"):
        if kind == "bert":
            q, v = (heads(linear(x, f"{n}{block}.l", WIDTH), f"{n}{block}", [0, 2, 1, 3]) for n in "qv")
            k = heads(linear(x, f"k{block}.l", WIDTH), f"k{block}", [0, 2, 3, 1])
        else:
            five = node("Reshape", [linear(x, f"qkv{block}.l", 3 * WIDTH), "five"], f"five{block}")
            turned = node("Transpose", [five], f"turned{block}", perm=[2, 0, 3, 1, 4])
            q, k0, v = (
                node("Gather", [turned, constant(f"i{n}{block}", np.array(i))], f"{n}{block}", axis=0)
                for i, n in enumerate("qkv")
            )
            k = node("Transpose", [k0], f"kt{block}", perm=[0, 1, 3, 2])
        scores = node("Mul", [node("MatMul", [q, k], f"s{block}"), "scale"], f"scaled{block}")
        if kind == "bert":
            scores = node("Add", [scores, "mask"], f"masked{block}")
        mixed = node("MatMul", [node("Softmax", [scores], f"p{block}", axis=-1), v], f"a{block}")
        back = node("Transpose", [mixed], f"b{block}", perm=[0, 2, 1, 3])
        y = linear(node("Reshape", [back, "joined"], f"j{block}"), f"y{block}", WIDTH)
        x = node("Add", [y, x], f"out{block}")
    inputs = {"x": [BATCH, LENGTH, WIDTH]} | ({"mask": [BATCH, 1, 1, LENGTH]} if kind == "bert" else {})
    graph = helper.make_graph(
        nodes, kind, [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, [BATCH, LENGTH, WIDTH])], initializers,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def samples(kind: str) -> dict[str, np.ndarray]:
    random = np.random.default_rng(2)
    x = random.standard_normal((BATCH, LENGTH, WIDTH)).astype(np.float32)
    mask = np.where(random.random((BATCH, 1, 1, LENGTH)) < 0.3, -1e4, 0.0).astype(np.float32)
    return {"x": x, "mask": mask} if kind == "bert" else {"x": x}


def draft_of(kind: str, precision: DType) -> tuple[Graph, Draft]:
    """All layers by PyTorch's kernels in one precision."""
    graph, tactic = run_passes(import_onnx(model(kind))), Aten()
    config = BuildConfig(precisions=(precision,))
    options = []
    for index, node in enumerate(graph.nodes):
        layer = layer_of(graph, node)
        choices = [c for c in tactic.choices(layer, DEVICE.info(), config) if c.precision == precision]
        choice = next(c for c in choices if all(f.layout == "row_major" for f in (*c.inputs, *c.outputs)))
        inputs = tuple(zip(layer.values, choice.inputs, strict=True))
        outputs = tuple(zip(node.outputs, choice.outputs, strict=True))
        options.append(Option(index, index + 1, choice, inputs, outputs, 1.0))
    return graph, Lowering(graph, (tactic,), (), DEVICE).draft(tuple(options))


def engine_of(graph: Graph, draft: Draft) -> Engine:
    def port(value: str) -> Port:
        return Port(value, graph.types[value].shape, graph.types[value].dtype)

    plan = Plan(
        graph.name, PLAN_VERSION, __version__, DEVICE.info(), 2, tuple(port(v) for v in graph.inputs),
        tuple(port(v) for v in graph.outputs), graph.inputs, draft.output_values, draft.buffers, draft.steps,
        draft.arena_bytes, draft.peak_bytes, (), (), (), {},
    )  # fmt: skip
    return Engine(plan, draft.constants)


def expected_of(kind: str) -> np.ndarray:
    session = onnxruntime.InferenceSession(model(kind).SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, samples(kind))[0])


def error(result: np.ndarray, expected: np.ndarray) -> float:
    assert not np.isnan(result.astype(np.float32)).any()
    difference = np.abs(result.astype(np.float64) - expected.astype(np.float64))
    return float(difference.max() / np.abs(expected.astype(np.float64)).max())


CASES = pytest.mark.parametrize(
    ("kind", "precision"),
    [(kind, precision) for kind in ("bert", "vit") for precision in (DType.FLOAT32, DType.BFLOAT16)],
)


@CASES
def test_no_step_around_attention_copies(kind: str, precision: DType) -> None:
    _, draft = draft_of(kind, precision)
    attentions = [step for step in draft.steps if step.kernel == "aten.attention"]
    movers = [s for s in draft.steps if s.kernel in ("aten.transpose", "aten.split", "aten.slice", "aten.gather")]
    assert len(attentions) == 2 and len(movers) >= 6
    assert all(step.attributes.get("strided") for step in attentions)
    assert all(step.attributes.get("strided") or step.attributes.get("view") for step in movers)
    assert draft.copying is not None and draft.copying.copying is None
    assert not any({"strided", "view"} & set(step.attributes) for step in draft.copying.steps)
    assert draft.peak_bytes < draft.copying.peak_bytes and draft.arena_bytes <= draft.copying.arena_bytes


@CASES
def test_agrees_with_onnxruntime_in_poisoned_memory(kind: str, precision: DType) -> None:
    graph, draft = draft_of(kind, precision)
    expected = expected_of(kind)
    for found in (draft, draft.copying):
        assert found is not None
        session = Session(engine_of(graph, found), device=DEVICE, poison=True)
        for _ in range(2):
            (result,) = session.run(samples(kind)).values()
            assert error(result, expected) < (1e-5 if precision == DType.FLOAT32 else 0.04)


@CASES
def test_a_trace_gives_the_values_of_the_engine_that_copies(kind: str, precision: DType) -> None:
    graph, draft = draft_of(kind, precision)
    assert draft.copying is not None
    views, copies = (
        dict(Session(engine_of(graph, d), device=DEVICE).trace(samples(kind))) for d in (draft, draft.copying)
    )
    assert set(copies) < set(views), "aliases have become steps"
    for name, copied in copies.items():
        assert views[name].flags.c_contiguous and views[name].shape == copied.shape
        assert error(views[name], copied) < (1e-5 if precision == DType.FLOAT32 else 0.03)


@CASES
@pytest.mark.parametrize("copying", [False, True])
def test_the_plan_knows_the_peak(kind: str, precision: DType, copying: bool) -> None:
    """The memory in use after each step: what lies in the arena by the plan, the rest as torch allocated it."""
    graph, draft = draft_of(kind, precision)
    used = draft.copying if copying else draft
    assert used is not None
    session = Session(engine_of(graph, used), device=DEVICE)
    arena = session._memory.arena.untyped_storage().data_ptr()
    step_of = {value: index for index, step in enumerate(used.steps) for value in step.outputs}
    given = {b.name for b in used.buffers if b.place == "input"}
    peaks = []
    for name, _ in session.trace(samples(kind)):
        at = step_of[name]
        own = {}
        for buffer in used.buffers:
            tensor = session._slots[session._memory.index[buffer.name]]
            if tensor is not None and buffer.name not in given:
                storage = tensor.untyped_storage()
                own[storage.data_ptr()] = storage.nbytes()
        own.pop(arena, None)
        for value in given:
            own.pop(session._slots[session._memory.index[value]].untyped_storage().data_ptr(), None)
        placed = sum(b.size_bytes for b in used.buffers if b.place == "arena" and b.first <= at <= b.last)
        peaks.append(placed + sum(own.values()))
    assert max(peaks) == used.peak_bytes


def test_a_build_races_views_against_copies() -> None:
    engine = build(model("bert"), BuildConfig(exclude_tactics=("openvino", "onednn", "tamis"), budget_seconds=20))
    records = {record.name: record for record in engine.plan.engines}
    copied = [name for name in records if name.endswith(", views copied")]
    assert len(copied) == 1 and copied[0].removesuffix(", views copied") in records
    assert sum(record.chosen for record in records.values()) == 1
    marked = any(step.attributes.get("strided") for step in engine.plan.steps)
    assert marked == (not records[copied[0]].chosen)
    (result,) = Session(engine, poison=True).run(samples("bert")).values()
    assert error(result, expected_of("bert")) < 1e-5
