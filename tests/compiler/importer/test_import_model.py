"""The import of whole models: names, folding, inlining, borders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tamis.compiler.importer import import_onnx
from tamis.compiler.ir.evaluate import run
from tamis.compiler.ir.graph import Graph
from tamis.compiler.ir.ops import Cast, Elementwise, Linear
from tamis.compiler.ir.verify import verify
from tamis.formats.dtype import DType

FLOAT = TensorProto.FLOAT
X = np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)


def build(
    nodes: list[onnx.NodeProto],
    constants: dict[str, np.ndarray] | None = None,
    *,
    outputs: tuple[str, ...] = ("y",),
    element: int = FLOAT,
    opset: int = 17,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", element, [2, 4])],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in (constants or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def imported(model: onnx.ModelProto) -> Graph:
    graph = import_onnx(model)
    verify(graph)
    return graph


def kinds(graph: Graph) -> list[str]:
    return [type(node.op).__name__ for node in graph.nodes]


def test_names_and_origin() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["h"], name="act"),
        helper.make_node("Hardmax", ["h"], ["m"], name="act"),
        helper.make_node("Add", ["m", "h"], ["y"]),
    ]
    graph = imported(build(nodes))
    assert graph.name == "net" and graph.inputs == ("x",) and graph.outputs == ("y",)
    names = [node.name for node in graph.nodes]
    assert len(set(names)) == len(names)
    assert names[0] == "act" and names[-1] == "Add_2"
    assert all(node.origin for node in graph.nodes)
    assert {node.origin for node in graph.nodes if node.name.startswith("act.")} == {("act",)}
    assert "h" in graph.types and "m" in graph.types


def test_name_of_the_file_where_the_graph_has_none(tmp_path: Path) -> None:
    model = build([helper.make_node("Relu", ["x"], ["y"])])
    model.graph.name = ""
    onnx.save(model, tmp_path / "my_network.onnx")
    assert import_onnx(tmp_path / "my_network.onnx").name == "my_network"
    assert import_onnx(str(tmp_path / "my_network.onnx")).name == "my_network"


def test_weights_reached_through_chains_fold() -> None:
    """Identity, Cast, Reshape and Transpose in front of a weight leave one constant."""
    weight = np.arange(24, dtype=np.float64).reshape(2, 2, 6)
    nodes = [
        helper.make_node("Identity", ["w"], ["w1"]),
        helper.make_node("Cast", ["w1"], ["w2"], to=FLOAT),
        helper.make_node("Reshape", ["w2", "shape"], ["w3"]),
        helper.make_node("Transpose", ["w3"], ["w4"]),
        helper.make_node("MatMul", ["x", "w4"], ["y"], name="fc"),
    ]
    graph = imported(build(nodes, {"w": weight, "shape": np.asarray([6, 4])}))
    assert kinds(graph) == ["Linear"] and len(graph.constants) == 1
    np.testing.assert_allclose(run(graph, {"x": X})["y"], X @ weight.reshape(6, 4).T, rtol=1e-6)


def test_a_weight_used_twice_is_transposed_once() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("MatMul", ["a", "w"], ["y"]),
    ]
    graph = imported(build(nodes, {"w": np.eye(4, dtype=np.float32)}))
    assert len(graph.constants) == 1 and kinds(graph) == ["Linear", "Linear"]


def test_an_initializer_shared_through_identity() -> None:
    """Exporters share equal weights so: the first use must not take the initializer's name away."""
    nodes = [
        helper.make_node("Identity", ["w"], ["v"]),
        helper.make_node("Add", ["x", "v"], ["a"]),
        helper.make_node("Mul", ["a", "w"], ["y"]),
    ]
    graph = imported(build(nodes, {"w": np.full(4, 2, np.float32)}))
    assert list(graph.constants) == ["w"]
    np.testing.assert_array_equal(run(graph, {"x": X})["y"], (X + 2) * 2)


