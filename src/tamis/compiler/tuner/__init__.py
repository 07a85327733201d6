"""The races for the layers of a graph."""

from __future__ import annotations

import functools
import time
from dataclasses import replace

from tamis.compiler.config import BuildConfig, Progress
from tamis.compiler.ir.graph import Graph
from tamis.compiler.tactics import tactics_of
from tamis.compiler.tactics.base import layer_of
from tamis.compiler.tuner.cache import TimingCache, short_hash
from tamis.compiler.tuner.describe import signature_of
from tamis.compiler.tuner.prior import measure_roof
from tamis.compiler.tuner.race import LayerRace, Track, prepare, race_layer, share_of
from tamis.compiler.tuner.reference import Reference
from tamis.compiler.tuner.suspect import Suspect, watch
from tamis.compiler.tuner.timing import Clock
from tamis.devices.base import Device
from tamis.devices.cpu.info import require_cores
from tamis.formats.dtype import DType


def open_track(graph: Graph, device: Device, config: BuildConfig) -> Track:
    """The device, the clock, the cache and the reference that all races of a build share."""
    info = device.info()
    threads = config.threads or (info.cores if info.kind == "cpu" else 1)
    require_cores(info, threads)
    device.set_threads(threads)
    cache = TimingCache(config.timing_cache, info, threads)
    weights = sum(array.nbytes for array in graph.constants.values())
    reference = Reference(graph, device, config)
    reference.samples()  # a sample that does not fit is told before anything is measured
    state = device.state()
    with watch(device, Suspect("measuring what the device can do")):
        roof = measure_roof(cache, device, config.raced_precisions)
    return Track(
        device=device,
        config=config,
        clock=Clock(device, cold=weights > device.cache_bytes),
        cache=cache,
        roof=roof,
        reference=reference,
        deadline=time.monotonic() + config.budget_seconds,
        threads=threads,
        state=state,
        build=_identity(graph, config),
    )


def _identity(graph: Graph, config: BuildConfig) -> str:
    """Equal for builds that race the same candidates in the same layers."""
    layers = sorted({signature_of(layer_of(graph, node)) for node in graph.nodes})
    options = config.optimization_level, config.sparsity, config.raced_precisions, config.exclude_tactics
    return short_hash(*layers, str(options), str(config.layer_precisions))


def race_all(graph: Graph, track: Track, tell: Progress) -> tuple[LayerRace, ...]:
    """Compile kernels; then one race for each layer, in order. Layers of equal signature share the measurements."""
    tactics = tactics_of(track.config.device)
    layers = [layer_of(graph, node) for node in graph.nodes]
    keys = [(signature_of(layer), track.config.precisions_of(layer.name)) for layer in layers]
    first = dict(zip(reversed(keys), reversed(layers), strict=True))
    track.reference.expect(v for layer in first.values() for v in (*layer.values, *layer.node.outputs))
    tell("compile", 0, 0, "")
    prepared = prepare(first.values(), tactics, track, functools.partial(tell, "compile"))
    waiting = dict(zip(first, prepared.waiting, strict=True))
    races: dict[tuple[str, tuple[DType, ...]], LayerRace] = {}
    results = []
    for index, (layer, key) in enumerate(zip(layers, keys, strict=True)):
        tell("race", index, len(layers), layer.name)
        if key not in races:
            mine = waiting.pop(key)
            until = share_of(track.deadline, mine, sum(waiting.values()))
            races[key] = race_layer(layer, tactics, replace(track, deadline=until), prepared.late)
        shared = races[key]
        results.append(replace(shared, layer=layer))
    tell("race", len(layers), len(layers), "")
    return tuple(results)


__all__ = ["open_track", "race_all"]
