"""The three sparsity policies, applied to the notes on the weights.

1. ``auto``: the notes stay; what is 2:4 may run sparse.
2. ``off``: no weight is eligible.
3. ``force``: weights that are not 2:4 but could be are pruned by magnitude, two of four along the reduction
   axis, to see what sparsity would bring. The results are not meant to be right any more.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from tamis.compiler.ir.graph import Graph
from tamis.compiler.passes.note_sparsity import note_sparsity
from tamis.formats import TWO_FOUR, magnitude_mask


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
    constants = dict(graph.constants)
    for name, note in graph.sparsity.items():
        weight = constants[name]
        if note.pattern != "2:4" and weight.shape[note.axis] % 4 == 0 and not note.reason.startswith("grouped"):
            constants[name] = weight * magnitude_mask(weight, TWO_FOUR, note.axis)
    return note_sparsity(replace(graph, constants=constants))