def test_gemm_puts_alpha_and_beta_into_its_constants() -> None:
    node = helper.make_node("Gemm", ["x", "w", "c"], ["y"], alpha=2.0, beta=0.5)
    weight, row = np.arange(12, dtype=np.float32).reshape(4, 3), np.asarray([[1, 2, 3]], np.float32)
    graph = imported(build([node], {"w": weight, "c": row}))
    assert graph.nodes[0].op == Linear(bias=True)
    np.testing.assert_allclose(run(graph, {"x": X})["y"], 2 * X @ weight + 0.5 * row, rtol=1e-5, atol=1e-5)
    full = np.arange(6, dtype=np.float32).reshape(2, 3)
    graph = imported(build([node], {"w": weight, "c": full}))
    np.testing.assert_allclose(run(graph, {"x": X})["y"], 2 * X @ weight + 0.5 * full, rtol=1e-5, atol=1e-5)


def test_arithmetic_on_constants_keeps_its_precision() -> None:
    """A large float64 number survives until the cast that needs it."""
    nodes = [
        helper.make_node("Add", ["big", "one"], ["sum"]),
        helper.make_node("Sub", ["sum", "big"], ["back"]),
        helper.make_node("Cast", ["back"], ["f"], to=FLOAT),
        helper.make_node("Mul", ["x", "f"], ["y"]),
    ]
    graph = imported(build(nodes, {"big": np.asarray(2.0**40), "one": np.asarray(1.0)}))
    np.testing.assert_array_equal(run(graph, {"x": X})["y"], X)


def test_finite_stays_finite() -> None:
    """The lowest float64, which exporters put into masks, must not become an infinity (0 * inf is NaN)."""
    low = np.asarray(np.finfo(np.float64).min)
    graph = imported(build([helper.make_node("Mul", ["x", "low"], ["y"])], {"low": low}, element=TensorProto.DOUBLE))
    assert all(np.isfinite(array).all() for array in graph.constants.values())


def test_huge_constants_are_not_written_out() -> None:
    nodes = [
        helper.make_node("ConstantOfShape", ["size"], ["big"]),
        helper.make_node("Expand", ["one", "size"], ["ones"]),
        helper.make_node("Add", ["big", "ones"], ["s"]),
        helper.make_node("ReduceMax", ["s"], ["m"], keepdims=0),
        helper.make_node("Add", ["x", "m"], ["y"]),
    ]
    size = np.asarray([1 << 10, 1 << 10, 1 << 12])
    model = build(nodes, {"size": size, "one": np.ones((1, 1, 1), np.float32)})
    graph = import_onnx(model)  # 16 GiB each when written out
    assert all(array.strides == (0, 0, 0) or array.size < 10 for array in graph.constants.values())


@pytest.mark.parametrize("element", [TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16])
def test_borders_keep_their_types(element: int) -> None:
    model = build([helper.make_node("Relu", ["x"], ["y"], name="act")], element=element)
    model.graph.output[0].type.tensor_type.elem_type = element
    graph = imported(model)
    assert kinds(graph) == ["Cast", "Elementwise", "Cast"]
    assert graph.types["x"].dtype == graph.types["y"].dtype != DType.FLOAT32
    value = X.astype(graph.types["x"].dtype.numpy)
    result = run(graph, {"x": value})["y"]
    assert result.dtype == value.dtype
    np.testing.assert_array_equal(result.astype(np.float32), np.maximum(value.astype(np.float32), 0))


def test_casts_between_floats_vanish() -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("CastLike", ["r", "x"], ["y"]),
    ]
    graph = imported(build(nodes))
    assert kinds(graph) == ["Elementwise"] and graph.nodes[0].outputs == ("y",)
    to_integer = imported(build([helper.make_node("Cast", ["x"], ["y"], to=TensorProto.INT32)]))
    assert to_integer.nodes[0].op == Cast(DType.INT32)


def test_outputs_that_are_not_fresh_values() -> None:
    """An input, a constant, and one value under two names as outputs."""
    nodes = [
        helper.make_node("Identity", ["x"], ["same"]),
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Identity", ["a"], ["b"]),
        helper.make_node("Shape", ["x"], ["shape"]),
    ]
    graph = imported(build(nodes, {"c": np.ones(3, np.float32)}, outputs=("same", "b", "a", "shape", "c")))
    result = run(graph, {"x": X})
    assert graph.outputs == ("same", "b", "a", "shape", "c")
    np.testing.assert_array_equal(result["same"], X)
    np.testing.assert_array_equal(result["a"], np.maximum(X, 0))
    np.testing.assert_array_equal(result["b"], result["a"])
    assert result["shape"].tolist() == [2, 4] and result["c"].tolist() == [1, 1, 1]


