"""Write down for each constant weight whether it holds 2:4 zeros, and if not, why.

The groups of four lie along the reduction axis, the one that the layer sums over:

1. Linear ``[N, K]``: axis 1. Conv ``[K, C, ...]``: axis 1, the groups ``w[k, 4c:4c+4, r, s]``. ConvTranspose
   ``[C, K, ...]``: axis 0.
2. A grouped convolution sums over the channels of one group, which its weight's axis 1 has: the same rule.
3. A reduction axis that is not a multiple of four is not eligible, but for a linear layer of 64 inputs or more: its
   last group is shorter, and counts as if zeros followed.
4. A weight is 2:4 when every group has at most two non-zeros; zeros of either sign count.

Metadata that came with the model is never believed.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tamis.compiler.ir.graph import Graph, Node, SparsityNote
from tamis.compiler.ir.ops import Conv, ConvTranspose, Linear
from tamis.formats.nm import nonzeros_per_group
from tamis.formats.pattern import TWO_FOUR, misfit


def note_sparsity(graph: Graph) -> Graph:
    """The graph with a ``SparsityNote`` for the weight of every Conv, ConvTranspose and Linear."""
    notes = {
        node.inputs[1]: note_of(node, graph.constants[node.inputs[1]])
        for node in graph.nodes
        if isinstance(node.op, Conv | ConvTranspose | Linear) and graph.is_constant(node.inputs[1])
    }
    return graph if notes == graph.sparsity else replace(graph, sparsity=notes)


def note_of(node: Node, weight: np.ndarray) -> SparsityNote:
    """What is found in one layer's weight."""
    axis = 0 if isinstance(node.op, ConvTranspose) else 1
    zeros = 1.0 - np.count_nonzero(weight) / max(weight.size, 1)
    if isinstance(node.op, ConvTranspose) and node.op.groups > 1:
        return SparsityNote("dense", axis, zeros, 0.0, f"grouped transposed convolution ({node.op.groups} groups)")
    size = weight.shape[axis]
    if reason := misfit(size, TWO_FOUR.m, matrix=weight.ndim == 2):
        return SparsityNote("dense", axis, zeros, 0.0, f"reduction axis of {size} is {reason}")
    good = good_groups(weight, axis)
    if good < 1.0:
        reason = f"{100 * (1 - good):.1f}% of the groups of four have more than two non-zeros"
        return SparsityNote("dense", axis, zeros, good, reason)
    return SparsityNote("2:4", axis, zeros, good)


def good_groups(weight: np.ndarray, axis: int) -> float:
    """Fraction of the groups of four along ``axis`` with at most two non-zeros."""
    return float(np.mean(nonzeros_per_group(weight, TWO_FOUR.m, axis) <= TWO_FOUR.n))
