"""Engines of a model whose weights are pruned for the sake of timing, beside its best dense engine.

One set of races serves all of them: those of the model with every weight pruned that can be. An engine in which only
some weights are pruned is chosen from the same measurements, without the sparse candidates of the other layers. The
dense engine keeps the weights as they are: on a GPU zeros draw less power, so that dense kernels on pruned weights run
faster than they will.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property

import numpy as np

from tamis.compiler.config import BuildConfig, Progress
from tamis.compiler.importer import import_onnx
from tamis.compiler.ir.graph import Graph
from tamis.compiler.names import check_names
from tamis.compiler.passes import run_passes
from tamis.compiler.passes.force_sparsity import force_sparsity, prunable, pruned
from tamis.compiler.planner import plan_engine
from tamis.compiler.planner.contest import in_inference_mode
from tamis.compiler.rescue import Model
from tamis.compiler.tactics.base import layer_of
from tamis.compiler.tuner import open_track, race_all
from tamis.compiler.tuner.cache import Measurement, digest_of, short_hash
from tamis.compiler.tuner.race import LayerRace, Track
from tamis.compiler.tuner.reference import Reference
from tamis.compiler.tuner.suspect import Suspect, note_culprit, watch
from tamis.compiler.tuner.timing import Clock, Contender, summarise
from tamis.engine.estimate import Versus
from tamis.engine.file import Engine
from tamis.engine.inspect import is_sparse
from tamis.engine.noise import NOISE, beats
from tamis.engine.plan import to_json
from tamis.errors import ConfigError, DeviceLost
from tamis.formats import NM, TWO_FOUR, parse_pattern
from tamis.runtime.session import Session, open_device

_TURNS = 31
_SECONDS = 20.0


def hardware_pattern(text: str) -> NM:
    """A pattern whose weights are 2:4 too, so that sparse kernels run them. Raises ``ConfigError`` for others."""
    pattern = parse_pattern(text)
    if isinstance(pattern, NM) and pattern.is_part_of(TWO_FOUR):
        return pattern
    raise ConfigError(
        f"no kernel makes use of {text}, whose weights are not 2:4",
        remedy="ask for 2:4, 1:4, 1:2 or another part of it",
    )


class WhatIf:
    """The races of one model with all its weights pruned, and engines of any part of them.

    Attributes:
        graph: the model after all passes, its weights as they are.
        forced: the same with every weight pruned that can be.
        pattern: how they are pruned.
        prunable: those weights, by the names of the constants.
        races: of the layers of ``forced``, in order.
        track: what they share.
    """

    def __init__(self, graph: Graph, pattern: NM, track: Track, races: tuple[LayerRace, ...], tell: Progress) -> None:
        self.graph = graph
        self.forced = track.reference.graph
        self.pattern = pattern
        self.prunable = prunable(graph)
        self.races = races
        self.track = track
        self._tell = tell

    @cached_property
    def dense(self) -> Engine:
        """The fastest engine without sparse kernels, with the weights as they are."""
        return self._plan(force_sparsity(self.graph, "off"), replace(self.track.config, sparsity="off"))

    @cached_property
    def sparse(self) -> Engine:
        """The fastest engine with every weight pruned; its layers run 2:4 where that is faster."""
        return self._plan(self.forced, replace(self.track.config, sparsity="force"))

    def with_pruned(self, weights: Collection[str]) -> Engine:
        """The fastest engine with some of the weights pruned."""
        graph = pruned(self.graph, weights, self.pattern)
        return self._plan(graph, replace(self.track.config, sparsity="force"))

    def against_dense(self, engine: Engine) -> Versus:
        """An engine against the dense one, in turns, or what the timing cache knows of that."""
        track = self.track
        engines = {"dense": self.dense, "sparse": engine}
        names = [short_hash(*_identity(each)) for each in engines.values()]
        key = f"dense engine #{names[0]} against #{names[1]}"
        found = [track.cache.get(f"{key}: {side}") for side in (*engines, "gain")]
        dense, sparse, gain = found
        if dense is None or sparse is None or gain is None or gain.numbers is None:
            self._tell("engines", 0, 1, "dense against 2:4")
            samples = self._samples(engines)
            each_turn = np.divide(samples["dense"], samples["sparse"])
            ratios = {f"p{percent}": round(float(np.percentile(each_turn, percent)), 4) for percent in (10, 50, 90)}
            gain = track.cache.put(f"{key}: gain", Measurement(numbers=ratios))
            dense, sparse = (
                track.cache.put(f"{key}: {side}", Measurement(summarise(values))) for side, values in samples.items()
            )
        assert dense.timing is not None and sparse.timing is not None and gain.numbers is not None
        low, middle, high = (gain.numbers[name] for name in ("p10", "p50", "p90"))
        # Each side's own times can differ where those of one turn do not: when the machine is busy for a while.
        pays = (
            any(is_sparse(layer) for layer in engine.plan.layers)
            and beats(sparse.timing, dense.timing)
            and middle * (1.0 - NOISE) > 1.0
        )
        return Versus(dense.timing, sparse.timing, middle, low, high, pays)

    def _samples(self, engines: dict[str, Engine]) -> dict[str, list[float]]:
        inputs = self.track.reference.samples()
        contenders = {}
        for side, engine in engines.items():
            launch = Session(engine, device=self.track.device).bind(inputs)
            contenders[side] = Contender(in_inference_mode(launch), settle=True)
        return Clock(self.track.device, cold=False).samples(contenders, _TURNS, time.monotonic() + _SECONDS)

    def _plan(self, graph: Graph, config: BuildConfig) -> Engine:
        reference = Reference(graph, self.track.device, config)  # pruned weights are held to their own results
        track = replace(self.track, config=config, reference=reference)
        races = tuple(_race_in(graph, race) for race in self.races)
        return plan_engine(graph, races, track, self._tell)


def open_what_if(model: Model, config: BuildConfig, pattern: NM, tell: Progress) -> WhatIf:
    """Import a model, prune all its weights, and race its layers. Errors are those of a build."""
    tell("import", 0, 1, "")
    device = open_device(config.device)
    graph = import_onnx(model, config.shapes)
    tell("passes", 0, 1, "")
    graph = run_passes(graph, dump=config.dump, verify=config.verify)
    check_names(config, [node.name for node in graph.nodes])
    forced = pruned(graph, prunable(graph), pattern)
    track = open_track(forced, device, replace(config, sparsity="force"))
    with naming_culprits(track):
        races = race_all(forced, track, tell)
    track.cache.save()
    return WhatIf(graph, pattern, track, races, tell)


@contextmanager
def naming_culprits(track: Track) -> Iterator[None]:
    """Keep in the timing cache who breaks the GPU, so that measuring again goes without it."""
    try:
        with watch(track.device, Suspect()):
            yield
    except DeviceLost as lost:
        note_culprit(track.cache, lost)
        again = "run it again with the same timing cache" if track.cache.path else "run it with a timing cache"
        remedy = f"{again}: what broke the GPU once is then left out"
        raise DeviceLost(lost.cause, layer=lost.layer, remedy=remedy, tactic=lost.tactic) from lost


def _race_in(graph: Graph, race: LayerRace) -> LayerRace:
    """A race as it would have been in a graph whose weight may be dense: without the sparse candidates then."""
    node = next(node for node in graph.nodes if node.name == race.layer.name)
    layer = layer_of(graph, node)
    entries = race.entries if layer.eligible else tuple(e for e in race.entries if e.choice.sparsity == "dense")
    return replace(race, layer=layer, entries=entries)


def _identity(engine: Engine) -> list[str]:
    plan = replace(engine.plan, config={}, conditions=None, layers=(), regions=(), engines=(), usable_for_accuracy=True)
    tensors = [f"{name} {digest_of(np.asarray(array))}" for name, array in sorted(engine.tensors.items())]
    return [to_json(plan), *tensors]
