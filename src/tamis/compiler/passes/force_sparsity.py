"""The three sparsity policies, applied to the notes on the weights.

1. ``auto``: the notes stay; what is 2:4 may run sparse.
2. ``off``: no weight is eligible.
3. ``force``: weights that are not 2:4 but could be are pruned by magnitude, two of four along the reduction
   axis, to see what sparsity would bring. The results are not meant to be right any more.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Literal

import numpy as np

from tamis.compiler.ir.graph import Graph
from tamis.compiler.passes.note_sparsity import note_sparsity
from tamis.errors import ModelError
from tamis.formats import NM, TWO_FOUR, fits, magnitude_mask


def force_sparsity(graph: Graph, policy: Literal["off", "auto", "force"]) -> Graph:
    """The graph under a sparsity policy."""
    if policy == "auto":
        return graph
    if policy == "off":
        notes = {
            name: replace(note, pattern="dense", reason=note.reason or "sparsity is off")
            for name, note in graph.sparsity.items()
        }
        return replace(graph, sparsity=notes)
    return pruned(graph, prunable(graph), TWO_FOUR)


def prunable(graph: Graph) -> frozenset[str]:
    """The weights that are not 2:4 but could be, by the names of the constants."""
    return frozenset(
        name
        for name, note in graph.sparsity.items()
        if note.pattern != "2:4"
        and fits(graph.constants[name].shape, note.axis, TWO_FOUR.m)
        and not note.reason.startswith("grouped")
    )


def pruned(graph: Graph, weights: Collection[str], pattern: NM) -> Graph:
    """The graph with some of its weights pruned by magnitude along their reduction axes.

    Raises ``ModelError`` for a weight with NaN, which has no magnitude.
    """
    constants = dict(graph.constants)
    for name in weights:
        constants[name] = pruned_weight(graph, name, pattern)
    return note_sparsity(replace(graph, constants=constants))


def pruned_weight(graph: Graph, name: str, pattern: NM) -> np.ndarray:
    """A weight pruned by magnitude along its reduction axis; errors as of ``pruned``."""
    require_magnitudes(graph, name)
    weight: np.ndarray = graph.constants[name]
    return np.where(magnitude_mask(weight, pattern, graph.sparsity[name].axis), weight, np.zeros((), weight.dtype))


def require_magnitudes(graph: Graph, name: str) -> None:
    """Raise ``ModelError`` for a weight with NaN."""
    if np.isnan(graph.constants[name]).any():
        layer = next(node.name for node in graph.nodes if name in node.inputs)
        raise ModelError(
            "its weight holds NaN, so that no magnitude says what to prune",
            layer=layer,
            remedy="export the model with finite weights",
        )
