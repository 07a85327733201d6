"""From which size does 2:4 pay? Dense and sparse tactics race over a grid of layer sizes.

Each cell of the grid is a graph of one layer with random 2:4 weights, and goes through the very race of a build:
the same tactics, clock, checks and timing cache. A layer on its own would stay in the caches from one call to the
next; inside a network the other layers evict it. So all cells are measured with cold caches.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from tamis import __version__
from tamis.compiler.config import BuildConfig
from tamis.compiler.ir.graph import Graph, Node, SparsityNote, TensorType
from tamis.compiler.ir.ops import Conv, Linear, Pointwise
from tamis.compiler.passes.note_sparsity import note_sparsity
from tamis.compiler.tactics import tactics_of
from tamis.compiler.tactics.ahead import Compiles
from tamis.compiler.tactics.base import Layer, flops_of, layer_of
from tamis.compiler.tuner import open_track
from tamis.compiler.tuner.duel import duel, fastest, runner_of
from tamis.compiler.tuner.race import LayerRace, Track, prepare, race_layer
from tamis.compiler.tuner.reference import Reference
from tamis.compiler.tuner.suspect import Suspect, note_culprit, watch
from tamis.compiler.tuner.timing import Clock
from tamis.devices.base import Device
from tamis.engine.crossover import CROSSOVER_VERSION, LAYER_KINDS, Cell, CrossoverMap, LayerKind, Reason
from tamis.engine.noise import beats
from tamis.errors import ConfigError, DeviceLost, TamisError
from tamis.formats import TWO_FOUR, magnitude_mask
from tamis.formats.dtype import DType
from tamis.runtime.session import open_device

BATCHES = {"cpu": (1, 16), "cuda": (1, 32, 128)}
SIZES = (64, 128, 256, 512, 1024, 2048)

# Calls of about the length of the roofline's bound that one race takes, to tell whether a cell fits into the budget.
_CALLS = 60
# Cells whose kernels are compiled together have at most this many weights: 256 MiB of float32, or one cell's.
_WEIGHTS_TOGETHER = 2**26
_TAPS: dict[LayerKind, int] = {"linear": 1, "conv1x1": 1, "conv3x3": 9}


@dataclass(frozen=True)
class CrossoverConfig:
    """What to measure.

    Attributes:
        device: ``"cpu"`` or ``"cuda"``.
        precision: what candidates may compute in, beside float32, which always races.
        kinds: layers to measure, of ``LAYER_KINDS``.
        sizes: numbers of inputs and of outputs; every pair is a cell.
        batches: rows of linear layers and images of convolutions; None for those of the device.
        map_size: height and width of the images, in pixels.
        budget_seconds: time after which no further cell is begun.
        threads: cores to use; None for all of them.
        timing_cache: file that measurements are read from and added to; None for none.
        seed: seed of weights and activations.
    """

    device: Literal["cpu", "cuda"] = "cpu"
    precision: DType = DType.BFLOAT16
    kinds: tuple[LayerKind, ...] = LAYER_KINDS
    sizes: tuple[int, ...] = SIZES
    batches: tuple[int, ...] | None = None
    map_size: int = 14
    budget_seconds: float = 300.0
    threads: int | None = None
    timing_cache: Path | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Normalise and check; raises ``ConfigError``."""
        self.build  # noqa: B018  (its checks of device, precision and threads)
        for kind in self.kinds:
            if kind not in LAYER_KINDS:
                raise ConfigError(
                    f"there is no kind of layer '{kind}'", remedy=f"choose among {', '.join(LAYER_KINDS)}"
                )
        object.__setattr__(self, "kinds", tuple(kind for kind in LAYER_KINDS if kind in self.kinds))
        object.__setattr__(self, "sizes", tuple(sorted(set(self.sizes))))
        given = BATCHES[self.device] if self.batches is None else self.batches
        object.__setattr__(self, "batches", tuple(sorted(set(given))))
        if not (self.kinds and self.sizes and self.batches):
            raise ConfigError("there is nothing to measure", remedy="name at least one kind, one size and one batch")
        for size in self.sizes:
            if size < 4 or size % 4:
                raise ConfigError(f"size {size} has no 2:4 pattern", remedy="give positive multiples of 4")
        for name, number in (("batch", min(self.grid_batches)), ("map", self.map_size)):
            if number < 1:
                raise ConfigError(f"{name} is {number}", remedy="give at least 1")
        if not self.budget_seconds > 0:
            raise ConfigError(f"the budget is {self.budget_seconds:g} seconds", remedy="give more than 0")

    @property
    def build(self) -> BuildConfig:
        """The options of the races."""
        precisions = (DType.FLOAT32, self.precision)
        return BuildConfig(
            self.device, precisions, threads=self.threads, timing_cache=self.timing_cache, seed=self.seed
        )

    @property
    def grid_batches(self) -> tuple[int, ...]:
        """The batches that are measured."""
        return self.batches or ()


