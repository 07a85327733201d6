from __future__ import annotations

from pathlib import Path
from time import perf_counter

import numpy as np
import pytest
from network import Network, body, same

from tamis.compiler.ir.graph import Graph
from tamis.compiler.ir.ops import LayerNorm, Linear, MatMul, Transpose
from tamis.compiler.ir.printer import summary
from tamis.compiler.passes import PASSES, run_passes
from tamis.errors import OutputError


def block() -> Graph:
    net = Network()
    x = net.input("x", 1, 4, 6, 6)
    y = net.binary("mul", net.conv(x, 4, name="c1"), net.weight("g", 4, 1, 1), name="scaled")
    y = net.binary("mul", y, net.unary("sigmoid", y, name="gate"), name="silu")
    net.binary("add", x, net.conv(y, 4, name="c2"), name="y")
    return net.graph("y")


def test_film(tmp_path: Path) -> None:
    before = block()
    after = run_passes(before, dump=tmp_path / "film", verify=True)
    same(before, after)
    names = sorted(path.name for path in (tmp_path / "film").iterdir())
    assert names[0] == "00-import.txt"
    assert names[1:] == [f"{index:02d}-{pass_.__name__}.txt" for index, pass_ in enumerate(PASSES, start=1)]
    assert (tmp_path / "film" / names[0]).read_text().splitlines()[-1] == "6 nodes: 4 Elementwise, 2 Conv"
    assert [line.split("| ")[1] for line in body(after)] == ["+c1.bias silu", "+c2.b +%x"]
    assert set(after.sparsity) == {"c1.w.scaled", "c2.w"}


def test_activation_behind_a_layer_is_whole() -> None:
    """The +3 of a spelled-out hard sigmoid does not vanish into the bias."""
    net = Network()
    y = net.conv(net.input("x", 1, 4, 6, 6), 4, name="conv")
    y = net.binary("add", y, net.constant("three", np.float32(3)), name="shifted")
    y = net.unary("clip", y, 0.0, 6.0, name="clipped")
    net.binary("div", y, net.constant("six", np.float32(6)), name="y")
    after = run_passes(net.graph("y"), verify=True)
    assert [line.split("| ")[1] for line in body(after)] == ["+conv.b hardsigmoid(0.166667,0.5)"]


def test_running_twice_changes_nothing() -> None:
    once = run_passes(block(), verify=True)
    twice = run_passes(once, verify=True)
    assert body(twice) == body(once)


def test_dump_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write the graph to"):
        run_passes(block(), dump=tmp_path / "file")


@pytest.mark.parametrize("seed", range(40))
def test_random_graphs(seed: int) -> None:
    """Layers, scales, activations, residuals and rearrangements in any order, with values read anywhere."""
    net = Network(seed)
    random = np.random.default_rng(seed)
    values = [net.input("x", 2, 4, 6, 6), net.input("z", 2, 4, 6, 6)]

    def pick() -> str:
        return values[-1] if random.random() < 0.6 else values[random.integers(len(values))]

    shapes = [(4, 1, 1), (1, 4, 1, 1), (6,), (), (2, 4, 6, 6), (6, 1), (1, 1, 1, 1)]
    for index in range(25):
        name, x = f"n{index}", pick()
        match random.integers(11):
            case 0 | 1:
                pad, groups = int(random.integers(2)), int(random.choice([1, 2, 4]))
                values.append(net.conv(x, 4, name=name, kernel=1 + 2 * pad, pad=pad, groups=groups))
            case 2:
                values.append(net.node(Linear(), x, net.weight(f"{name}.w", 6, 6), name=name))
            case 3:
                values.append(net.node(MatMul(), x, pick(), name=name))
            case 4 | 5:
                kind = str(random.choice(["relu", "sigmoid", "tanh", "gelu", "neg"]))
                values.append(net.unary(kind, x, name=name))
            case 6 | 7:
                constant = net.weight(f"{name}.c", *shapes[random.integers(len(shapes))])
                pair = [x, constant] if random.random() < 0.7 else [constant, x]
                values.append(net.binary(str(random.choice(["add", "sub", "mul"])), *pair, name=name))
            case 8:
                values.append(net.binary(str(random.choice(["add", "mul", "max"])), x, pick(), name=name))
            case 9:
                turned = net.node(Transpose((0, 2, 3, 1)), x, name=f"{name}.t")
                scaled = net.binary("mul", turned, net.weight(f"{name}.c", 4), name=f"{name}.s")
                values.append(net.node(Transpose((0, 3, 1, 2)), scaled, name=name))
            case 10:
                values.append(net.node(LayerNorm(-1, 1e-3, False, False), x, name=name))
        # keep values near one, so that errors are seen
        values[-1] = net.unary("tanh", values[-1], name=f"{name}.near") if random.random() < 0.3 else values[-1]
    outputs = dict.fromkeys([values[-1], values[random.integers(2, len(values))], values[len(values) // 2]])
    before = net.graph(*(value for value in outputs if value not in net.inputs))
    after = run_passes(before, verify=True)
    same(before, after, tolerance=1e-5)
    assert len(after.nodes) <= len(before.nodes)


def test_a_thousand_nodes_in_a_moment() -> None:
    net = Network()
    x = net.input("x", 1, 8, 4, 4)
    for index in range(100):
        y = net.conv(x, 8, name=f"c{index}", kernel=1, pad=0)
        y = net.binary("mul", y, net.weight(f"g{index}", 8, 1, 1), name=f"m{index}")
        y = net.binary("mul", y, net.unary("sigmoid", y, name=f"s{index}"), name=f"a{index}")
        y = net.node(Transpose((0, 2, 3, 1)), y, name=f"t{index}")
        y = net.node(Transpose((0, 3, 1, 2)), y, name=f"u{index}")
        y = net.binary("add", y, net.constant(f"z{index}", np.zeros(1)), name=f"p{index}")
        y = net.node(LayerNorm(-1, 1e-3, False, False), y, name=f"l{index}")
        x = net.binary("add", x, y, name=f"r{index}")
    graph = net.graph(x)
    started = perf_counter()
    after = run_passes(graph)
    assert perf_counter() - started < 2
    assert summary(after) == "300 nodes: 100 Conv, 100 Elementwise, 100 LayerNorm"
