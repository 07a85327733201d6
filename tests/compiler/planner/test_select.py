"""The search over the graph against brute force on small random graphs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import pytest

from tamis.compiler.ir.graph import Graph, Node, TensorType
from tamis.compiler.ir.ops import Elementwise, Pointwise
from tamis.compiler.planner.options import Option
from tamis.compiler.planner.select import live_values, port_format, select
from tamis.compiler.tactics.base import Choice
from tamis.engine.plan import Format
from tamis.errors import BuildError, ModelError
from tamis.formats.dtype import DType

FORMATS = (
    Format(DType.FLOAT32), Format(DType.FLOAT32, "channels_last"), Format(DType.BFLOAT16, "channels_last"),
)  # fmt: skip
TYPE = TensorType((1, 8, 4, 4))


def random_graph(generator: np.random.Generator, count: int) -> Graph:
    values = ["x"]
    nodes = []
    for index in range(count):
        first = values[-1] if generator.random() < 0.7 else str(generator.choice(values))
        second = str(generator.choice(values))
        inputs = (first,) if generator.random() < 0.5 else (first, second)
        program = (Pointwise("relu"),) if len(inputs) == 1 else (Pointwise("add", operand=1),)
        nodes.append(Node(f"n{index}", Elementwise(program), inputs, (f"v{index}",)))
        values.append(f"v{index}")
    return Graph("random", ("x",), (values[-1],), tuple(nodes), dict.fromkeys(values, TYPE), {})


def random_options(generator: np.random.Generator, graph: Graph) -> list[Option]:
    options = []
    for index, node in enumerate(graph.nodes):
        for format in FORMATS:
            inputs = tuple((v, format) for v in dict.fromkeys(node.inputs))
            outputs = ((node.output, format),)
            choice = Choice(f"t{format}", format.dtype, (format,) * len(inputs), (format,))
            options.append(Option(index, index + 1, choice, inputs, outputs, float(generator.integers(1, 20))))
    return options


def conversion_table(generator: np.random.Generator) -> Mapping[tuple[Format, Format], float]:
    return {pair: float(generator.integers(1, 12)) for pair in itertools.permutations(FORMATS, 2)}


def cost_of(graph: Graph, chosen: tuple[Option, ...], table: Mapping[tuple[Format, Format], float]) -> float:
    formats = {"x": port_format(graph, "x")}
    total = 0.0
    for option in chosen:
        total += option.cost_us + sum(table[formats[v], f] for v, f in option.inputs if formats[v] != f)
        formats |= dict(option.outputs)
    target = port_format(graph, graph.outputs[0])
    last = formats[graph.outputs[0]]
    return total + (table[last, target] if last != target else 0.0)


@pytest.mark.parametrize("seed", range(25))
def test_finds_the_optimum(seed: int) -> None:
    generator = np.random.default_rng(seed)
    graph = random_graph(generator, 6)
    options, table = random_options(generator, graph), conversion_table(generator)
    found = select(graph, options, lambda type_, a, b: table[a, b])
    per_layer = [[o for o in options if o.start == i] for i in range(len(graph.nodes))]
    best = min(cost_of(graph, chosen, table) for chosen in itertools.product(*per_layer))
    assert found.cost_us == pytest.approx(best)
    assert cost_of(graph, found.options, table) == pytest.approx(best)


def test_a_region_is_taken_only_when_it_is_cheaper_than_its_parts() -> None:
    generator = np.random.default_rng(3)
    graph = random_graph(generator, 5)
    options = random_options(generator, graph)
    row_major = FORMATS[0]
    alone = select(graph, options, lambda type_, a, b: 1.0).cost_us
    for cost, taken in ((alone - 1, True), (alone + 1, False)):
        choice = Choice("region", DType.FLOAT32, (row_major,), (row_major,))
        whole = Option(0, 5, choice, (("x", row_major),), ((graph.outputs[0], row_major),), cost)
        found = select(graph, [*options, whole], lambda type_, a, b: 1.0)
        assert (found.options == (whole,)) is taken


def test_a_layer_without_options_is_named() -> None:
    generator = np.random.default_rng(4)
    graph = random_graph(generator, 4)
    options = [o for o in random_options(generator, graph) if o.start != 2]
    with pytest.raises(BuildError, match="n2"):
        select(graph, options, lambda type_, a, b: 1.0)


def test_live_values_cover_every_read() -> None:
    graph = random_graph(np.random.default_rng(5), 12)
    live = live_values(graph)
    for position, node in enumerate(graph.nodes):
        assert set(node.inputs) <= set(live[position])
    assert graph.outputs[0] in live[-1]


def test_a_constant_with_nan_is_the_model_s_fault() -> None:
    node = Node("mean", Elementwise((Pointwise("add", operand=1),)), ("x", "bias"), ("y",))
    for value, expected in ((np.nan, ModelError), (np.inf, ModelError), (1.0, BuildError)):
        constants = {"bias": np.full((1, 8, 4, 4), value, np.float32)}
        graph = Graph("g", ("x",), ("y",), (node,), dict.fromkeys(("x", "bias", "y"), TYPE), constants)
        with pytest.raises(expected, match="layer 'mean'"):
            select(graph, [], lambda *formats: 0.0)
