"""Layers whose values leave the range of float16, found on the sample inputs.

Layers of equal signature share one race, on the values of the first of them. A later one may see far larger values: in
transformers it is the deep layers that overflow. So when an engine is not accurate enough, every value of the network
is looked at, in float32, and no option may hold one in float16 that does not fit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from tamis.compiler.ir.graph import Graph
from tamis.compiler.planner.options import Option
from tamis.compiler.tuner.race import Entry, LayerRace
from tamis.compiler.tuner.reference import Reference
from tamis.engine.plan import Format
from tamis.formats.dtype import DType

# The largest finite value (IEEE 754, binary16). bfloat16 and tf32 have the range of float32.
LARGEST_FLOAT16 = 65504.0


class Overflows:
    """Which options overflow. The network runs at the first question, and only for an engine that was objected to."""

    def __init__(self, graph: Graph, reference: Reference) -> None:
        self._graph, self._reference = graph, reference
        self._largest: Mapping[str, float] | None = None

    def look(self) -> bool:
        """Look at all values; whether any does not fit into float16."""
        if self._largest is None:
            self._largest = self._reference.magnitudes()
        return any(value > LARGEST_FLOAT16 for value in self._largest.values())

    def in_option(self, option: Option) -> bool:
        """Whether an option holds a value in float16 that does not fit. False before ``look``."""
        nodes = self._graph.nodes[option.start : option.stop]
        constants = [v for node in nodes for v in node.inputs if v in self._graph.constants]
        return bool(self._reason((*option.inputs, *option.outputs), constants, option.choice.precision))

    def told(self, races: Sequence[LayerRace]) -> list[LayerRace]:
        """The races with what was found out, in the words of ``tamis explain``."""
        return [replace(race, entries=tuple(self._judged(race, entry) for entry in race.entries)) for race in races]

    def _judged(self, race: LayerRace, entry: Entry) -> Entry:
        layer, choice = race.layer, entry.choice
        inputs = zip(layer.values, choice.inputs, strict=True)
        outputs = zip(layer.node.outputs, choice.outputs, strict=True)
        constants = [v for v in layer.node.inputs if v in layer.constants]
        reason = self._reason((*inputs, *outputs), constants, choice.precision)
        return replace(entry, reason=reason, disqualified=True) if reason and not entry.disqualified else entry

    def _reason(self, values: Iterable[tuple[str, Format]], constants: Iterable[str], precision: DType) -> str:
        if self._largest is None:
            return ""
        halves = {value for value, format in values if format.dtype is DType.FLOAT16}
        if precision is DType.FLOAT16:
            halves |= set(constants)
        over = {value: self._largest[value] for value in halves if self._largest.get(value, 0.0) > LARGEST_FLOAT16}
        if not over:
            return ""
        value = max(over, key=lambda name: over[name])
        return (
            f"overflows: '{value}' reaches {over[value]:.3g} on the sample inputs, float16 ends at {LARGEST_FLOAT16:g}"
        )
