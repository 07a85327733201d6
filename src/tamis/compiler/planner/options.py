"""What the planner may choose among: one option for each way to run a layer or a region."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tamis.compiler.config import BuildConfig
from tamis.compiler.ir.graph import Graph
from tamis.compiler.tactics.base import Choice
from tamis.compiler.tactics.region import Region
from tamis.compiler.tuner.race import LayerRace
from tamis.engine.plan import Format, Timing
from tamis.formats.dtype import DType


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


@dataclass(frozen=True)
class Wishes:
    """The precisions that the user wants for single layers, by the position of the layer."""

    by_position: Mapping[int, frozenset[DType]]

    def permit(self, option: Option) -> bool:
        """Whether an option runs every layer as wished."""
        return all(option.choice.precision in wished for wished in self._of(option))

    def fix(self, option: Option) -> bool:
        """Whether a wish keeps the option from being moved to float32."""
        return any(DType.FLOAT32 not in wished for wished in self._of(option))

    def _of(self, option: Option) -> list[frozenset[DType]]:
        return [self.by_position[p] for p in range(option.start, option.stop) if p in self.by_position]


def wishes_of(graph: Graph, layers: Iterable[Option], config: BuildConfig) -> Wishes:
    """What ``config.layer_precisions`` asks for; a layer that fails in all of it may run in float32."""
    able: dict[int, set[DType]] = {}
    for option in layers:
        able.setdefault(option.start, set()).add(option.choice.precision)
    wished = {}
    for position, node in enumerate(graph.nodes):
        precisions = frozenset(config.precisions_of(node.name))
        if precisions != frozenset(config.precisions):
            wished[position] = precisions if precisions & able[position] else frozenset({DType.FLOAT32})
    return Wishes(wished)
