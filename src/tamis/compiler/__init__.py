"""From a model to an engine: the stages in order."""

from __future__ import annotations

from tamis.compiler.config import STAGES, BuildConfig, Progress
from tamis.compiler.crossover import CrossoverConfig, measure_crossover
from tamis.compiler.estimate import estimate_sparsity
from tamis.compiler.importer import import_onnx
from tamis.compiler.ir.graph import Graph
from tamis.compiler.names import check_names
from tamis.compiler.passes import run_passes
from tamis.compiler.passes.force_sparsity import force_sparsity
from tamis.compiler.planner import plan_engine
from tamis.compiler.rescue import BuildWarning, Model, go_on
from tamis.compiler.sensitivity import Goal, measure_sensitivity, measured_times
from tamis.compiler.tuner import open_track, race_all
from tamis.compiler.tuner.cache import TimingCache
from tamis.compiler.tuner.race import Track
from tamis.compiler.tuner.suspect import Suspect, note_culprit, watch
from tamis.engine.file import Engine
from tamis.errors import DeviceLost
from tamis.runtime.session import open_device


def build(model: Model, config: BuildConfig, progress: Progress | None = None) -> Engine:
    """Compile an ONNX model for a device.

    A candidate that breaks the GPU takes it from this process. The build then goes on in a new one, without it.

    Args:
        model: a file, its bytes, or a parsed model.
        config: what is allowed and wanted.
        progress: called with (stage, done, total, what is being done); ``STAGES`` lists the stages.

    Raises ``ModelError`` for a model that cannot be used, ``ConfigError`` for options that do not fit it,
    ``DeviceError`` when the device is missing or breaks again and again, ``BuildError`` when no engine is accurate
    enough.
    """
    tell = progress or _silent
    cache: TimingCache | None = None
    try:
        graph, track = prepare(model, config, tell)
        cache = track.cache
        return race_and_plan(graph, track, tell)
    except DeviceLost as lost:
        return go_on(lost, cache, model, config, tell)


def prepare(model: Model, config: BuildConfig, tell: Progress) -> tuple[Graph, Track]:
    """The first half of a build: the graph after all passes, and what its races share."""
    tell("device", 0, 1, config.device)
    device = open_device(config.device)  # a missing one is told before a large model is read
    tell("import", 0, 1, "")
    graph = import_onnx(model, config.shapes)
    tell("passes", 0, 1, "")
    graph = force_sparsity(run_passes(graph, dump=config.dump, verify=config.verify), config.sparsity)
    check_names(config, [node.name for node in graph.nodes])
    tell("device", 0, 1, "measuring its rates")
    return graph, open_track(graph, device, config)


def race_and_plan(graph: Graph, track: Track, tell: Progress) -> Engine:
    """The second half: races, search and contest. The timing cache is saved.

    Raises ``DeviceLost`` when the device breaks; who broke it then stands in the timing cache.
    """
    try:
        with watch(track.device, Suspect()):
            races = race_all(graph, track, tell)
            engine = plan_engine(graph, races, track, tell)
    except DeviceLost as lost:
        note_culprit(track.cache, lost)
        raise
    tell("save", 0, 1, "timing cache")
    track.cache.save()
    return engine


def _silent(stage: str, done: int, total: int, detail: str) -> None:
    """Nobody watches."""


__all__ = [
    "BuildConfig",
    "BuildWarning",
    "CrossoverConfig",
    "Goal",
    "Progress",
    "STAGES",
    "build",
    "estimate_sparsity",
    "import_onnx",
    "measure_crossover",
    "measure_sensitivity",
    "measured_times",
]
