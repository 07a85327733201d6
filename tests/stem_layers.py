"""Convolutions of images with few channels that the tactic ``tamis.hopper.stem`` runs, for emulation and a GPU.

Also with max pooling behind them, as ``tamis.hopper.pool`` runs them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from conv_layers import RELU, RESIDUAL, SILU, conv, conv_layer
from tamis.compiler.ir.graph import Graph, Node
from tamis.compiler.ir.infer import infer
from tamis.compiler.ir.ops import Pool
from tamis.compiler.passes.note_sparsity import note_sparsity
from tamis.compiler.tactics.base import Layer


@dataclass(frozen=True)
class StemCase:
    """A layer, made when it is asked for."""

    name: str
    make: Callable[[], tuple[Layer, dict[str, np.ndarray]]]


SMALL = (
    StemCase("7x7 of stride 2", lambda: conv_layer(conv(RELU, stride=2, pads=3), (2, 3, 15, 21), (16, 3, 7, 7))),
    StemCase("3x3 of stride 2", lambda: conv_layer(conv(SILU, stride=2, pads=1), (2, 3, 12, 13), (32, 3, 3, 3))),
    StemCase("one channel", lambda: conv_layer(conv(RELU), (2, 1, 7, 9), (8, 1, 3, 3))),
    StemCase("residual", lambda: conv_layer(conv(RESIDUAL, RELU, stride=2, bias=False), (1, 4, 9, 8), (72, 4, 3, 3))),
    StemCase("pads that differ", lambda: conv_layer(conv(stride=2, pads=(0, 1, 2, 0)), (1, 3, 9, 8), (12, 3, 3, 3))),
    StemCase("alexnet", lambda: conv_layer(conv(RELU, stride=4, pads=2), (1, 3, 31, 27), (64, 3, 11, 11))),
    StemCase("a row of taps", lambda: conv_layer(conv(pads=(0, 2, 0, 2)), (2, 3, 4, 9), (8, 3, 1, 5))),
    StemCase("a column of taps", lambda: conv_layer(conv(pads=(2, 0, 2, 0)), (2, 3, 9, 4), (8, 3, 5, 1))),
    StemCase("patches", lambda: conv_layer(conv(stride=4, pads=0), (2, 3, 12, 16), (40, 3, 4, 4))),
)  # fmt: skip


def max_pool(size: int, pads: int | tuple[int, int, int, int] = 0, *, ceil: bool = False, stride: int = 2) -> Pool:
    """Max pooling of square windows; ``pads`` are (top, left, bottom, right)."""
    around = (pads,) * 4 if isinstance(pads, int) else pads
    return Pool("max", (size, size), (stride, stride), around, (1, 1), ceil)


def pooled_graph(layer: Layer, pool: Pool) -> Graph:
    """A graph of a convolution, its result ``y``, and the pooling behind it, ``z``."""
    node = layer.node
    types = {**layer.types, "z": infer(pool, [layer.types[node.output]])[0]}
    nodes = (node, Node("pool", pool, node.outputs, ("z",)))
    return note_sparsity(Graph("pair", layer.values, ("z",), nodes, types, dict(layer.constants)))
