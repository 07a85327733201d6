"""The search for the cheapest engine: layers, regions, and where a region should be cut.

Every tactic for regions first proposes the longest runs it can take. Where a tactic can tell what each layer
takes of a region's time, that share becomes an *estimated* option; the cheapest path through the graph then
shows which runs the region should be cut into. Those runs are measured, and the search is repeated with the
measured figures until it proposes nothing new.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeAlias

from tamis.compiler.ir.graph import Graph, TensorType
from tamis.compiler.planner.conversions import Conversions
from tamis.compiler.planner.options import Option
from tamis.compiler.planner.regions import RegionRaces
from tamis.compiler.planner.select import Selection, select
from tamis.compiler.tactics.base import Choice
from tamis.compiler.tactics.region import region_of
from tamis.engine.plan import Format
from tamis.formats.dtype import DType

Filter: TypeAlias = Callable[[Option], bool]

_ROUNDS = 3
_RUNS_A_ROUND = 8
# What crossing the border of a region costs beside the conversion itself: about half of the overhead of calling
# a small region.
_BORDER_US = 10.0


class Search:
    """Finds covers of one graph; regions that were measured once serve all searches."""

    def __init__(
        self,
        graph: Graph,
        layers: Sequence[Option],
        races: RegionRaces,
        conversions: Conversions,
        progress: Callable[[int], None],
    ) -> None:
        self.graph = graph
        self._layers = layers
        self._races = races
        self._conversions = conversions
        self._progress = progress

    def by_layers(self, allowed: Filter) -> Selection:
        """The cheapest cover by single layers."""
        return select(self.graph, [o for o in self._layers if allowed(o)], self._conversions)

    def best(self, allowed: Filter) -> Selection:
        """The cheapest cover by layers and measured regions."""
        self._measure_longest()
        layers = [o for o in self._layers if allowed(o)]
        estimates = [o for o in self._estimates() if allowed(o)]
        for _ in range(_ROUNDS if estimates else 0):
            dreamed = select(self.graph, [*layers, *self._regions(allowed), *estimates], self._border_cost)
            known = len(self._races.trials)
            # The longest first: short runs rarely pay for crossing their border, and each costs a compilation.
            runs = sorted(runs_of_estimates(dreamed.options), key=lambda run: run[0] - run[1])
            for start, stop, option in runs[:_RUNS_A_ROUND]:
                self._measure(start, stop, option)
            if len(self._races.trials) == known:
                break
            estimates = self._corrected(estimates, dreamed)
        return select(self.graph, [*layers, *self._regions(allowed)], self._conversions)

    def _regions(self, allowed: Filter) -> list[Option]:
        return [o for o in self._races.options() if allowed(o)]

    def _measure_longest(self) -> None:
        config, device = self._races.track.config, self._races.track.device.info()
        for tactic in self._races.tactics.values():
            for region in tactic.regions(self.graph, self._races.able(tactic)):
                for choice in tactic.choices(self.graph, region, device, config):
                    self._races.measure(region, choice)
                    self._progress(len(self._races.trials))

    def _measure(self, start: int, stop: int, like: Option) -> None:
        region = region_of(self.graph, start, stop)
        tactic = self._races.tactics[like.choice.tactic]
        track = self._races.track
        for choice in tactic.choices(self.graph, region, track.device.info(), track.config):
            if choice.precision == like.choice.precision:
                self._races.measure(region, choice)
                self._progress(len(self._races.trials))

    def _estimates(self) -> list[Option]:
        """One estimated option for each layer of each longest region whose tactic can tell the shares."""
        options: dict[tuple[int, str, DType], Option] = {}
        for trial in list(self._races.trials.values()):
            shares = self._races.shares(trial)
            for index in range(trial.region.start, trial.region.stop):
                name = self.graph.nodes[index].name
                key = (index, trial.choice.tactic, trial.choice.precision)
                if shares and key not in options:
                    options[key] = self._estimate(index, trial.choice, shares.get(name, 0.0))
        return list(options.values())

    def _estimate(self, index: int, choice: Choice, cost_us: float) -> Option:
        node, inside = self.graph.nodes[index], _inside(choice)
        values = dict.fromkeys(v for v in node.inputs if v and v not in self.graph.constants)
        pretended = replace(choice, inputs=(inside,) * len(values), outputs=(inside,) * len(node.outputs))
        inputs, outputs = tuple((v, inside) for v in values), tuple((v, inside) for v in node.outputs)
        return Option(index, index + 1, pretended, inputs, outputs, cost_us, estimated=True)

    def _border_cost(self, type_: TensorType, source: Format, target: Format) -> float:
        """Conversion costs that know the pretended formats inside regions."""
        border, cost = Format(type_.dtype), 0.0
        if _is_inside(source):
            cost, source = cost + _BORDER_US, border
        if _is_inside(target):
            cost, target = cost + _BORDER_US, border
        return cost + (self._conversions(type_, source, target) if source != target else 0.0)

    def _corrected(self, estimates: list[Option], dreamed: Selection) -> list[Option]:
        """Estimates scaled up by what the measured runs of the last path took beyond their promise."""
        factor: dict[tuple[int, str, DType], float] = {}
        for start, stop, option in runs_of_estimates(dreamed.options):
            promised = sum(o.cost_us for o in dreamed.options if o.estimated and start <= o.start < stop)
            kind = (option.choice.tactic, option.choice.precision)
            for trial in self._races.trials.values():
                same = (trial.choice.tactic, trial.choice.precision) == kind
                if same and (trial.region.start, trial.region.stop) == (start, stop) and trial.timing:
                    ratio = max(1.0, trial.timing.median_us / max(promised, 1e-3))
                    factor |= {(index, *kind): ratio for index in range(start, stop)}
        return [
            replace(o, cost_us=o.cost_us * factor.get((o.start, o.choice.tactic, o.choice.precision), 1.0))
            for o in estimates
        ]


def runs_of_estimates(options: Sequence[Option]) -> list[tuple[int, int, Option]]:
    """Maximal runs of estimated options of one tactic and precision, as (start, stop, one of them)."""
    runs: list[tuple[int, int, Option]] = []
    for option in options:
        if not option.estimated:
            continue
        if runs and runs[-1][1] == option.start and _inside(runs[-1][2].choice) == _inside(option.choice):
            runs[-1] = (runs[-1][0], option.stop, runs[-1][2])
        else:
            runs.append((option.start, option.stop, option))
    return runs


def _inside(choice: Choice) -> Format:
    """The pretended format of a value inside a region; entering and leaving it are conversions."""
    return Format(choice.precision, f"inside {choice.tactic}")  # type: ignore[arg-type]


def _is_inside(format: Format) -> bool:
    return format.layout.startswith("inside")
