"""Networks drawn at random: they branch, join, change shape and have several outputs.

Some of these lie in the memory of others: what no test that was written for a reason has in this combination.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

NODES = 12


class Draw:
    """A graph that grows by one random node at a time; ``values`` have known shapes."""

    def __init__(self, seed: int) -> None:
        self.random, self.numbers = random.Random(seed), np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        batch = self.random.choice((1, 3))
        self.values: dict[str, tuple[int, ...]] = {"x": (batch, 8, 6, 6)}

    def add(self, kind: str, inputs: list[str], *shapes: tuple[int, ...], **attributes: object) -> str:
        """A node and its outputs, of which the first is returned."""
        names = [f"v{len(self.values) + index}" for index in range(len(shapes))]
        self.nodes.append(helper.make_node(kind, inputs, names, f"n{len(self.nodes)}", **attributes))
        self.values |= dict(zip(names, shapes, strict=True))
        return names[0]

    def constant(self, array: np.ndarray) -> str:
        self.constants.append(numpy_helper.from_array(array, f"c{len(self.constants)}"))
        return self.constants[-1].name

    def weight(self, *shape: int) -> str:
        fan_in = max(int(np.prod(shape[1:])), 1)
        return self.constant((self.numbers.standard_normal(shape) / fan_in**0.5).astype(np.float32))

    def grow(self) -> None:
        """One more node, on a value that is drawn, most often a late one."""
        names = list(self.values)
        value = names[-1] if self.random.random() < 0.5 else self.random.choice(names)
        shape = self.values[value]
        self.random.choice(IMAGE_STEPS if len(shape) == 4 else MATRIX_STEPS)(self, value, shape)

    def model(self) -> onnx.ModelProto:
        """The graph; its outputs are what nothing reads, and some of what is read."""
        read = {name for node in self.nodes for name in node.input}
        made = [name for node in self.nodes for name in node.output]
        outputs = [name for name in made if name not in read or self.random.random() < 0.15]
        self.random.shuffle(outputs)
        graph = helper.make_graph(
            self.nodes, "random", [helper.make_tensor_value_info("x", TensorProto.FLOAT, self.values["x"])],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, self.values[name]) for name in outputs],
            self.constants,
        )  # fmt: skip
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        onnx.checker.check_model(model, full_check=True)
        return model


def convolve(draw: Draw, value: str, shape: tuple[int, ...]) -> None:
    filters, size = draw.random.choice((4, 8, 16)), draw.random.choice((1, 3))
    stride = draw.random.choice((1, 1, 2))
    extent = tuple((s - 1) // stride + 1 for s in shape[2:])
    inputs = [
        value,
        draw.weight(filters, shape[1], size, size),
        *([draw.weight(filters)] if draw.random.random() < 0.7 else []),
    ]
    draw.add("Conv", inputs, (shape[0], filters, *extent), pads=[size // 2] * 4, strides=[stride] * 2)


def activate(draw: Draw, value: str, shape: tuple[int, ...]) -> None:
    draw.add(draw.random.choice(("Relu", "Sigmoid", "Tanh", "HardSwish", "Identity")), [value], shape)


def join(draw: Draw, value: str, shape: tuple[int, ...]) -> None:
    others = [name for name, other in draw.values.items() if other == shape]
    draw.add(draw.random.choice(("Add", "Mul", "Sub")), [value, draw.random.choice(others)], shape)


def scale(draw: Draw, value: str, shape: tuple[int, ...]) -> None:
    broadcast = tuple(extent if draw.random.random() < 0.5 else 1 for extent in shape)
    draw.add("Mul", [value, draw.weight(*broadcast)], shape)


def concatenate(draw: Draw, value: str, shape: tuple[int, ...]) -> None:
    others = [n for n, o in draw.values.items() if len(o) == len(shape) and o[:1] + o[2:] == shape[:1] + shape[2:]]
    parts = [value, *draw.random.choices(others, k=draw.random.randint(1, 2))]
    draw.add("Concat", parts, (shape[0], sum(draw.values[p][1] for p in parts), *shape[2:]), axis=1)


def split(draw: Draw, value: str, shape: tuple[int, ...]) -> None:
    if shape[1] < 2:
        return activate(draw, value, shape)
    first = draw.random.randint(1, shape[1] - 1)
    sizes = draw.constant(np.array([first, shape[1] - first], np.int64))
    parts = [(shape[0], size, *shape[2:]) for size in (first, shape[1] - first)]
    draw.add("Split", [value, sizes], *parts, axis=1)
    return None


def transpose(draw: Draw, value: str, shape: tuple[int, ...]) -> None:
    order = [0, *draw.random.sample(range(1, len(shape)), len(shape) - 1)]
    draw.add("Transpose", [value], tuple(shape[axis] for axis in order), perm=order)


def pool(draw: Draw, value: str, shape: tuple[int, ...]) -> None:
    kind = draw.random.choice(("MaxPool", "AveragePool"))
    if min(shape[2:]) < 2:
        return activate(draw, value, shape)
    extent = tuple((s - 2) // 2 + 1 for s in shape[2:])
    draw.add(kind, [value], (*shape[:2], *extent), kernel_shape=[2, 2], strides=[2, 2])
    return None


def flatten(draw: Draw, value: str, shape: tuple[int, ...]) -> None:
    draw.add("Reshape", [value, draw.constant(np.array([shape[0], -1], np.int64))], (shape[0], int(np.prod(shape[1:]))))


def unflatten(draw: Draw, value: str, shape: tuple[int, ...]) -> None:
    target = (shape[0], shape[1], 1, 1)
    draw.add("Reshape", [value, draw.constant(np.array(target, np.int64))], target)


def multiply(draw: Draw, value: str, shape: tuple[int, ...]) -> None:
    outputs = draw.random.choice((3, 8, 32))
    if draw.random.random() < 0.5:
        draw.add("MatMul", [value, draw.weight(shape[1], outputs)], (shape[0], outputs))
    else:
        draw.add("Gemm", [value, draw.weight(outputs, shape[1]), draw.weight(outputs)], (shape[0], outputs), transB=1)


def soften(draw: Draw, value: str, shape: tuple[int, ...]) -> None:
    draw.add("Softmax", [value], shape, axis=draw.random.choice((1, -1)))


Step = Callable[[Draw, str, tuple[int, ...]], None]
COMMON: tuple[Step, ...] = (activate, join, scale, concatenate, split, soften)
IMAGE_STEPS: tuple[Step, ...] = (*COMMON, convolve, convolve, convolve, transpose, pool, flatten)
MATRIX_STEPS: tuple[Step, ...] = (*COMMON, multiply, multiply, unflatten)


def drawn(seed: int) -> Draw:
    """A whole graph."""
    draw = Draw(seed)
    for _ in range(NODES):
        draw.grow()
    return draw
