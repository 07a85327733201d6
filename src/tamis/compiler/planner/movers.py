"""Layers that only move data, as views of PyTorch's where another tactic copies.

A race times a split, a slice or a transpose by itself, where its results must be dense, so that a copying kernel of our
own may win. In the engine PyTorch's may move nothing, if all who read the results take their strides; which readers
those are is known only when all layers have their tactic.
"""

from __future__ import annotations

from collections.abc import Iterable

from tamis.compiler.ir.graph import Graph
from tamis.compiler.ir.ops import Slice, Split, Transpose
from tamis.compiler.planner.lower import Draft, Lowering
from tamis.compiler.planner.options import Option

_MOVERS = (Slice, Split, Transpose)


def moving_nothing(graph: Graph, draft: Draft, layers: Iterable[Option], lowering: Lowering) -> Draft | None:
    """The draft with movers given to ``aten``, in the same formats, wherever it then hands out views.

    ``layers`` are all options of single layers. None where no layer changes hands.
    """
    viewing = {_place(o): o for o in layers if o.choice.tactic == "aten"}
    given = {
        o.start: viewing[_place(o)]
        for o in draft.options
        if o.stop == o.start + 1 and isinstance(graph.nodes[o.start].op, _MOVERS) and o.choice.tactic != "aten"
        if _place(o) in viewing
    }
    while given:
        found = lowering.draft(tuple(given.get(o.start, o) for o in draft.options))
        views = {layer for step in found.steps if {"strided", "view"} & set(step.attributes) for layer in step.layers}
        kept = {start: option for start, option in given.items() if graph.nodes[start].name in views}
        if kept == given:
            return found
        given = kept  # what goes back to its tactic wants dense values, which may end other views
    return None


def _place(option: Option) -> tuple[object, ...]:
    return option.start, option.choice.precision, option.inputs, option.outputs
