"""What the planner may choose among: one option for each way to run a layer or a region."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tamis.compiler.ir.graph import Graph
from tamis.compiler.tactics.base import Choice
from tamis.compiler.tactics.region import Region
from tamis.compiler.tuner.race import LayerRace
from tamis.engine.plan import Format, Timing


@dataclass(frozen=True)
class Option:
    """Nodes ``start`` to ``stop`` (exclusive) run by ``choice`` in ``cost_us``.

    ``inputs`` and ``outputs`` pair the values that cross its border with their formats. ``estimated`` marks an
    option whose cost is a guess (one layer's share of a region): a path may run through it, an engine may not.
    """

    start: int
    stop: int
    choice: Choice
    inputs: tuple[tuple[str, Format], ...]
    outputs: tuple[tuple[str, Format], ...]
    cost_us: float
    timing: Timing | None = None
    sqnr_db: float = 999.0
    estimated: bool = False


def layer_options(graph: Graph, races: Iterable[LayerRace]) -> list[Option]:
    """All finishers of the layers' races."""
    position = {node.name: index for index, node in enumerate(graph.nodes)}
    options = []
    for race in races:
        start = position[race.layer.name]
        for entry in race.finishers:
            assert entry.timing is not None
            choice = entry.choice
            options.append(
                Option(
                    start,
                    start + 1,
                    choice,
                    tuple(zip(race.layer.values, choice.inputs, strict=True)),
                    tuple(zip(race.layer.node.outputs, choice.outputs, strict=True)),
                    entry.timing.median_us,
                    entry.timing,
                    entry.accuracy.sqnr_db if entry.accuracy else 999.0,
                )
            )
    return options


def region_option(region: Region, choice: Choice, timing: Timing, sqnr_db: float) -> Option:
    """The option of a measured region."""
    return Option(
        region.start,
        region.stop,
        choice,
        tuple(zip(region.inputs, choice.inputs, strict=True)),
        tuple(zip(region.outputs, choice.outputs, strict=True)),
        timing.median_us,
        timing,
        sqnr_db,
    )
