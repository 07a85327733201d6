"""From a model to an engine: the stages in order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import onnx

from tamis.compiler.config import BuildConfig
from tamis.compiler.crossover import CrossoverConfig, measure_crossover
from tamis.compiler.importer import import_onnx
from tamis.compiler.passes import run_passes
from tamis.compiler.passes.force_sparsity import force_sparsity
from tamis.compiler.planner import plan_engine
from tamis.compiler.tuner import open_track, race_all
from tamis.engine.file import Engine
from tamis.runtime.session import open_device

Progress: TypeAlias = Callable[[str, int, int, str], None]


def build(model: str | Path | bytes | onnx.ModelProto, config: BuildConfig, progress: Progress | None = None) -> Engine:
    """Compile an ONNX model for a device.

    Args:
        model: a file, its bytes, or a parsed model.
        config: what is allowed and wanted.
        progress: called with (stage, done, total, what is being done).

    Raises ``ModelError`` for a model that cannot be used, ``ConfigError`` for options that do not fit it,
    ``DeviceError`` when the device is missing, ``BuildError`` when no engine is accurate enough.
    """
    tell = progress or _silent
    tell("import", 0, 1, "")
    device = open_device(config.device)
    graph = import_onnx(model, config.shapes)
    tell("passes", 0, 1, "")
    graph = force_sparsity(run_passes(graph, dump=config.dump, verify=config.verify), config.sparsity)
    track = open_track(graph, device, config)
    races = race_all(graph, track, lambda done, total, what: tell("race", done, total, what))
    engine = plan_engine(graph, races, track, lambda done: tell("regions", done, done + 1, ""))
    tell("save", 0, 1, "")
    track.cache.save()
    return engine


def _silent(stage: str, done: int, total: int, detail: str) -> None:
    """Nobody watches."""


__all__ = ["BuildConfig", "CrossoverConfig", "Progress", "build", "measure_crossover"]
