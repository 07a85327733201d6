"""An index that lies outside of what it selects from is one clear error, whichever tactic won, never silent numbers."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tamis.compiler import BuildConfig, build
from tamis.compiler.importer import import_onnx
from tamis.compiler.ir.graph import Graph, Node, TensorType
from tamis.compiler.ir.ops import Cast, Elementwise, Gather, GatherND, Pointwise, Reshape, TopK
from tamis.compiler.tactics.indices import index_limits, refuses_indices
from tamis.compiler.tactics.openvino import OpenVino
from tamis.devices.base import BoundShape
from tamis.devices.cpu import CpuDevice
from tamis.errors import InputError
from tamis.formats.dtype import DType
from tamis.runtime.session import Session

TABLE = np.arange(40, dtype=np.float32).reshape(8, 5)


def model(op: str, shape: list[int], **attributes: object) -> onnx.ModelProto:
    """A table of eight rows and five columns that is selected from, or written into, at run-time indices."""
    inputs = ["table", "i"]
    initializers = [numpy_helper.from_array(TABLE, "table")]
    if op.startswith("Scatter"):
        rows = [*shape[:-1], 5] if op == "ScatterND" and shape[-1] == 1 else shape[:-1] if op == "ScatterND" else shape
        initializers.append(numpy_helper.from_array(np.full(rows, 2, np.float32), "updates"))
        inputs.append("updates")
    indices = helper.make_tensor_value_info("i", TensorProto.INT64, shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([helper.make_node(op, inputs, ["y"], **attributes)], "g", [indices], [y], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


CASES = {
    "gather": (model("Gather", [3]), [0, 7, -8], [[0, 8, 1], [0, -9, 1]]),
    "gather-columns": (model("Gather", [2, 1], axis=1), [[4], [-5]], [[[5], [0]], [[0], [-6]]]),
    "gather-elements": (model("GatherElements", [1, 5], axis=0), [[0, 7, -8, 1, 2]], [[[0, 8, 0, 0, 0]]]),
    "gather-nd": (model("GatherND", [2, 2]), [[7, 4], [-8, -5]], [[[0, 5], [0, 0]], [[8, 0], [0, 0]], [[0, -6]] * 2]),
    "scatter-elements": (model("ScatterElements", [1, 5], axis=0), [[0, 7, -8, 1, 2]], [[[0, 8, 0, 0, 0]]]),
    "scatter-elements-add": (
        model("ScatterElements", [1, 5], axis=0, reduction="add"), [[0, 7, -8, 1, 2]], [[[0, 8, 0, 0, 0]]],
    ),
    "scatter-nd": (model("ScatterND", [2, 2]), [[7, 4], [-8, 1]], [[[0, 5], [0, 0]], [[8, 0], [0, 0]], [[1, -6]] * 2]),
    "scatter-nd-add": (model("ScatterND", [2, 1], reduction="add"), [[7], [-8]], [[[8], [0]], [[0], [-9]]]),
    "scatter-nd-max": (model("ScatterND", [2, 1], reduction="max"), [[7], [-7]], [[[8], [0]], [[0], [-9]]]),
}  # fmt: skip


@pytest.mark.parametrize("excluded", [(), ("openvino",), ("aten",)], ids=["all", "no-openvino", "no-aten"])
@pytest.mark.parametrize("name", CASES)
def test_an_index_outside_is_one_clear_error(name: str, excluded: tuple[str, ...]) -> None:
    onnx_model, good, bad = CASES[name]
    session = Session(build(onnx_model, BuildConfig(repetitions=3, exclude_tactics=excluded)))
    expected = onnx.reference.ReferenceEvaluator(onnx_model).run(None, {"i": np.array(good)})[0]
    for indices in bad:
        with pytest.raises(InputError, match=r"an index lies outside .*: .*Check the integer inputs"):
            session.run({"i": np.array(indices)})
        np.testing.assert_array_equal(session.run({"i": np.array(good)})["y"], expected)


def test_openvino_looks_at_its_indices() -> None:
    pytest.importorskip("openvino")
    graph = import_onnx(CASES["gather"][0])
    tactic, device = OpenVino(), CpuDevice(threads=1)
    (region,) = tactic.regions(graph, frozenset(node.name for node in graph.nodes))
    (choice,) = tactic.choices(graph, region, device.info(), BuildConfig())
    lowered = tactic.lower(graph, region, choice)
    assert lowered.steps[0].attributes["index_limits"] == ((0, 8),)
    slots = [device.upload(np.array([0, 8, -1])), device.upload(np.zeros((3, 5), np.float32))]
    bound = [
        BoundShape(slot, graph.types[value].shape, format, preallocated=True)
        for slot, (value, format) in enumerate(
            zip((*region.inputs, *region.outputs), (*choice.inputs, *choice.outputs), strict=True)
        )
    ]
    constants = {name: device.upload(array) for name, array in lowered.constants.items()}
    run = device.bind(lowered.steps[0], constants, bound[:1], bound[1:])
    with pytest.raises(IndexError, match="8 is out of range for 8"):
        run(slots)
    slots[0][1] = -9
    with pytest.raises(IndexError, match="-9 is out of range for 8"):
        run(slots)
    slots[0][1] = -8
    run(slots)
    np.testing.assert_array_equal(device.download(slots[1]), TABLE[[0, 0, 7]])


def indexed(op: object, before: tuple[Node, ...], types: dict[str, TensorType]) -> Graph:
    """A table read at indices that ``before`` makes."""
    nodes = (*before, Node("look", op, ("table", "i"), ("y",)))  # type: ignore[arg-type]
    types = {"table": TensorType((8, 5)), "y": TensorType((3, 5)), **types}
    inputs = tuple(name for name in types if name in ("x", "other"))
    return Graph("g", inputs, ("y",), nodes, types, {"table": TABLE})


def test_only_indices_that_can_be_checked_at_the_border_pass() -> None:
    three, wide = TensorType((3,), DType.INT32), TensorType((3, 1), DType.INT64)
    copied = indexed(
        Gather(0), (Node("r", Reshape((3, 1)), ("x",), ("m",)), Node("c", Cast(DType.INT64), ("m",), ("i",))),
        {"x": three, "m": TensorType((3, 1), DType.INT32), "i": wide},
    )  # fmt: skip
    assert refuses_indices(copied, copied.nodes[-1]) is None
    assert index_limits(copied, copied.nodes, ("x",)) == ((0, 8),)
    assert index_limits(copied, copied.nodes[2:], ("i",)) == ((0, 8),)
    computed = indexed(
        Gather(0), (Node("plus", Elementwise((Pointwise("add", operand=1),)), ("x", "other"), ("i",)),),
        {"x": three, "other": three, "i": three},
    )  # fmt: skip
    assert "computed by 'plus'" in str(refuses_indices(computed, computed.nodes[-1]))
    rounded = indexed(Gather(0), (Node("c", Cast(DType.INT64), ("x",), ("i",)),), {"x": TensorType((3,)), "i": wide})
    assert "computed by 'c'" in str(refuses_indices(rounded, rounded.nodes[-1]))
    for width, passes in ((8, True), (9, False)):
        found = indexed(
            Gather(0), (Node("top", TopK(3, 0), ("x",), ("v", "i")),),
            {"x": TensorType((width,)), "v": TensorType((3,)), "i": TensorType((3,), DType.INT64)},
        )  # fmt: skip
        assert (refuses_indices(found, found.nodes[-1]) is None) == passes
        assert index_limits(found, found.nodes, ("x",)) == ()
    many = indexed(GatherND(), (), {"x": TensorType((3, 1), DType.INT64)})
    many = Graph("g", ("x",), ("y",), (Node("look", GatherND(), ("table", "x"), ("y",)),), many.types, {"table": TABLE})
    assert "run time only" in str(refuses_indices(many, many.nodes[0]))
