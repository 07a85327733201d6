"""Layers with one convolution, for tests of the tactics and kernels that run them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tamis.compiler.ir.evaluate import evaluate
from tamis.compiler.ir.graph import Node, TensorType
from tamis.compiler.ir.infer import infer
from tamis.compiler.ir.ops import Conv, Pointwise
from tamis.compiler.tactics.base import Layer

RELU, SILU, SIGMOID, TANH = (Pointwise(kind) for kind in ("relu", "silu", "sigmoid", "tanh"))
GELU, GELU_TANH = Pointwise("gelu"), Pointwise("gelu_tanh")
RELU6, CLIP, LEAKY = Pointwise("clip", (0.0, 6.0)), Pointwise("clip", (-0.5, 0.75)), Pointwise("leaky_relu", (0.1,))
RESIDUAL = Pointwise("add", operand=-1)  # its operand is put in by ``conv_layer``


def conv(
    *epilogue: Pointwise,
    stride: int = 1,
    pads: int | tuple[int, int, int, int] = 1,
    dilation: int = 1,
    groups: int = 1,
    bias: bool = True,
) -> Conv:
    """A 2-D convolution."""
    around = (pads,) * 4 if isinstance(pads, int) else pads
    return Conv((stride, stride), around, (dilation, dilation), groups, bias, tuple(epilogue))


def conv_layer(
    op: Conv, image: tuple[int, ...], weight: tuple[int, ...], *, constant: bool = True
) -> tuple[Layer, dict[str, np.ndarray]]:
    """A layer on [N, C, H, W] with a weight [K, C / groups, R, S], and random float32 values of all its inputs.

    Sums have about unit variance. ``constant`` tells whether weight and bias are constants.
    """
    generator = np.random.default_rng(7)
    names = ["x", "w", *(["b"] if op.bias else [])]
    fan_in = float(np.prod(weight[1:]))
    arrays = {
        "x": generator.standard_normal(image),
        "w": generator.standard_normal(weight) / fan_in**0.5,
        "b": generator.standard_normal(weight[0]),
    }
    types = {name: TensorType(arrays[name].shape) for name in names}
    epilogue = []
    result = infer(replace(op, epilogue=()), [types[name] for name in names])[0]
    for step in op.epilogue:
        if step.operand is None:
            epilogue.append(step)
            continue
        name = f"r{len(names)}"
        names.append(name)
        epilogue.append(replace(step, operand=len(names) - 1))
        types[name], arrays[name] = result, generator.standard_normal(result.shape)
    op = replace(op, epilogue=tuple(epilogue))
    types["y"] = infer(op, [types[name] for name in names])[0]
    arrays = {name: arrays[name].astype(np.float32) for name in names}
    constants = {name: arrays[name] for name in ("w", "b") if constant and name in names}
    return Layer(Node("layer", op, tuple(names), ("y",)), types, constants), arrays


def expected(layer: Layer, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """The layer's result in float64."""
    values = [arrays[name].astype(np.float64) for name in layer.node.inputs]
    result: np.ndarray = evaluate(layer.op, values)[0]
    return result
