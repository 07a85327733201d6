from __future__ import annotations

from network import Network, check

from tamis.compiler.ir.graph import Graph
from tamis.compiler.passes.fuse_epilogue import fuse_epilogue
from tamis.compiler.passes.hoist_shortcuts import hoist_shortcuts


def names(graph: Graph) -> list[str]:
    return [node.name for node in graph.nodes]


def bottleneck(net: Network, x: str, number: int) -> str:
    """conv, relu, conv, relu, conv beside a convolution as the shortcut, as PyTorch exports them."""
    y = net.unary("relu", net.conv(x, 4, name=f"a{number}"), name=f"r{number}")
    y = net.unary("relu", net.conv(y, 4, name=f"b{number}"), name=f"s{number}")
    y = net.conv(y, 8, name=f"c{number}")
    shortcut = net.conv(x, 8, name=f"shortcut{number}")
    return net.unary("relu", net.binary("add", y, shortcut, name=f"sum{number}"), name=f"y{number}")


def test_shortcuts_come_first_and_the_branches_take_the_sums() -> None:
    net = Network()
    x = net.input("x", 1, 4, 6, 6)
    bottleneck(net, bottleneck(net, x, 1), 2)
    after = check(net.graph("y2"), hoist_shortcuts)
    block = ["shortcut{0}", "a{0}", "r{0}", "b{0}", "s{0}", "c{0}", "sum{0}", "y{0}"]
    assert names(after) == [name.format(number) for number in (1, 2) for name in block]
    fused = check(after, fuse_epilogue)
    last = next(node for node in fused.nodes if node.output == "y2")
    assert last.inputs[0] == "s2" and last.inputs[-1] == "shortcut2"
    assert hoist_shortcuts(after) is after


def test_two_layers_side_by_side_stay() -> None:
    net = Network()
    x = net.input("x", 1, 4, 6, 6)
    net.binary("add", net.conv(x, 4, name="a"), net.conv(x, 4, name="b"), name="y")
    graph = net.graph("y")
    assert hoist_shortcuts(graph) is graph


def test_a_shortcut_that_reads_what_the_branch_made_stays() -> None:
    net = Network()
    x = net.input("x", 1, 4, 6, 6)
    first = net.conv(x, 4, name="first")
    branch = net.conv(net.unary("relu", first, name="r"), 4, name="branch")
    late = net.conv(net.unary("tanh", first, name="t"), 4, name="late")
    net.binary("add", branch, late, name="y")
    assert names(hoist_shortcuts(net.graph("y"))) == ["first", "r", "branch", "t", "late", "y"]


def test_a_result_that_others_read_stays() -> None:
    net = Network()
    x = net.input("x", 1, 4, 6, 6)
    branch = net.conv(net.unary("relu", net.conv(x, 4, name="a"), name="r"), 4, name="b")
    shortcut = net.conv(x, 4, name="shortcut")
    net.binary("add", branch, shortcut, name="y")
    graph = net.graph("y", "shortcut")
    assert hoist_shortcuts(graph) is graph
