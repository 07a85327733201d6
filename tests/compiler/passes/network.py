"""Small graphs written by hand, and the question every test of a pass asks: is the result the same?"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tamis.compiler.ir.evaluate import run
from tamis.compiler.ir.graph import Graph, Node, TensorType
from tamis.compiler.ir.infer import infer
from tamis.compiler.ir.ops import Conv, Elementwise, Op, Pointwise
from tamis.compiler.ir.printer import node_text
from tamis.compiler.ir.verify import verify
from tamis.formats.dtype import DType


class Network:
    """Collects nodes; types come from ``infer``. Values are named after the nodes."""

    def __init__(self, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.inputs: list[str] = []
        self.nodes: list[Node] = []
        self.types: dict[str, TensorType] = {}
        self.constants: dict[str, np.ndarray] = {}

    def input(self, name: str, *shape: int, dtype: DType = DType.FLOAT32) -> str:
        self.inputs.append(name)
        self.types[name] = TensorType(shape, dtype)
        return name

    def constant(self, name: str, array: object) -> str:
        array = np.asarray(array)
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        self.constants[name] = array
        self.types[name] = TensorType(array.shape, DType.of(array))
        return name

    def weight(self, name: str, *shape: int) -> str:
        return self.constant(name, self.random.standard_normal(shape))

    def node(self, op: Op, *inputs: str, name: str, outputs: int = 1) -> str:
        types = infer(op, [self.types[value] for value in inputs])[:outputs]
        names = tuple(name if index == 0 else f"{name}:{index}" for index in range(len(types)))
        self.types.update(zip(names, types, strict=True))
        self.nodes.append(Node(name, op, inputs, names, (name,)))
        return name

    def unary(self, kind: str, x: str, *params: float, name: str) -> str:
        return self.node(Elementwise((Pointwise(kind, params),)), x, name=name)

    def binary(self, kind: str, a: str, b: str, *, name: str) -> str:
        return self.node(Elementwise((Pointwise(kind, operand=1),)), a, b, name=name)

    def conv(self, x: str, channels: int, *, name: str, kernel: int = 3, pad: int = 1, groups: int = 1) -> str:
        weight = self.weight(f"{name}.w", channels, self.types[x].shape[1] // groups, kernel, kernel)
        bias = self.weight(f"{name}.b", channels)
        op = Conv((1, 1), (pad,) * 4, (1, 1), groups=groups, bias=True)
        return self.node(op, x, weight, bias, name=name)

    def graph(self, *outputs: str) -> Graph:
        made = Graph("net", tuple(self.inputs), outputs, tuple(self.nodes), self.types, self.constants)
        verify(made)
        return made


def check(
    before: Graph,
    pass_: Callable[[Graph], Graph],
    *,
    tolerance: float = 1e-6,
    scale: float = 2.0,
    exact: bool = True,
) -> Graph:
    """Run a pass; the graph after it is consistent and computes the same in float64."""
    after = pass_(before)
    verify(after)
    assert after.inputs == before.inputs
    assert after.outputs == before.outputs
    assert [after.types[value] for value in after.outputs] == [before.types[value] for value in before.outputs]
    same(before, after, tolerance=tolerance, scale=scale, exact=exact)
    return after


def same(before: Graph, after: Graph, *, tolerance: float = 1e-6, scale: float = 2.0, exact: bool = True) -> None:
    """Both graphs give the same on random inputs; NaN on either side never passes."""
    inputs = random_inputs(before, scale)
    expected, found = run(before, inputs, exact=exact), run(after, inputs, exact=exact)
    for name, array in expected.items():
        assert np.isfinite(array).all(), f"the test itself makes no sense: {name} is not finite"
        assert np.isfinite(found[name]).all(), name
        if array.size:
            largest = max(float(np.abs(array.astype(np.float64)).max()), 1.0)
            error = float(np.abs(found[name].astype(np.float64) - array.astype(np.float64)).max())
            assert error <= tolerance * largest, f"{name}: {error} of {largest}"


def random_inputs(graph: Graph, scale: float = 2.0, seed: int = 7) -> dict[str, np.ndarray]:
    """One random array for each graph input."""
    random = np.random.default_rng(seed)
    arrays = {}
    for name in graph.inputs:
        type_ = graph.types[name]
        if type_.dtype == DType.BOOL:
            arrays[name] = random.random(type_.shape) < 0.7
        elif type_.dtype.is_float:
            arrays[name] = (random.standard_normal(type_.shape) * scale).astype(type_.dtype.numpy)
        else:
            arrays[name] = random.integers(0, 2, type_.shape).astype(type_.dtype.numpy)
    return arrays


def body(graph: Graph) -> list[str]:
    """The nodes in the printer's words: ``y = Conv(%x, w) ...``."""
    return [f"{', '.join(node.outputs)} = {node_text(graph, node)}" for node in graph.nodes]
