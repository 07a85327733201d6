"""Layers that the tactic ``tamis.hopper`` runs, for tests in emulation and on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from conv_layers import GELU, LEAKY, RELU, RELU6, RESIDUAL, SIGMOID, SILU, TANH, conv, conv_layer
from matrix_layers import layer_and_arrays, linear
from tamis.compiler.ir.evaluate import evaluate
from tamis.compiler.ir.graph import SparsityNote
from tamis.compiler.ir.ops import Pointwise
from tamis.compiler.tactics.base import Layer
from tamis.formats import TWO_FOUR, fits, magnitude_mask

HARDSWISH = Pointwise("hardswish")


@dataclass(frozen=True)
class GemmCase:
    """A layer with a 2:4 weight, or a dense one where groups of four do not fit, made when it is asked for."""

    name: str
    make: Callable[[], tuple[Layer, dict[str, np.ndarray]]]

    def layer(self) -> tuple[Layer, dict[str, np.ndarray]]:
        """The layer with its weight pruned along the channels, and float32 values of all inputs by name."""
        layer, arrays = self.make()
        name = layer.node.inputs[1]
        weight = arrays[name]
        if not fits(weight.shape, 1, TWO_FOUR.m):
            return replace(layer, constants={**layer.constants, name: weight}), arrays
        weight = np.where(magnitude_mask(weight, TWO_FOUR, 1), weight, np.float32(0))
        note = SparsityNote("2:4", 1, 0.5, 1.0)
        return replace(layer, constants={**layer.constants, name: weight}, note=note), {**arrays, name: weight}

    def expected(self, layer: Layer, arrays: dict[str, np.ndarray]) -> np.ndarray:
        """The result in float64."""
        return evaluate(layer.op, [arrays[name].astype(np.float64) for name in layer.node.inputs])[0]


def linear_layer(rows: int, inputs: int, outputs: int, *epilogue: Pointwise) -> tuple[Layer, dict[str, np.ndarray]]:
    layer, arrays = layer_and_arrays(linear(*epilogue), (rows, inputs), (outputs, inputs))
    named = dict(zip(layer.node.inputs, arrays, strict=True))
    named["w"] = named["w"] / np.float32(inputs**0.5)
    return layer, named


SMALL = (
    GemmCase("linear", lambda: linear_layer(40, 72, 72, RELU)),
    GemmCase("linear gelu", lambda: linear_layer(70, 64, 64, GELU)),
    GemmCase("rows of 52", lambda: linear_layer(40, 52, 72, RELU)),
    GemmCase("rows of 69", lambda: linear_layer(40, 69, 72, RELU)),
    GemmCase("rows of 13", lambda: linear_layer(40, 13, 72, RELU)),
    GemmCase("3x3", lambda: conv_layer(conv(RELU), (2, 64, 5, 5), (64, 64, 3, 3))),
    GemmCase("residual", lambda: conv_layer(conv(RESIDUAL, RELU), (1, 64, 5, 5), (40, 64, 3, 3))),
    GemmCase("activation first", lambda: conv_layer(conv(SILU, RESIDUAL), (1, 16, 6, 5), (64, 16, 3, 3))),
    GemmCase("strided 1x1", lambda: conv_layer(conv(LEAKY, stride=2, pads=0), (1, 72, 6, 6), (64, 72, 1, 1))),
    GemmCase("odd filters", lambda: conv_layer(conv(RELU6), (1, 32, 4, 4), (37, 32, 3, 3))),
    GemmCase("no bias", lambda: conv_layer(conv(HARDSWISH, bias=False), (1, 64, 4, 4), (64, 64, 1, 1))),
    GemmCase("dilated", lambda: conv_layer(conv(SIGMOID, TANH, dilation=2, pads=2), (1, 64, 7, 7), (64, 64, 3, 3))),
)  # fmt: skip
GROUPED = (
    GemmCase("32 groups", lambda: conv_layer(conv(RELU, groups=32), (1, 128, 5, 5), (128, 4, 3, 3))),
    GemmCase("groups 1x1", lambda: conv_layer(conv(RESIDUAL, RELU, pads=0, groups=3), (1, 72, 5, 8), (72, 24, 1, 1))),
    GemmCase("one left over", lambda: conv_layer(conv(SILU, stride=2, groups=5), (2, 40, 6, 5), (240, 8, 3, 3))),
)  # fmt: skip
