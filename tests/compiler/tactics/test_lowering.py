"""Lowered layers, run by ONNX Runtime and by OpenVINO, against the NumPy meaning of the operators."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from operator_cases import CASES, Case
from tamis.compiler.ir.evaluate import evaluate, run
from tamis.compiler.ir.graph import Graph, Node, TensorType
from tamis.compiler.ir.ops import (
    Attention,
    Conv,
    Elementwise,
    LayerNorm,
    Linear,
    Pointwise,
    Pool,
    Reshape,
    Softmax,
    Split,
    Transpose,
)
from tamis.compiler.tactics.lowering import lower_to_onnx, refuses_lowering, to_openvino
from tamis.errors import BuildError
from tamis.formats.dtype import DType

REFUSED = {
    "cast-float8",
    "local_response_norm-even",
    "pool-average-ceil-count",
    "pool-max-ceil-pads",
    "reduce-no-axes",
    "resize-cubic-outside",
    "resize-linear-all-axes",
    "resize-nearest-symmetric",
}
# ONNX Runtime refuses what OpenVINO and we can run.
NOT_BY_ONNX_RUNTIME = {"conv_transpose-long-output-pads"}


def graph_of(case: Case) -> tuple[Graph, dict[str, np.ndarray], tuple[np.ndarray, ...]]:
    """A graph of one layer, its inputs and its expected results."""
    arrays = case.arrays()
    expected = evaluate(case.op, arrays)
    names = tuple(f"v{index}" for index in range(len(arrays)))
    outputs = tuple(f"out{index}" for index in range(len(expected)))
    pairs = [*zip(names, arrays, strict=True), *zip(outputs, expected, strict=True)]
    types = {name: TensorType(array.shape, DType.of(array)) for name, array in pairs}
    constants = {names[index]: arrays[index] for index in case.constants}
    inputs = tuple(name for name in names if name not in constants)
    node = Node("group/layer", case.op, names, outputs)
    feeds = {name: array for name, array in zip(names, arrays, strict=True) if name in inputs}
    return Graph("case", inputs, outputs, (node,), types, constants), feeds, expected


def assert_close(got: np.ndarray, expected: np.ndarray, relative: float = 3e-5) -> None:
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype
    if not np.issubdtype(expected.dtype, np.floating):
        np.testing.assert_array_equal(got, expected)
        return
    np.testing.assert_array_equal(np.isnan(got), np.isnan(expected))
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(np.isfinite(got), finite)
    scale = max(float(np.abs(expected[finite]).max(initial=0.0)), 1e-3)
    error = float(np.abs(got[finite] - expected[finite]).max(initial=0.0)) / scale
    assert error <= relative, f"relative error {error}"


def by_openvino(model: onnx.ModelProto, feeds: list[np.ndarray], precision: str = "f32") -> list[np.ndarray]:
    openvino = pytest.importorskip("openvino")
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(*to_openvino(model)), "CPU", {"INFERENCE_PRECISION_HINT": precision})
    return [np.array(array) for array in compiled(feeds).to_tuple()]


def by_onnxruntime(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(array) for array in session.run(None, feeds)]


LOWERED = [case for case in CASES if case.name not in REFUSED]


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_refusals(case: Case) -> None:
    node = Node("layer", case.op, (), ())
    assert (refuses_lowering(node) is not None) == (case.name in REFUSED)


@pytest.mark.parametrize("case", LOWERED, ids=[case.name for case in LOWERED])
def test_onnxruntime_agrees(case: Case) -> None:
    if case.name in NOT_BY_ONNX_RUNTIME:
        pytest.skip("ONNX Runtime refuses this layer")
    graph, feeds, expected = graph_of(case)
    model = lower_to_onnx(graph, graph.nodes, graph.inputs, graph.outputs)
    onnx.checker.check_model(model)
    for got, wanted in zip(by_onnxruntime(model, feeds), expected, strict=True):
        assert_close(got, wanted)


@pytest.mark.parametrize("case", LOWERED, ids=[case.name for case in LOWERED])
def test_openvino_agrees(case: Case) -> None:
    graph, feeds, expected = graph_of(case)
    model = lower_to_onnx(graph, graph.nodes, graph.inputs, graph.outputs)
    for got, wanted in zip(by_openvino(model, list(feeds.values())), expected, strict=True):
        assert_close(got, wanted)


def test_a_refused_layer_is_an_error() -> None:
    case = next(case for case in CASES if case.name == "reduce-no-axes")
    graph, *_ = graph_of(case)
    with pytest.raises(BuildError, match="layer 'group/layer': cannot be lowered"):
        lower_to_onnx(graph, graph.nodes, graph.inputs, graph.outputs)


def network() -> Graph:
    """Convolution, pooling, attention, a normalisation with residual; two outputs, one of them inside."""
    random = np.random.default_rng(1)
    types = {"x": TensorType((2, 3, 8, 8))}
    constants: dict[str, np.ndarray] = {}
    nodes: list[Node] = []

    def weight(name: str, *shape: int) -> str:
        constants[name] = (random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
        types[name] = TensorType(shape)
        return name

    def layer(name: str, op: object, inputs: tuple[str, ...], *outputs: tuple[str, tuple[int, ...]]) -> None:
        for output, shape in outputs:
            types[output] = TensorType(shape)
        nodes.append(Node(name, op, inputs, tuple(output for output, _ in outputs)))  # type: ignore[arg-type]

    layer(
        "/stem/conv", Conv((1, 1), (1, 1, 1, 1), (1, 1), bias=True, epilogue=(Pointwise("silu"),)),
        ("x", weight("stem.w", 16, 3, 3, 3), weight("stem.b", 16)), ("stem", (2, 16, 8, 8)),
    )  # fmt: skip
    layer("/pool", Pool("max", (2, 2), (2, 2), (0,) * 4, (1, 1)), ("stem",), ("Add_7", (2, 16, 4, 4)))
    layer("/flat", Reshape((2, 16, 16)), ("Add_7",), ("flat", (2, 16, 16)))
    layer(
        "/qkv",
        Linear(bias=True),
        ("flat", weight("qkv.w", 48, 16), weight("qkv.b", 48)),
        ("qkv", (2, 16, 48)),
    )
    parts = [(f"part{i}", (2, 16, 16)) for i in range(3)]
    layer("/split", Split(2, (16, 16, 16)), ("qkv",), *parts)
    for index in range(3):
        layer(f"/heads{index}", Reshape((2, 16, 2, 8)), (f"part{index}",), (f"cut{index}", (2, 16, 2, 8)))
        layer(f"/turn{index}", Transpose((0, 2, 1, 3)), (f"cut{index}",), (f"head{index}", (2, 2, 16, 8)))
    layer("/attention", Attention(8**-0.5), ("head0", "head1", "head2"), ("mixed", (2, 2, 16, 8)))
    layer("/back", Transpose((0, 2, 1, 3)), ("mixed",), ("back", (2, 16, 2, 8)))
    layer("/join", Reshape((2, 16, 16)), ("back",), ("joined", (2, 16, 16)))
    layer(
        "/norm", LayerNorm(-1, 1e-5, residual=True),
        ("joined", weight("norm.w", 16), weight("norm.b", 16), "flat"),
        ("normal", (2, 16, 16)), ("sum", (2, 16, 16)),
    )  # fmt: skip
    layer(
        "/mlp", Linear(bias=True, epilogue=(Pointwise("gelu"), Pointwise("add", operand=3))),
        ("normal", weight("mlp.w", 16, 16), weight("mlp.b", 16), "sum"), ("mlp", (2, 16, 16)),
    )  # fmt: skip
    layer("/probabilities", Softmax(-1), ("mlp",), ("y", (2, 16, 16)))
    layer("/gate", Elementwise((Pointwise("sigmoid"), Pointwise("mul", operand=0))), ("y",), ("z", (2, 16, 16)))
    return Graph("network", ("x",), ("z", "Add_7"), tuple(nodes), types, constants)


@pytest.mark.parametrize(("precision", "relative"), [("f32", 3e-5), ("bf16", 0.05)])
def test_a_network_agrees(precision: str, relative: float) -> None:
    graph = network()
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    expected = run(graph, {"x": x})
    model = lower_to_onnx(graph, graph.nodes, graph.inputs, graph.outputs)
    assert [value.name for value in model.graph.output] == ["z", "Add_7"]
    for results in (by_onnxruntime(model, {"x": x}), by_openvino(model, [x], precision)):
        for got, name in zip(results, graph.outputs, strict=True):
            assert_close(got, expected[name], relative)


def test_a_part_of_a_network_reads_values_and_keeps_their_order() -> None:
    graph = network()
    nodes = [node for node in graph.nodes if node.name in ("/norm", "/mlp")]
    model = lower_to_onnx(graph, nodes, ("flat", "joined"), ("sum", "mlp"))
    random = np.random.default_rng(2)
    feeds = {name: random.standard_normal((2, 16, 16)).astype(np.float32) for name in ("flat", "joined")}
    total = feeds["flat"] + feeds["joined"]
    for results in (by_onnxruntime(model, feeds), by_openvino(model, list(feeds.values()))):
        np.testing.assert_allclose(results[0], total, rtol=1e-6)
        assert results[1].shape == (2, 16, 16)
    stored = {item.name for item in model.graph.initializer}
    assert stored >= {"norm.w", "norm.b", "mlp.b"}
    assert "mlp.w" not in stored  # only its transpose is read
    assert "stem.w" not in stored


def test_files_are_the_same_every_time() -> None:
    pytest.importorskip("openvino")
    graph = network()
    model = lower_to_onnx(graph, graph.nodes, graph.inputs, graph.outputs)
    first = to_openvino(model)
    by_openvino(model, [np.zeros((2, 3, 8, 8), np.float32)])  # moves OpenVINO's counters on
    again = lower_to_onnx(network(), graph.nodes, graph.inputs, graph.outputs)
    assert to_openvino(again) == first
    assert model.SerializeToString(deterministic=True) == again.SerializeToString(deterministic=True)
    assert b"rt_info" not in first[0]


def test_files_are_the_same_in_another_process() -> None:
    pytest.importorskip("openvino")
    graph = network()
    here = to_openvino(lower_to_onnx(graph, graph.nodes, graph.inputs, graph.outputs))
    program = (
        "import sys, hashlib; sys.path[:0] = sys.argv[1:]\n"
        "from test_lowering import lower_to_onnx, network, to_openvino\n"
        "g = network()\n"
        "for part in to_openvino(lower_to_onnx(g, g.nodes, g.inputs, g.outputs)):\n"
        "    print(hashlib.sha256(part).hexdigest())\n"
    )
    folder = Path(__file__).parent
    paths = [str(folder), str(folder.parents[1]), *sys.path]
    result = subprocess.run(
        [sys.executable, "-c", program, *paths], capture_output=True, text=True, check=True, timeout=60
    )
    assert result.stdout.split() == [hashlib.sha256(part).hexdigest() for part in here]


def test_weights_stored_in_bfloat16_give_the_same_results() -> None:
    openvino = pytest.importorskip("openvino")
    core = openvino.Core()
    if "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this processor does not compute in bfloat16")
    graph = network()
    model = lower_to_onnx(graph, graph.nodes, graph.inputs, graph.outputs)
    x = np.random.default_rng(3).standard_normal((2, 3, 8, 8)).astype(np.float32)
    results, sizes = [], []
    for precision in (DType.FLOAT32, DType.BFLOAT16):
        xml, weights = to_openvino(model, precision)
        compiled = core.compile_model(core.read_model(xml, weights), "CPU", {"INFERENCE_PRECISION_HINT": "bf16"})
        results.append([np.array(array) for array in compiled([x]).to_tuple()])
        sizes.append(len(weights))
    assert to_openvino(model, DType.BFLOAT16) == (xml, weights)
    for full, half in zip(*results, strict=True):
        np.testing.assert_array_equal(full, half)
    matrices = 16 * 27 + 48 * 16 + 16 * 16
    assert sizes[0] - sizes[1] == pytest.approx(2 * matrices, abs=256)


def test_every_openvino_operation_belongs_to_a_layer() -> None:
    openvino = pytest.importorskip("openvino")
    graph = network()
    xml, weights = to_openvino(lower_to_onnx(graph, graph.nodes, graph.inputs, graph.outputs))
    layers = {node.name for node in graph.nodes}
    for operation in openvino.Core().read_model(xml, weights).get_ordered_ops():
        assert operation.get_friendly_name().rpartition("#")[0] in layers