def test_output_used_inside_the_network_too() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Neg", ["a"], ["y"])]
    graph = imported(build(nodes, outputs=("a", "y")))
    assert kinds(graph) == ["Elementwise", "Elementwise"] and graph.outputs == ("a", "y")


def test_nodes_in_any_order() -> None:
    nodes = [
        helper.make_node("Neg", ["b"], ["y"]),
        helper.make_node("Abs", ["a"], ["b"]),
        helper.make_node("Exp", ["x"], ["a"]),
    ]
    np.testing.assert_allclose(run(imported(build(nodes)), {"x": X})["y"], -np.exp(X), rtol=1e-6)


def test_initializers_among_the_inputs() -> None:
    """Before IR version 4 every initializer was listed as an input."""
    model = build([helper.make_node("Add", ["x", "w"], ["y"])], {"w": np.ones(4, np.float32)})
    model.graph.input.append(helper.make_tensor_value_info("w", FLOAT, [4]))
    assert imported(model).inputs == ("x",)


def branch(name: str, nodes: list[onnx.NodeProto], output: str) -> onnx.GraphProto:
    return helper.make_graph(nodes, name, [], [onnx.ValueInfoProto(name=output)])


@pytest.mark.parametrize("taken", [True, False])
def test_if_with_a_constant_condition(taken: bool) -> None:
    """The branch is inlined; it may read values from outside, and the other branch may hold anything."""
    yes = branch("yes", [helper.make_node("Relu", ["h"], ["r"], name="act")], "r")
    no = branch("no", [helper.make_node("Neg", ["h"], ["r"], name="act")], "r")
    unknown = helper.make_node("Unheard", ["h"], ["r"], domain="far.away")
    (no if taken else yes).node[0].CopyFrom(unknown)
    nodes = [
        helper.make_node("Abs", ["x"], ["a"]),
        helper.make_node("Neg", ["a"], ["h"]),
        helper.make_node("If", ["condition"], ["y"], name="choice", then_branch=yes, else_branch=no),
    ]
    graph = imported(build(nodes, {"condition": np.asarray(taken)}))
    expected = np.zeros_like(X) if taken else np.abs(X)
    np.testing.assert_array_equal(run(graph, {"x": X})["y"], expected)
    assert graph.nodes[-1].name == "choice/act"


def test_model_local_functions_are_inlined() -> None:
    """Nested functions, attributes by reference and by default, values of the same name in both."""
    inner = helper.make_function(
        "own", "Scale", ["a"], ["b"],
        [helper.make_node("Constant", [], ["f"]), helper.make_node("Mul", ["a", "f"], ["b"])],
        [helper.make_opsetid("", 17)], ["factor"],
    )  # fmt: skip
    reference = onnx.AttributeProto(name="value_float", ref_attr_name="factor", type=onnx.AttributeProto.FLOAT)
    inner.node[0].attribute.append(reference)
    outer = helper.make_function(
        "own", "Twice", ["x", "unused"], ["y"],
        [
            helper.make_node("Scale", ["x"], ["b"], domain="own", factor=3.0),
            helper.make_node("Scale", ["b"], ["y"], domain="own", factor=0.5),
        ],
        [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)],
    )  # fmt: skip
    model = build([
        helper.make_node("Twice", ["x"], ["b"], domain="own", name="block"),
        helper.make_node("Twice", ["b"], ["y"], domain="own", name="block"),
    ])  # fmt: skip
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.functions.extend([inner, outer])
    graph = imported(model)
    np.testing.assert_allclose(run(graph, {"x": X})["y"], X * 2.25, rtol=1e-6)
    assert all(node.origin[0].startswith("block/") for node in graph.nodes)