@dataclass(frozen=True)
class _Ahead:
    """Cells that come next, their kernels compiled side by side, since those of one cell do not fill all cores.

    Attributes:
        graphs: those of the cells that are not measured yet.
        complete: the time sufficed for all kernels.
    """

    graphs: dict[Cell, Graph]
    complete: bool


def measure_crossover(
    config: CrossoverConfig,
    progress: Callable[[str, int, int, str], None] | None = None,
    device: Device | None = None,
    earlier: CrossoverMap | None = None,
) -> CrossoverMap:
    """Race the cells of a grid, coarse to fine, until all are measured or the budget is spent.

    A cell that was begun is finished. What is not measured stands in the map with the reason; an interrupt from the
    keyboard ends measuring like a spent budget, and is noted.

    Args:
        config: what to measure.
        progress: called with (stage, done, total, what is being done).
        device: where; None to open the one that ``config`` names.
        earlier: a map whose measured cells are taken over.

    Raises ``DeviceError`` when the device is missing, ``DeviceLost`` when a kernel breaks it, ``ConfigError`` or
    ``OutputError`` for a timing cache that cannot be read or written, ``ConfigError`` for an earlier map that was
    measured in another way.
    """
    start = time.monotonic()
    device = device if device is not None else open_device(config.device)
    cells = grid_order(config)
    track = _track(layer_outline(cells[0], config), device, config.build)
    known = {} if earlier is None else _taken_over(earlier, config, track)
    offers: dict[str, set[str]] = {}
    measured: list[Cell] = []
    ahead = _Ahead({}, complete=True)
    interrupted = False
    try:
        for index, cell in enumerate(cells):
            if progress is not None:
                progress("crossover", index, len(cells), _name_of(cell))
            left = config.budget_seconds - (time.monotonic() - start)
            found = known.get(_place_of(cell)) or _unmeasured(cell, config, track, left, offers)
            if found is None:
                if cell not in ahead.graphs:
                    coming = [c for c in cells[index:] if _place_of(c) not in known]
                    ahead = _made_ahead(coming, config, track, left)
                found = _measured(cell, ahead, config, track)
            measured.append(found)
    except KeyboardInterrupt:
        interrupted = True
    for cell in cells[len(measured) :]:
        refusals = _note_offers(layer_outline(cell, config), track, offers)
        why = "measuring was interrupted" if refusals is None else ""
        measured.append(known.get(_place_of(cell)) or replace(cell, reasons=refusals or (), left_out=why))
    took = round(time.monotonic() - start, 3)
    return CrossoverMap(
        version=CROSSOVER_VERSION,
        tamis=__version__,
        device=device.info(),
        threads=track.threads,
        precision=config.precision,
        kinds=config.kinds,
        batches=config.grid_batches,
        sizes=config.sizes,
        map_size=config.map_size,
        cold=track.clock.cold,
        seconds=took if earlier is None else round(earlier.seconds + took, 3),
        interrupted=interrupted,
        dense_only=tuple(sorted(tactic for tactic, patterns in offers.items() if patterns == {"dense"})),
        cells=tuple(measured),
    )


def grid_order(config: CrossoverConfig) -> tuple[Cell, ...]:
    """The cells to measure: the corners of all grids, then midpoints, then what lies between; small ones first."""
    level = dict(zip(config.sizes, levels(len(config.sizes)), strict=True))
    cells = [
        Cell(kind, batch, c_in, c_out)
        for kind in config.kinds
        for batch in config.grid_batches
        for c_in in config.sizes
        for c_out in config.sizes
    ]

    def key(cell: Cell) -> tuple[int, ...]:
        work = cell.c_in * cell.c_out * _TAPS[cell.kind] * cell.batch * _positions(cell.kind, config.map_size)
        return max(level[cell.c_in], level[cell.c_out]), work

    return tuple(sorted(cells, key=key))


