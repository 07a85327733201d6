"""The editor: renames, names of outputs, order, leftovers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tamis.compiler.ir.graph import Graph, GraphEditor, Node, TensorType, drop_unused, topological_order
from tamis.compiler.ir.ops import Elementwise, Pointwise
from tamis.compiler.ir.verify import verify

RELU = Elementwise((Pointwise("relu"),))
ADD = Elementwise((Pointwise("add", operand=1),))


def chain() -> Graph:
    """x -> a -> b -> c, outputs b and c."""
    return Graph(
        "net",
        ("x",),
        ("b", "c"),
        (
            Node("na", RELU, ("x",), ("a",)),
            Node("nb", ADD, ("a", "k"), ("b",)),
            Node("nc", RELU, ("b",), ("c",)),
        ),
        {value: TensorType((2,)) for value in "xabck"},
        {"k": np.ones(2, np.float32)},
    )


def test_nothing_to_do_is_the_same_graph() -> None:
    graph = chain()
    assert GraphEditor(graph).finish() is graph


def test_replace_keeps_the_place() -> None:
    editor = GraphEditor(chain())
    editor.replace_node(chain().nodes[0], replace(chain().nodes[0], name="other"))
    after = editor.finish()
    verify(after)
    assert [node.name for node in after.nodes] == ["other", "nb", "nc"]


def test_rename_through_several() -> None:
    editor = GraphEditor(chain())
    for node in chain().nodes[:2]:
        editor.remove_node(node)
        editor.rename(node.output, node.inputs[0])
    assert editor.resolve("b") == "x"
    after = editor.finish()
    verify(after)
    # b is an output and x an input: the copy keeps the public name
    assert after.outputs == ("b", "c")
    assert {node.output: node.inputs for node in after.nodes} == {"b": ("x",), "c": ("x",)}
    assert not after.constants


def test_output_takes_over_a_name() -> None:
    editor = GraphEditor(chain())
    editor.remove_node(chain().nodes[1])
    editor.rename("b", "a")
    after = editor.finish()
    verify(after)
    assert [(node.inputs, node.outputs) for node in after.nodes] == [(("x",), ("b",)), (("b",), ("c",))]


def test_two_outputs_become_one_value() -> None:
    editor = GraphEditor(chain())
    editor.remove_node(chain().nodes[2])
    editor.rename("c", "b")
    after = editor.finish()
    verify(after)
    assert after.outputs == ("b", "c")
    assert after.nodes[-1] == Node("output.c", Elementwise(()), ("b",), ("c",))


def test_constant_as_output() -> None:
    editor = GraphEditor(chain())
    editor.remove_node(chain().nodes[1])
    editor.rename("b", editor.add_constant("k", np.zeros(2, np.float32)))
    after = editor.finish()
    verify(after)
    assert after.outputs == ("b", "c")
    assert set(after.constants) == {"k.1"}


def test_fresh_names() -> None:
    editor = GraphEditor(chain())
    assert editor.fresh("new") == "new"
    assert editor.fresh("a") == "a.1"
    assert editor.fresh_node("na") == "na.1"
    editor.add_node(Node("na.1", RELU, ("x",), ("a.1",)), {"a.1": TensorType((2,))})
    assert editor.fresh_node("na") == "na.2"
    assert editor.fresh("a") == "a.2"


def test_order() -> None:
    nodes = list(chain().nodes)
    assert topological_order(nodes[::-1], {"x", "k"}) == nodes
    assert topological_order(nodes, {"x", "k"}) == nodes
    with pytest.raises(ValueError, match="'nb' reads 'k'"):
        topological_order(nodes, {"x"})
    cycle = [replace(nodes[0], inputs=("c",)), *nodes[1:]]
    with pytest.raises(ValueError, match="cycle"):
        topological_order(cycle, {"x", "k"})


def test_order_of_a_deep_chain_needs_no_recursion() -> None:
    nodes = [Node(f"n{i}", RELU, (f"v{i}",), (f"v{i + 1}",)) for i in range(5000)]
    assert topological_order(nodes[::-1], {"v0"}) == nodes


def test_order_with_a_diamond() -> None:
    top = Node("top", RELU, ("x",), ("t",))
    left = Node("left", RELU, ("t",), ("l",))
    right = Node("right", ADD, ("t", "l"), ("r",))
    end = Node("end", ADD, ("r", "l"), ("e",))
    assert topological_order([end, right, left, top], {"x"}) == [top, left, right, end]


def test_drop_unused() -> None:
    nodes = list(chain().nodes)
    assert drop_unused(nodes, ["b"]) == nodes[:2]
    assert drop_unused(nodes, []) == []


def test_lookups() -> None:
    graph = chain()
    assert graph.producers()["b"].name == "nb"
    assert [node.name for node in graph.consumers()["b"]] == ["nc"]
    assert graph.is_constant("k")
    assert not graph.is_constant("x")
    twice = replace(graph, nodes=(*graph.nodes, Node("nd", ADD, ("c", "c"), ("d",))))
    assert [node.name for node in twice.consumers()["c"]] == ["nd"]
