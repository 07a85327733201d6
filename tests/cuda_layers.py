"""Layers around the matrix products, for tests of the CUDA kernels in emulation and on a GPU."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tamis.compiler.ir.evaluate import evaluate
from tamis.compiler.ir.graph import Node, TensorType
from tamis.compiler.ir.infer import infer
from tamis.compiler.ir.ops import Elementwise, LayerNorm, Op, Pointwise, Pool, Reduce, Softmax
from tamis.compiler.tactics.base import Layer


@dataclass(frozen=True)
class Case:
    """An operator, the shapes of its inputs, and which of them are constants."""

    name: str
    op: Op
    shapes: tuple[tuple[int, ...], ...]
    constants: tuple[int, ...] = ()
    outputs: int = 1

    def layer(self) -> tuple[Layer, list[np.ndarray]]:
        """The layer, and random float32 values of all its inputs."""
        generator = np.random.default_rng(11)
        arrays = [generator.standard_normal(shape).astype(np.float32) for shape in self.shapes]
        names = tuple(f"v{index}" for index in range(len(arrays)))
        outputs = tuple(f"y{index}" for index in range(self.outputs))
        types = {name: TensorType(array.shape) for name, array in zip(names, arrays, strict=True)}
        results = infer(self.op, [types[name] for name in names])
        types |= dict(zip(outputs, results[: self.outputs], strict=True))
        constants = {names[index]: arrays[index] for index in self.constants}
        return Layer(Node("layer", self.op, names, outputs), types, constants), arrays

    def expected(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        """All results in float64."""
        return list(evaluate(self.op, [array.astype(np.float64) for array in arrays]))[: self.outputs]


def program(*steps: Pointwise) -> Elementwise:
    return Elementwise(steps)


def step(kind: str, operand: int | None = None, swap: bool = False, *params: float) -> Pointwise:
    return Pointwise(kind, tuple(params), operand, swap)


CASES = (
    Case("relu", program(step("relu")), ((3, 70),)),
    Case("residual relu", program(step("add", 1), step("relu")), ((2, 24, 5, 7), (2, 24, 5, 7))),
    Case("scale and shift", program(step("mul", 1), step("add", 2), step("silu")), ((2, 16, 6, 5), (16, 1, 1), (16, 1, 1)), (1, 2)),
    Case("gate", program(step("sigmoid"), step("mul", 1)), ((2, 32, 1, 1), (2, 32, 7, 3))),
    Case("numbers", program(step("sub", 1, True), step("mul", 2), step("clip", None, False, -1.0, 0.5)), ((4, 33), (1, 1), ()), (1, 2)),
    Case("twice the same", program(step("mul", 0), step("gelu"), step("add", 0)), ((5, 129),)),
    Case("bias of rows", program(step("add", 1), step("gelu_tanh")), ((2, 17, 48), (48,)), (1,)),
    Case("large constant", program(step("mul", 1)), ((1, 160, 160), (160, 160)), (1,)),
    Case("mask", program(step("add", 1)), ((2, 3, 9, 9), (2, 1, 1, 9))),
    Case("softmax", Softmax(-1), ((2, 3, 7, 49),)),
    Case("log softmax", Softmax(1, log=True), ((2, 1000),)),
    Case("layer norm", LayerNorm(-1, 1e-5), ((2, 9, 96), (96,), (96,)), (1, 2)),
    Case("layer norm of two axes", LayerNorm(-2, 1e-6, True, False), ((3, 5, 24), (24,)), (1,)),
    Case("rms norm", LayerNorm(-1, 1e-6, True, False, rms=True), ((4, 64), (64,)), (1,)),
    Case("residual norm", LayerNorm(-1, 1e-5, residual=True), ((2, 5, 80), (80,), (80,), (2, 5, 80)), (1, 2), 2),
    Case("plain norm", LayerNorm(-1, 1e-5, False, False), ((6, 35),)),
    Case("max pool", Pool("max", (3, 3), (2, 2), (1, 1, 1, 1), (1, 1)), ((2, 24, 11, 9),)),
    Case("average pool", Pool("average", (2, 3), (2, 1), (0, 1, 0, 1), (1, 1), True, True), ((1, 5, 7, 6),)),
    Case("global average", Reduce("mean", (2, 3), True), ((2, 40, 7, 7),)),
    Case("global maximum", Reduce("max", (2, 3), False), ((3, 8, 4, 5),)),
)  # fmt: skip