def levels(count: int) -> tuple[int, ...]:
    """For each of ``count`` points on a line, in which round of halving it is reached; both ends are round 0."""
    found = {0: 0, count - 1: 0}
    rounds = 0
    while len(found) < count:
        rounds += 1
        known = sorted(found)
        for low, high in itertools.pairwise(known):
            if high - low > 1:
                found[(low + high) // 2] = rounds
    return tuple(found[index] for index in range(count))


def layer_graph(cell: Cell, config: CrossoverConfig) -> Graph:
    """A graph of one layer of a cell's size, with bias and ReLU and random weights pruned to 2:4 by magnitude."""
    node, types = _node(cell, config.map_size)
    generator = np.random.default_rng((config.seed, cell.c_in, cell.c_out))
    weight = generator.standard_normal(types["weight"].shape, dtype=np.float32)
    weight *= magnitude_mask(weight, TWO_FOUR, 1)
    bias = generator.standard_normal(types["bias"].shape, dtype=np.float32)
    constants = {"weight": weight, "bias": bias}
    return note_sparsity(Graph(_name_of(cell), ("x",), ("y",), (node,), types, constants))


def layer_outline(cell: Cell, config: CrossoverConfig) -> Layer:
    """The layer of a cell as tactics see it before they pack anything: its weights take no memory and are zero."""
    node, types = _node(cell, config.map_size)
    constants = {name: np.broadcast_to(np.float32(0), types[name].shape) for name in ("weight", "bias")}
    return Layer(node, types, constants, SparsityNote("2:4", axis=1, zeros=1.0, good_groups=1.0))


def _node(cell: Cell, map_size: int) -> tuple[Node, dict[str, TensorType]]:
    """The node of a cell, and the types of its values x, weight, bias and y."""
    relu = (Pointwise("relu"),)
    side = {"linear": (), "conv1x1": (1, 1), "conv3x3": (3, 3)}[cell.kind]
    image = () if cell.kind == "linear" else (map_size, map_size)
    pads = (1,) * 4 if cell.kind == "conv3x3" else (0,) * 4
    op = Conv((1, 1), pads, (1, 1), bias=True, epilogue=relu) if image else Linear(bias=True, epilogue=relu)
    shapes = {
        "x": (cell.batch, cell.c_in, *image),
        "weight": (cell.c_out, cell.c_in, *side),
        "bias": (cell.c_out,),
        "y": (cell.batch, cell.c_out, *image),
    }
    types = {name: TensorType(shape) for name, shape in shapes.items()}
    return Node("layer", op, ("x", "weight", "bias"), ("y",)), types


def _track(layer: Layer, device: Device, config: BuildConfig) -> Track:
    """What all cells share. No race has a deadline: a cell is measured like any other or not at all."""
    graph = Graph("crossover", layer.values, layer.node.outputs, (layer.node,), layer.types, layer.constants)
    track = open_track(graph, device, config)
    return replace(track, clock=Clock(device, cold=True), deadline=float("inf"))


def _taken_over(earlier: CrossoverMap, config: CrossoverConfig, track: Track) -> dict[object, Cell]:
    """The cells that were measured, by their place. Raises ``ConfigError`` if others would not be comparable."""
    ways = (
        ("by another version of Tamis", earlier.tamis, __version__),
        ("on another device, or with other libraries", earlier.device, track.device.info()),
        ("with another number of threads", earlier.threads, track.threads),
        ("in another precision", earlier.precision, config.precision),
        ("with another size of images", earlier.map_size, config.map_size),
        ("with warm caches", earlier.cold, track.clock.cold),
    )
    for difference, before, now in ways:
        if before != now:
            raise ConfigError(
                f"the earlier map was measured {difference}", remedy="measure all cells anew, without the earlier map"
            )
    return {_place_of(cell): cell for cell in earlier.cells if not cell.left_out}


def _place_of(cell: Cell) -> tuple[str, int, int, int]:
    """Where a cell stands in the grid."""
    return cell.kind, cell.batch, cell.c_in, cell.c_out


def _unmeasured(
    cell: Cell, config: CrossoverConfig, track: Track, left: float, offers: dict[str, set[str]]
) -> Cell | None:
    """The cell with the reason why it is not to be measured; None if it is.

    ``left`` seconds remain. What each tactic offers is added to ``offers``.
    """
    outline = layer_outline(cell, config)
    refusals = _note_offers(outline, track, offers)
    if refusals is not None:
        return replace(cell, reasons=refusals)
    if left <= 0:
        return replace(cell, left_out="the time budget was spent")
    if _CALLS * track.roof.bound_us(flops_of(outline), 0, DType.FLOAT32) / 1e6 > left:
        return replace(cell, left_out="it would have taken more than what was left of the time budget")
    return None


def _made_ahead(cells: Sequence[Cell], config: CrossoverConfig, track: Track, left: float) -> _Ahead:
    """The first of these cells; the compilation may take half of the ``left`` seconds.

    Only one where no tactic compiles: more would be made for nothing.
    """
    tactics = tactics_of(config.device)
    most = _WEIGHTS_TOGETHER if any(isinstance(tactic, Compiles) for tactic in tactics) else 0
    graphs: dict[Cell, Graph] = {}
    weights = 0
    for cell in cells:
        if _note_offers(layer_outline(cell, config), track, {}) is not None:
            continue
        weights += cell.c_in * cell.c_out * _TAPS[cell.kind]
        if graphs and weights > most:
            break
        graphs[cell] = layer_graph(cell, config)
    layers = [layer_of(graph, graph.nodes[0]) for graph in graphs.values()]
    prepared = prepare(layers, tactics, replace(track, deadline=time.monotonic() + left))
    return _Ahead(graphs, complete=not prepared.late)


def _measured(cell: Cell, ahead: _Ahead, config: CrossoverConfig, track: Track) -> Cell:
    """The cell with its results, or with the failure."""
    graph = ahead.graphs.pop(cell)
    layer = layer_of(graph, graph.nodes[0])
    here = replace(track, reference=Reference(graph, track.device, track.config))
    try:
        with watch(track.device, Suspect()):
            tactics = tactics_of(config.device)
            if not ahead.complete:
                prepare([layer], tactics, here)
            result = _result(cell, race_layer(layer, tactics, here), here)
    except DeviceLost as lost:
        note_culprit(track.cache, lost)
        again = "run it again with the same timing cache" if config.timing_cache else "run it with a timing cache"
        remedy = f"{again}: what broke the GPU once is then left out"
        raise DeviceLost(lost.cause, layer=_name_of(cell), remedy=remedy, tactic=lost.tactic) from lost
    except (RuntimeError, MemoryError, TamisError) as error:
        text = (str(error) or type(error).__name__).splitlines()[0][:200]
        return replace(cell, left_out=f"failed: {text}")
    track.cache.save()
    return result


def _note_offers(layer: Layer, track: Track, offers: dict[str, set[str]]) -> tuple[Reason, ...] | None:
    """All refusals when no tactic offers a layer in 2:4, for then there is nothing to compare; None otherwise."""
    info, refusals, sparse = track.device.info(), [], False
    for tactic in tactics_of(track.config.device):
        reason = tactic.refuses(layer, info, track.config)
        if reason is not None:
            refusals.append(Reason(tactic.name, reason))
            continue
        patterns = {choice.sparsity for choice in tactic.choices(layer, info, track.config)}
        offers.setdefault(tactic.name, set()).update(patterns)
        sparse = sparse or "2:4" in patterns
    return None if sparse else tuple(refusals)


def _result(cell: Cell, race: LayerRace, track: Track) -> Cell:
    dense, sparse = fastest(race.finishers, "dense"), fastest(race.finishers, "2:4")
    if dense is None or sparse is None:
        failed = {(e.choice.tactic, e.reason): None for e in race.entries if e.choice.sparsity == "2:4"}
        reasons = () if sparse else tuple(Reason(*reason) for reason in (*failed, *race.refusals))
        return replace(cell, dense=runner_of(dense), sparse=runner_of(sparse), reasons=reasons)
    first, second = duel(race.layer, dense.choice, sparse.choice, track)
    return replace(cell, dense=runner_of(dense, first), sparse=runner_of(sparse, second), pays=beats(second, first))


def _positions(kind: LayerKind, map_size: int) -> int:
    return 1 if kind == "linear" else map_size * map_size


def _name_of(cell: Cell) -> str:
    return f"{cell.kind} {cell.c_in}x{cell.c_out}, batch {cell.batch}"