def test_operators_on_constants_alone_use_the_reference() -> None:
    """Operators that Tamis does not have are evaluated at import when all their inputs are constants."""
    nodes = [
        helper.make_node("BitShift", ["n", "one"], ["n2"], direction="LEFT"),
        helper.make_node("Cast", ["n2"], ["f"], to=FLOAT),
        helper.make_node("Det", ["matrix"], ["d"]),
        helper.make_node("Mul", ["f", "d"], ["factor"]),
        helper.make_node("Mul", ["x", "factor"], ["y"]),
    ]
    constants = {
        "n": np.asarray([3], np.uint8),
        "one": np.asarray([1], np.uint8),
        "matrix": np.asarray([[2, 0], [0, 4]], np.float32),
    }
    graph = imported(build(nodes, constants))
    assert kinds(graph) == ["Elementwise"]
    np.testing.assert_allclose(run(graph, {"x": X})["y"], X * 48, rtol=1e-6)


def test_constants_made_by_operators() -> None:
    nodes = [
        helper.make_node("Constant", [], ["ints"], value_ints=[2, 4]),
        helper.make_node(
            "ConstantOfShape",
            ["ints"],
            ["twos"],
            value=numpy_helper.from_array(np.asarray([2.0], np.float32)),
        ),
        helper.make_node("Range", ["a", "b", "c"], ["range"]),
        helper.make_node("NonZero", ["mask"], ["where"]),
        helper.make_node("Gather", ["range", "where"], ["picked"]),
        helper.make_node("Squeeze", ["picked"], ["row"]),
        helper.make_node("EyeLike", ["x"], ["eye"]),
        helper.make_node("Size", ["x"], ["size"]),
        helper.make_node("Cast", ["size"], ["eight"], to=FLOAT),
        helper.make_node("Sum", ["x", "twos", "row", "eye", "eight"], ["y"]),
    ]
    constants = {
        "a": np.asarray(0.5, np.float32),
        "b": np.asarray(3.0, np.float32),
        "c": np.asarray(0.5, np.float32),
        "mask": np.asarray([1, 0, 1, 1, 1]),
    }
    graph = imported(build(nodes, constants))
    expected = X + 2 + np.asarray([0.5, 1.5, 2, 2.5], np.float32) + np.eye(2, 4, dtype=np.float32) + 8
    np.testing.assert_allclose(run(graph, {"x": X})["y"], expected, rtol=1e-6)


def test_sparse_initializer() -> None:
    dense = np.zeros((4, 3), np.float32)
    dense[1, 2], dense[3, 0] = 5, -2
    values = helper.make_tensor("w", FLOAT, [2], [5.0, -2.0])
    places = helper.make_tensor("places", TensorProto.INT64, [2, 2], [1, 2, 3, 0])
    model = build([helper.make_node("MatMul", ["x", "w"], ["y"])])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [4, 3]))
    np.testing.assert_allclose(run(imported(model), {"x": X})["y"], X @ dense, rtol=1e-6)


def test_four_bit_weights_in_blocks() -> None:
    """Block-quantised int4 weights, as language models have them, become float32."""
    random = np.random.default_rng(0)
    numbers = random.integers(-8, 8, (4, 6))
    scales = np.asarray(random.random((2, 6)), np.float32)
    weight = helper.make_tensor("w", TensorProto.INT4, [4, 6], numbers.reshape(-1).tolist())
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["d"], axis=0, block_size=2),
        helper.make_node("MatMul", ["x", "d"], ["y"]),
    ]
    model = build(nodes, {"s": scales}, opset=21)
    model.graph.initializer.append(weight)
    expected = X @ (numbers * np.repeat(scales, 2, axis=0))
    np.testing.assert_allclose(run(imported(model), {"x": X})["y"], expected, rtol=1e-5, atol=1e-6)


def test_constant_on_the_left_swaps() -> None:
    graph = imported(build([helper.make_node("Sub", ["one", "x"], ["y"])], {"one": np.asarray(1.0, np.float32)}))
    (node,) = graph.nodes
    assert isinstance(node.op, Elementwise) and node.op.program[0].swap and node.inputs[0] == "x"
    np.testing.assert_array_equal(run(graph, {"x": X})["y"], 1 - X)


def test_exact_run_is_in_double_precision() -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Sigmoid", ["h"], ["y"])]
    weight = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)
    graph = imported(build(nodes, {"w": weight}))
    result = run(graph, {"x": X}, exact=True)["y"]
    wide = X.astype(np.float64) @ weight.astype(np.float64)
    assert result.dtype == np.float64
    np.testing.assert_allclose(result, 1 / (1 + np.exp(-wide)), rtol=1e-15)
