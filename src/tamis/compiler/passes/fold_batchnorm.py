"""Rewrite inference-time batch normalisation as one scale and one shift per channel.

``scale * (x - mean) / sqrt(variance + epsilon) + bias`` is ``x * a + b`` with constants ``a`` and ``b``.

1. A BatchNorm whose parameters are constants becomes an Elementwise ``x * a + b``, with ``a`` and ``b`` of
   shape [C,1,...], computed in float64 and rounded once.
2. What becomes of the scale and the shift is decided by ``fold_scale``: into the layer before it, else into
   the layer after it where that is legal, else they stay for ``fuse_pointwise``.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tamis.compiler.ir.graph import Graph, GraphEditor
from tamis.compiler.ir.ops import BatchNorm, Elementwise, Pointwise

AFFINE = (Pointwise("mul", operand=1), Pointwise("add", operand=2))


def fold_batchnorm(graph: Graph) -> Graph:
    """The graph with batch normalisations told as a multiplication and an addition."""
    editor = GraphEditor(graph)
    for node in graph.nodes:
        if not isinstance(node.op, BatchNorm) or not all(graph.is_constant(value) for value in node.inputs[1:]):
            continue
        scale, bias, mean, variance = (graph.constants[value].astype(np.float64) for value in node.inputs[1:])
        factor = scale / np.sqrt(variance + node.op.epsilon)
        with np.errstate(all="ignore"):  # a channel without variance may give inf, as it does at run time
            factor = scale / np.sqrt(variance + node.op.epsilon)
            shift = bias - mean * factor
        type_ = graph.types[node.inputs[0]]
        shape = (-1,) + (1,) * (len(type_.shape) - 2)
        constants = [
            editor.add_constant(f"{node.output}.{name}", array.astype(type_.dtype.numpy).reshape(shape))
            for name, array in (("scale", factor), ("shift", shift))
        ]
        editor.replace_node(node, replace(node, op=Elementwise(AFFINE), inputs=(node.inputs[0], *constants)))
    return editor.finish()
