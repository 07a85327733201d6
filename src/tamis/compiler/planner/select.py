"""Choice over the graph: the cheapest sequence of options, conversions between formats included.

Layers are not alone: a layer that is a little faster in NHWC or bfloat16 does not pay if its neighbours must
convert. The network is walked in topological order. A state says in which format each live value lies; the
cheapest way into each state is kept, as in a shortest-path search. Few values are live at a time, so the
search is exact for most networks; where more states arise than ``BEAM``, the cheapest ones go on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from tamis.compiler.ir.graph import Graph, TensorType
from tamis.compiler.planner.options import Option
from tamis.engine.plan import Format
from tamis.errors import BuildError, ModelError

BEAM = 96

ConversionCost: TypeAlias = Callable[[TensorType, Format, Format], float]
State: TypeAlias = tuple[Format, ...]


@dataclass(frozen=True)
class Selection:
    """The options that cover the graph, in order, and what they should cost together."""

    options: tuple[Option, ...]
    cost_us: float


@dataclass(frozen=True)
class _Arrival:
    cost_us: float
    option: Option | None
    previous: tuple[int, State] | None


def select(graph: Graph, options: Iterable[Option], conversion: ConversionCost) -> Selection:
    """The cheapest cover of the graph by options. Raises ``BuildError`` when a layer has none, ``ModelError`` when
    that is because of its constants.
    """
    by_start: dict[int, list[Option]] = {}
    for option in options:
        by_start.setdefault(option.start, []).append(option)
    live = live_values(graph)
    end = len(graph.nodes)
    begin: State = tuple(port_format(graph, v) for v in live[0])
    frontier: dict[int, dict[State, _Arrival]] = {0: {begin: _Arrival(0.0, None, None)}}
    for position in range(end):
        states = frontier.get(position, {})
        for state, arrival in sorted(states.items(), key=lambda item: item[1].cost_us)[:BEAM]:
            formats = dict(zip(live[position], state, strict=True))
            for option in by_start.get(position, ()):
                cost = arrival.cost_us + option.cost_us
                cost += sum(conversion(graph.types[v], formats[v], f) for v, f in option.inputs if formats[v] != f)
                after = formats | dict(option.outputs)
                target: State = tuple(after[v] for v in live[option.stop])
                arrivals = frontier.setdefault(option.stop, {})
                if target not in arrivals or cost < arrivals[target].cost_us:
                    arrivals[target] = _Arrival(cost, option, (position, state))
    return _walk_back(graph, frontier, live, conversion)


def _walk_back(
    graph: Graph,
    frontier: dict[int, dict[State, _Arrival]],
    live: list[tuple[str, ...]],
    conversion: ConversionCost,
) -> Selection:
    end = len(graph.nodes)
    if not frontier.get(end):
        stuck = max((p for p in frontier if frontier[p]), default=0)
        node = graph.nodes[stuck]
        if broken := next((name for name in node.inputs if _not_finite(graph.constants.get(name))), None):
            raise ModelError(
                f"'{broken}' holds NaN or infinity, so that no result can be checked",
                layer=node.name,
                remedy="mend the model and export it again",
            )
        raise BuildError("no tactic gives a correct result", layer=node.name, remedy="please report this model")

    def total(item: tuple[State, _Arrival]) -> float:
        wanted = {v: port_format(graph, v) for v in live[end]}
        formats = zip(live[end], item[0], strict=True)
        return item[1].cost_us + sum(conversion(graph.types[v], f, wanted[v]) for v, f in formats if f != wanted[v])

    best = min(frontier[end].items(), key=total)
    cost, arrival = total(best), best[1]
    chosen = []
    while arrival.option is not None and arrival.previous is not None:
        chosen.append(arrival.option)
        position, state = arrival.previous
        arrival = frontier[position][state]
    return Selection(tuple(reversed(chosen)), cost)


def _not_finite(constant: np.ndarray | None) -> bool:
    return constant is not None and not bool(np.isfinite(constant).all())


def live_values(graph: Graph) -> list[tuple[str, ...]]:
    """For each position, the values made before it that are still read at or after it, sorted."""
    last: dict[str, int] = {}
    for index, node in enumerate(graph.nodes):
        for value in node.inputs:
            last[value] = index
    for value in graph.outputs:
        last[value] = len(graph.nodes)
    born = dict.fromkeys(graph.inputs, 0)
    for index, node in enumerate(graph.nodes):
        born |= dict.fromkeys(node.outputs, index + 1)
    live: list[list[str]] = [[] for _ in range(len(graph.nodes) + 1)]
    for value, start in born.items():
        for position in range(start, last.get(value, -1) + 1):
            live[position].append(value)
    return [tuple(sorted(values)) for values in live]


def port_format(graph: Graph, value: str) -> Format:
    """How inputs come and outputs go: row-major, in the graph's own type."""
    return Format(graph.types[value].dtype)
